import { element, svg } from "./element.js";
import { shorten } from "./lines.js";

const WIDTH = 1000;
const HEIGHT = 760;
const MARGIN = 24;
/** How near the pointer must be to a point, in pixels. */
const REACH_PX = 24;

/**
 * Points in the plane with a text each. The pointer, or the arrow keys, select a point; `onSelect`
 * is called with its index, `colors` has a class of each point.
 */
export class ScatterPlot {
  #places;
  #texts;
  #circles;
  #tip = element("div", { class: "tip", hidden: true });
  #onSelect;
  #order;
  #selected = -1;

  constructor(points, texts, colors, onSelect) {
    this.#places = fit(points);
    this.#texts = texts;
    this.#onSelect = onSelect;
    this.#order = this.#places
      .map((_, i) => i)
      .sort((a, b) => this.#places[a].x - this.#places[b].x);
    this.#circles = this.#places.map(({ x, y }, i) =>
      svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 6, class: colors[i] }),
    );
    this.drawing = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" },
      svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2 }),
      svg("line", { y1: 0, y2: HEIGHT, x1: WIDTH / 2, x2: WIDTH / 2 }),
      this.#circles,
    );
    this.element = element(
      "div",
      {
        class: "scatter",
        tabindex: 0,
        role: "group",
        "aria-label": `${texts.length} texts. The arrow keys go from left to right.`,
        onpointermove: (event) => this.#point(event),
        onpointerdown: (event) => this.#point(event),
        onkeydown: (event) => this.#press(event),
      },
      this.drawing,
      this.#tip,
    );
  }

  /** Selects a point by its index. */
  select(index) {
    if (index === this.#selected) return;
    this.#circles[this.#selected]?.classList.remove("selected");
    this.#selected = index;
    const circle = this.#circles[index];
    circle.classList.add("selected");
    circle.parentNode.append(circle); // above the others
    const { x, y } = this.#places[index];
    this.#tip.textContent = shorten(this.#texts[index], 160);
    this.#tip.hidden = false;
    this.#tip.classList.toggle("left", x > WIDTH / 2);
    this.#tip.style.setProperty("--x", x / WIDTH);
    this.#tip.style.setProperty("--y", y / HEIGHT);
    this.#onSelect(index);
  }

  #point(event) {
    const box = this.drawing.getBoundingClientRect();
    const scale = WIDTH / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let nearest = -1;
    let best = (REACH_PX * scale) ** 2;
    this.#places.forEach((place, i) => {
      const distance = (place.x - x) ** 2 + (place.y - y) ** 2;
      if (distance < best) [nearest, best] = [i, distance];
    });
    if (nearest >= 0) this.select(nearest);
  }

  #press(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const place = this.#order.indexOf(this.#selected) + steps[event.key];
    this.select(this.#order.at(place % this.#order.length));
  }
}

/** Scales points into the drawing; both axes have the same scale. */
function fit(points) {
  const [halfWidth, halfHeight] = [WIDTH / 2 - MARGIN, HEIGHT / 2 - MARGIN];
  const scale = points.reduce(
    (min, [x, y]) => Math.min(min, halfWidth / Math.abs(x), halfHeight / Math.abs(y)),
    Infinity,
  );
  const factor = Number.isFinite(scale) ? scale : 0; // all points are the same
  return points.map(([x, y]) => ({ x: WIDTH / 2 + x * factor, y: HEIGHT / 2 - y * factor }));
}
