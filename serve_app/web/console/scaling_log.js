import { element } from "./element.js";

const MAX_ENTRIES = 12;

/** What the autoscaler has changed since the page was opened, and why; the latest change first. */
export class ScalingLog {
  #targets = new Map();
  #entries = [];
  #list = element("ol", { class: "log" });

  constructor() {
    this.element = element(
      "section",
      { hidden: true },
      element("h3", {}, "Autoscaling"),
      this.#list,
    );
  }

  add({ unix, deployments }) {
    for (const { name, target, decided_by: term, reason } of deployments) {
      const before = this.#targets.get(name);
      this.#targets.set(name, target);
      if (target === null || before === undefined || before === target) continue;
      this.#entries.unshift({ unix, name, before, target, why: reason ?? term ?? "" });
    }
    this.#entries.length = Math.min(this.#entries.length, MAX_ENTRIES);
  }

  draw() {
    this.element.hidden = this.#entries.length === 0;
    this.#list.replaceChildren(
      ...this.#entries.map(({ unix, name, before, target, why }) =>
        element(
          "li",
          {},
          element("time", {}, new Date(1000 * unix).toLocaleTimeString("en-GB")),
          element("b", {}, `${name}: ${before ?? "–"} → ${target}`),
          ` ${why}`,
        ),
      ),
    );
  }
}
