import { element, svg } from "./element.js";

const WIDTH = 300;
const HEIGHT = 72;

/**
 * A chart of values over the last minutes, with the latest ones in its legend.
 *
 * `series` are `{ label, read, isStep, isDashed }`: `read` returns the value of a snapshot, null if
 * it is unknown. `format` writes values, `max` is the top of the axis if it is fixed.
 */
export class LineChart {
  #series;
  #format;
  #max;
  #values;
  #paths;
  #top = element("span", { class: "axis" });
  #length;

  constructor(title, series, format, { length, max = null }) {
    this.#series = series;
    this.#format = format;
    this.#max = max;
    this.#length = length;
    this.#values = series.map(() => element("b", {}, "–"));
    this.#paths = series.map((_, i) => svg("path", { class: `line color-${i}` }));
    series.forEach(({ isDashed }, i) => isDashed && this.#paths[i].classList.add("dashed"));
    this.element = element(
      "figure",
      { class: "chart" },
      element(
        "figcaption",
        {},
        element("h3", {}, title),
        element(
          "ul",
          { class: "legend" },
          series.map(({ label }, i) =>
            element(
              "li",
              {},
              element("span", { class: `swatch color-${i}` }),
              label,
              this.#values[i],
            ),
          ),
        ),
      ),
      element(
        "div",
        { class: "plot" },
        svg(
          "svg",
          { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
          this.#paths,
        ),
        this.#top,
      ),
    );
  }

  /** Draws snapshots, the oldest first. */
  draw(snapshots) {
    const rows = this.#series.map(({ read }) =>
      snapshots.map((snapshot) => read(snapshot) ?? null),
    );
    const max = this.#max ?? niceMax(Math.max(0, ...rows.flat()));
    const start = this.#length - snapshots.length;
    rows.forEach((values, i) => {
      this.#paths[i].setAttribute("d", this.#line(values, start, max, this.#series[i].isStep));
      this.#values[i].textContent = this.#format(values.at(-1));
    });
    this.#top.textContent = this.#format(max);
  }

  #line(values, start, max, isStep) {
    let path = "";
    let isOpen = false;
    values.forEach((value, i) => {
      if (value === null) {
        isOpen = false;
        return;
      }
      const x = (((start + i) / (this.#length - 1)) * WIDTH).toFixed(1);
      const y = (HEIGHT - 1 - (Math.min(value, max) / max) * (HEIGHT - 3)).toFixed(1);
      if (!isOpen) path += `M${x} ${y}`;
      else path += isStep ? `H${x}V${y}` : `L${x} ${y}`;
      isOpen = true;
    });
    return path;
  }
}

/** Returns the smallest round number that isn't below a value. */
function niceMax(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].find((step) => step * power >= value * 0.999) * power;
}
