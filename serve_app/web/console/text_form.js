import { element } from "./element.js";
import { Notice } from "./notice.js";

/**
 * The form of a view: fields, a button that runs it, also by Ctrl+Enter, and a notice below.
 *
 * `run(signal)` is called with one run at a time: a new one aborts the one before.
 */
export class TextForm {
  #run;
  #abort = null;

  constructor(fields, label, run, ...buttons) {
    this.#run = run;
    this.notice = new Notice();
    this.button = element("button", { type: "submit", class: "primary" }, label);
    this.element = element(
      "form",
      {
        class: "panel",
        novalidate: true,
        onsubmit: (event) => {
          event.preventDefault();
          this.start();
        },
      },
      ...fields,
      element(
        "div",
        { class: "row" },
        this.button,
        ...buttons,
        element("span", { class: "muted hint" }, "Ctrl+Enter"),
      ),
      this.notice.element,
    );
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.start();
    });
  }

  get isRunning() {
    return this.#abort !== null;
  }

  async start() {
    this.cancel();
    const abort = (this.#abort = new AbortController());
    this.element.setAttribute("aria-busy", "true");
    this.notice.clear();
    try {
      await this.#run(abort.signal);
    } catch (error) {
      if (this.#abort === abort) this.notice.fail(error);
    } finally {
      if (this.#abort === abort) {
        this.#abort = null;
        this.element.removeAttribute("aria-busy");
      }
    }
  }

  cancel() {
    this.#abort?.abort();
  }
}

/** Returns a labelled text area. */
export function textArea(id, label, value, rows, onInput) {
  const area = element("textarea", { id, rows, spellcheck: "false", oninput: onInput });
  area.value = value;
  return [area, element("div", { class: "field" }, element("label", { for: id }, label), area)];
}
