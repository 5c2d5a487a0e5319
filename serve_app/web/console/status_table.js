import { element } from "./element.js";

/** A table of one part of a snapshot. Columns are `{ name, read, isNumber }`. */
export class StatusTable {
  #read;
  #empty;
  #columns;
  #body = element("tbody");

  constructor(title, read, empty, columns) {
    this.#read = read;
    this.#empty = empty;
    this.#columns = columns;
    const head = columns.map(({ name, isNumber }) =>
      element("th", { scope: "col", class: isNumber ? "number" : "" }, name),
    );
    this.element = element(
      "section",
      {},
      element("h3", {}, title),
      element(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
        element(
          "table",
          { class: "plain status" },
          element("thead", {}, element("tr", {}, head)),
          this.#body,
        ),
      ),
    );
  }

  show(snapshot) {
    const rows = this.#read(snapshot).map((row) =>
      element(
        "tr",
        {},
        this.#columns.map(({ read, isNumber }) =>
          element("td", { class: isNumber ? "number" : "" }, String(read(row))),
        ),
      ),
    );
    const none = element(
      "tr",
      {},
      element("td", { class: "muted", colspan: this.#columns.length }, this.#empty),
    );
    this.#body.replaceChildren(...(rows.length ? rows : [none]));
  }
}
