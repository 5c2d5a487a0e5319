import { apiKey } from "./api_key.js";
import { CompareView } from "./compare_view.js";
import { bindKeyDialog } from "./key_dialog.js";
import { LiveView } from "./live_view.js";
import { ProjectionView } from "./projection_view.js";
import { RerankView } from "./rerank_view.js";
import { ROOT } from "./service.js";
import { bindTheme } from "./theme.js";
import { TryView } from "./try_view.js";

const VIEWS = {
  try: TryView,
  compare: CompareView,
  rerank: RerankView,
  projection: ProjectionView,
  live: LiveView,
};
const main = document.getElementById("main");
const opened = {};
let current = null;

/**
 * Shows the view that the address names. A view keeps what was typed while another one is shown.
 */
function route() {
  const hash = location.hash.slice(1);
  const name = hash in VIEWS ? hash : "try";
  const view = (opened[name] ??= new VIEWS[name]());
  for (const link of document.querySelectorAll("#views a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === current) return;
  current?.hide?.();
  current = view;
  main.replaceChildren(view.element);
  document.title = `${view.title} · EmbedServe console`;
  view.show?.();
}

bindTheme(document.getElementById("theme-button"));
bindKeyDialog();
document.getElementById("docs-link").href = new URL("docs", ROOT);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  main.focus();
});
apiKey.addEventListener("change", () => current?.show?.());
addEventListener("hashchange", route);
route();
