import { apiKey } from "./api_key.js";
import { element } from "./element.js";
import { ROOT } from "./service.js";

const COPIED_MS = 1500;

/** Shows a request as a curl command, with a button that copies it. */
export class CurlPanel {
  #code = element("code");
  #copy = element(
    "button",
    { type: "button", class: "quiet", onclick: () => this.#onCopy() },
    "Copy",
  );
  #note = element("span", { class: "muted" });
  #request = null;

  constructor() {
    this.element = element(
      "section",
      { class: "curl", "aria-label": "The request as curl" },
      element("div", { class: "row" }, element("h3", {}, "curl"), this.#note, this.#copy),
      element("pre", { tabindex: 0, role: "region", "aria-label": "curl command" }, this.#code),
    );
    apiKey.addEventListener("change", () => this.#render());
  }

  /** Shows a request: a path and, for a POST, a body and headers; `note` is a remark on it. */
  show(path, { body, headers = {}, note = "" } = {}) {
    this.#request = { path, body, headers };
    this.#note.textContent = note;
    this.#render();
  }

  #render() {
    if (this.#request) this.#code.textContent = command(this.#request);
  }

  async #onCopy() {
    const text = this.#code.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages that come over plain HTTP from another machine have no clipboard API.
      getSelection().selectAllChildren(this.#code);
      document.execCommand("copy");
    }
    this.#copy.textContent = "Copied";
    setTimeout(() => (this.#copy.textContent = "Copy"), COPIED_MS);
  }
}

function command({ path, body, headers }) {
  const parts = [`curl ${body === undefined ? "-N " : ""}${quote(new URL(path, ROOT).href)}`];
  // The variable, not the key: commands end up in histories and chats.
  if (apiKey.value) parts.push('-H "Authorization: Bearer $EMBEDSERVE_API_KEY"');
  for (const [name, value] of Object.entries(headers))
    parts.push(`-H ${quote(`${name}: ${value}`)}`);
  if (body !== undefined) {
    parts.push("-H 'Content-Type: application/json'", `-d ${quote(JSON.stringify(body))}`);
  }
  return parts.join(" \\\n  ");
}

function quote(text) {
  return /^[\w:/.,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
