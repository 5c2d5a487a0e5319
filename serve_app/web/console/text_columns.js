import { element } from "./element.js";

/** Returns the content of a view: its form, the command below it, and beside them the result. */
export function textColumns(title, form, result, curl, hint) {
  result.append(element("p", { class: "empty" }, hint));
  return element(
    "div",
    { class: "columns" },
    element("div", {}, element("h2", {}, title), form.element),
    result,
    curl.element,
  );
}
