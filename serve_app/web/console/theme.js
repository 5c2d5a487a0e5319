const ITEM = "embedserve-theme";
const NAMES = { auto: "auto", light: "light", dark: "dark" };

/** Binds the button that switches between the system's colors, light and dark ones. */
export function bindTheme(button) {
  const names = Object.keys(NAMES);
  let theme = localStorage.getItem(ITEM);
  if (!names.includes(theme)) theme = "auto";
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${NAMES[theme]}`;
  };
  button.addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    localStorage.setItem(ITEM, theme);
    apply();
  });
  apply();
}
