import { apiKey } from "./api_key.js";

/** Binds the dialog in which the user enters an API key. */
export function bindKeyDialog() {
  const find = (id) => document.getElementById(id);
  const [dialog, input, button] = [find("key-dialog"), find("key-input"), find("key-button")];
  const open = () => {
    input.value = "";
    find("key-forget").hidden = !apiKey.value;
    dialog.showModal();
    input.focus();
  };
  const update = () => {
    button.textContent = apiKey.value ? "API key ✓" : "API key";
    button.setAttribute("aria-label", apiKey.value ? "API key: entered" : "API key: none");
  };
  button.addEventListener("click", open);
  apiKey.addEventListener("request", open);
  apiKey.addEventListener("change", update);
  find("key-cancel").addEventListener("click", () => dialog.close());
  find("key-forget").addEventListener("click", () => {
    dialog.close();
    apiKey.value = "";
  });
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
    if (input.value.trim()) apiKey.value = input.value.trim();
    input.value = "";
  });
  update();
}
