import { element } from "./element.js";
import { shorten } from "./lines.js";

/** From this share of the color on, numbers need the other text color to be readable. */
const STRONG = 0.5;

/** Returns a matrix of similarities, shape (n, n), as a table of colored numbers. */
export function heatMap(texts, matrix) {
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, element("span", { class: "unseen" }, "Text")),
    texts.map((text, i) => element("th", { scope: "col", title: text }, String(i + 1))),
  );
  const rows = matrix.map((row, i) =>
    element(
      "tr",
      {},
      element(
        "th",
        { scope: "row", title: texts[i] },
        element("span", { class: "index" }, String(i + 1)),
        shorten(texts[i], 34),
      ),
      row.map((value, j) => cell(value, i === j)),
    ),
  );
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Similarity matrix" },
    element("table", { class: "heat" }, element("thead", {}, head), element("tbody", {}, rows)),
  );
}

function cell(value, isSelf) {
  if (isSelf) return element("td", { class: "self" }, "1");
  const share = Math.max(0, Math.min(1, value));
  const text = (Math.abs(value) < 0.005 ? 0 : value)
    .toFixed(2)
    .replace("-", "−")
    .replace("0.", ".");
  return element(
    "td",
    { class: share >= STRONG ? "strong" : "", vars: { "--share": `${(100 * share).toFixed(1)}%` } },
    text,
  );
}
