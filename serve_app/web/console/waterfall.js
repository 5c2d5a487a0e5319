import { element } from "./element.js";

const NAMES = {
  cache: "cache look-up",
  queue: "queue",
  tokenize: "tokenizer",
  load: "load model",
  infer: "model",
};

/**
 * Returns the times of a request as a table with bars, each of which starts where the one above
 * ends.
 *
 * `stages` are milliseconds, with their `total` in the service; `elapsedMs` is the time in the
 * browser.
 */
export function waterfall(stages, elapsedMs) {
  const known = Object.keys(NAMES).filter((name) => name in stages);
  const rows = known.map((name) => [NAMES[name], stages[name]]);
  const total = stages.total ?? 0;
  const sum = rows.reduce((ms, [, value]) => ms + value, 0);
  rows.push(["other work", Math.max(0, total - sum)]);
  rows.push(["network, browser", Math.max(0, elapsedMs - total)]);
  const all = rows.reduce((ms, [, value]) => ms + value, 0) || 1;
  let start = 0;
  const body = rows.map(([name, ms]) => {
    const bar = element("span", {
      class: "bar",
      vars: { "--start": start / all, "--size": ms / all },
    });
    start += ms;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", { class: "track" }, bar),
      element("td", { class: "number" }, ms.toFixed(2)),
    );
  });
  return element(
    "table",
    { class: "waterfall" },
    element(
      "caption",
      {},
      `${elapsedMs.toFixed(1)} ms in all, ${total.toFixed(2)} ms in the service`,
    ),
    element(
      "thead",
      { class: "unseen" },
      element(
        "tr",
        {},
        ...["Stage", "Share", "Milliseconds"].map((name) => element("th", { scope: "col" }, name)),
      ),
    ),
    element("tbody", {}, body),
  );
}
