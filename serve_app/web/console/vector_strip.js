import { element, svg } from "./element.js";

/**
 * Returns a vector as a strip of bars, one for each component, that can be read off by its value.
 */
export function vectorStrip(vector) {
  const largest = vector.reduce((max, value) => Math.max(max, Math.abs(value)), 0) || 1;
  const bars = { positive: "", negative: "" };
  vector.forEach((value, i) => {
    const bar = `M${i} 0h1v${(-value / largest).toFixed(4)}h-1z`;
    bars[value < 0 ? "negative" : "positive"] += bar;
  });
  const cursor = svg("rect", { class: "cursor", x: 0, y: -1, width: 1, height: 2 });
  const drawing = svg(
    "svg",
    { viewBox: `0 -1 ${vector.length} 2`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "positive", d: bars.positive }),
    svg("path", { class: "negative", d: bars.negative }),
    cursor,
  );
  const readout = element("output", { class: "readout" });
  const strip = element(
    "div",
    {
      class: "strip",
      tabindex: 0,
      role: "slider",
      "aria-label": "Component of the vector",
      "aria-valuemin": 0,
      "aria-valuemax": vector.length - 1,
    },
    drawing,
  );
  let index = 0;
  const select = (value) => {
    index = Math.max(0, Math.min(vector.length - 1, value));
    const text = `component ${index}: ${vector[index].toFixed(6)}`;
    cursor.setAttribute("x", index);
    strip.setAttribute("aria-valuenow", index);
    strip.setAttribute("aria-valuetext", text);
    readout.textContent = text;
  };
  strip.addEventListener("pointermove", (event) => {
    const box = strip.getBoundingClientRect();
    select(Math.floor(((event.clientX - box.left) / box.width) * vector.length));
  });
  const jumps = {
    ArrowLeft: () => index - 1,
    ArrowRight: () => index + 1,
    PageUp: () => index - 16,
    PageDown: () => index + 16,
    Home: () => 0,
    End: () => vector.length - 1,
  };
  strip.addEventListener("keydown", (event) => {
    if (!(event.key in jumps)) return;
    event.preventDefault();
    select(jumps[event.key]());
  });
  select(0);
  const scale = element(
    "span",
    { class: "muted" },
    `bars from −${largest.toFixed(3)} to ${largest.toFixed(3)}`,
  );
  return element("div", {}, strip, element("div", { class: "row spread" }, readout, scale));
}
