import { apiKey } from "./api_key.js";
import { element } from "./element.js";

/** A line that says what is wrong or what a view is doing; screen readers announce it. */
export class Notice {
  constructor() {
    this.element = element("div", { class: "notice", role: "status", hidden: true });
  }

  clear() {
    this.element.hidden = true;
    this.element.replaceChildren();
  }

  say(...content) {
    this.element.className = "notice";
    this.#show(content);
  }

  /** Shows an error of `send`, with what the user can do. */
  fail(error) {
    if (error.name === "AbortError") return this.clear();
    const content = [error.message];
    if (error.retryAfterS) content.push(` Try again in ${Math.ceil(error.retryAfterS)} s.`);
    if (error.needsKey) {
      const ask = () => apiKey.request();
      content.push(" ", element("button", { type: "button", onclick: ask }, "Enter API key"));
    }
    this.element.className = "notice error";
    return this.#show(content);
  }

  #show(content) {
    this.element.replaceChildren(...content);
    this.element.hidden = false;
  }
}
