import { element } from "./element.js";

/** Returns a list of names and values. A value is a string, or an element. */
export function facts(rows) {
  return element(
    "dl",
    { class: "facts" },
    rows.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value ?? "–")),
    ),
  );
}
