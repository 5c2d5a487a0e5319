import { bulkRequest, embedAll } from "./bulk_call.js";
import { CurlPanel } from "./curl_panel.js";
import { element } from "./element.js";
import { categoryFields, parseJsonl, textFields } from "./jsonl.js";
import { lines, shorten } from "./lines.js";
import { ModelSelect } from "./model_select.js";
import { principalComponents } from "./pca.js";
import { ScatterPlot } from "./scatter_plot.js";
import { TextForm, textArea } from "./text_form.js";
import { cosine } from "./vector.js";

const MAX_TEXTS = 2000;
const MAX_FILE_BYTES = 50 * 2 ** 20;
const MAX_COLORS = 6;
const MAX_NEIGHBORS = 6;
const CURL_TEXTS = 2;
const EXAMPLE = `The cat sleeps on the sofa
A kitten plays with a ball of wool
Dogs like long walks
The puppy chews on a shoe
The stock market fell today
Shares of the bank lost four percent
Interest rates will rise again
The central bank meets on Thursday
Add two cups of flour and a pinch of salt
Bake the bread for forty minutes
Simmer the soup until the carrots are soft
The train to Zürich leaves at noon
Our flight was delayed by three hours
Take the bus to the old town`;

/** Embeds many texts and shows them as points in the plane of the largest variance. */
export class ProjectionView {
  title = "Projection";
  #result = element("div", { class: "result" });
  #curl = new CurlPanel();
  #records = null; // of the file; null: the texts are pasted

  constructor() {
    this.select = new ModelSelect(
      "embed",
      () => this.#changed(),
      (error) => this.form.notice.fail(error),
    );
    const label = `Texts, one a line, up to ${MAX_TEXTS.toLocaleString("en")}`;
    const [area, field] = textArea("projection-texts", label, EXAMPLE, 8, () => this.#changed());
    this.text = area;
    this.file = element("input", {
      id: "projection-file",
      type: "file",
      accept: ".jsonl,.ndjson,.json,.txt",
      onchange: () => this.#readFile(),
    });
    this.field = element("select", { id: "projection-field", onchange: () => this.#changed() });
    this.color = element("select", { id: "projection-color" });
    this.fileFields = element(
      "div",
      { class: "row fields", hidden: true },
      element(
        "div",
        { class: "field" },
        element("label", { for: "projection-field" }, "Field with the text"),
        this.field,
      ),
      element(
        "div",
        { class: "field" },
        element("label", { for: "projection-color" }, "Color by"),
        this.color,
      ),
      element(
        "button",
        { type: "button", class: "quiet", onclick: () => this.#dropFile() },
        "Use pasted texts",
      ),
    );
    this.pasted = field;
    this.cancel = element(
      "button",
      { type: "button", hidden: true, onclick: () => this.form.cancel() },
      "Cancel",
    );
    this.form = new TextForm(
      [
        field,
        element(
          "div",
          { class: "field" },
          element("label", { for: "projection-file" }, "or a JSONL file"),
          this.file,
        ),
        this.fileFields,
        this.select.element,
      ],
      "Project",
      (signal) => this.#run(signal),
      this.cancel,
    );
    this.element = element(
      "div",
      { class: "columns" },
      element("div", {}, element("h2", {}, this.title), this.form.element),
      this.#result,
      this.#curl.element,
    );
    this.#result.append(element("p", { class: "empty" }, "Each text appears here as a point."));
    this.#changed();
  }

  async show() {
    if ((await this.select.load()) === false) {
      this.form.notice.say("No served model embeds texts.");
    }
  }

  get #texts() {
    if (!this.#records) return lines(this.text.value);
    return this.#records
      .map((record) => record[this.field.value])
      .filter((text) => typeof text === "string" && text.trim());
  }

  /** The records that have a text, in the order of `#texts`; null if there is no file. */
  get #rows() {
    return this.#records?.filter(
      (record) => typeof record[this.field.value] === "string" && record[this.field.value].trim(),
    );
  }

  #changed() {
    const texts = this.#texts;
    const note =
      texts.length > CURL_TEXTS ? `the first ${CURL_TEXTS} of ${texts.length} texts` : "";
    const request = bulkRequest(this.select.fields, texts.slice(0, CURL_TEXTS));
    this.#curl.show("v1/embeddings", { ...request, note });
  }

  async #readFile() {
    const [file] = this.file.files;
    if (!file) return this.#dropFile();
    try {
      if (file.size > MAX_FILE_BYTES)
        throw new Error("The file is larger than 50 MB. Send a part of it.");
      const content = await file.text();
      this.#records = file.name.endsWith(".txt")
        ? lines(content).map((text) => ({ text }))
        : parseJsonl(content);
      const fields = textFields(this.#records);
      if (!fields.length) throw new Error("No field of the file holds texts.");
      this.field.replaceChildren(...fields.map((name) => element("option", {}, name)));
      this.color.replaceChildren(
        element("option", { value: "" }, "none"),
        ...categoryFields(this.#records, MAX_COLORS).map((name) => element("option", {}, name)),
      );
    } catch (error) {
      this.#dropFile();
      return this.form.notice.fail(error);
    }
    this.fileFields.hidden = false;
    this.pasted.hidden = true;
    this.form.notice.say(`${file.name}: ${this.#records.length} records.`);
    return this.#changed();
  }

  #dropFile() {
    this.#records = null;
    this.file.value = "";
    this.fileFields.hidden = true;
    this.pasted.hidden = false;
    this.form.notice.clear();
    this.#changed();
  }

  async #run(signal) {
    const [texts, rows, color] = [this.#texts, this.#rows, this.color.value];
    if (texts.length < 3) throw new Error("Enter at least three texts.");
    if (texts.length > MAX_TEXTS) {
      throw new Error(`These are ${texts.length} texts. Leave ${MAX_TEXTS} of them.`);
    }
    const bar = element("progress", {
      max: texts.length,
      value: 0,
      "aria-label": "Texts embedded",
    });
    const count = element("span", { class: "muted" });
    this.#result.replaceChildren(element("div", { class: "row" }, bar, count));
    this.cancel.hidden = false;
    try {
      const vectors = await embedAll(texts, this.select.fields, signal, (done) => {
        bar.value = done;
        count.textContent = `${done} of ${texts.length} texts`;
      });
      const { points, shares } = await principalComponents(vectors, signal);
      const values = color ? rows.map((row) => String(row[color] ?? "–")) : [];
      this.#plot(texts, vectors, points, shares, values);
    } catch (error) {
      const message = error.name === "AbortError" ? "Canceled." : "No projection.";
      this.#result.replaceChildren(element("p", { class: "empty" }, message));
      throw error;
    } finally {
      this.cancel.hidden = true;
    }
  }

  #plot(texts, vectors, points, shares, values) {
    const names = [...new Set(values)];
    const classes = texts.map((_, i) => `color-${values.length ? names.indexOf(values[i]) : 0}`);
    const detail = element(
      "div",
      { "aria-live": "polite", class: "detail" },
      element("p", { class: "muted" }, "Point at a text, or use the arrow keys."),
    );
    const plot = new ScatterPlot(points, texts, classes, (index) =>
      detail.replaceChildren(...neighbors(index, texts, vectors)),
    );
    const percent = shares.map((share) => `${(100 * share).toFixed(1)} %`);
    this.#result.replaceChildren(
      element(
        "section",
        {},
        element(
          "div",
          { class: "row spread" },
          element("h3", {}, `${texts.length} texts`),
          element("span", { class: "muted" }, `variance: ${percent[0]} across, ${percent[1]} up`),
        ),
        names.length ? legend(names) : null,
        plot.element,
        detail,
      ),
    );
  }
}

function legend(names) {
  return element(
    "ul",
    { class: "legend" },
    names.map((name, i) =>
      element("li", {}, element("span", { class: `swatch color-${i}` }), name),
    ),
  );
}

function neighbors(index, texts, vectors) {
  const scores = vectors.map((vector, i) => [cosine(vector, vectors[index]), i]);
  const nearest = scores.filter(([, i]) => i !== index).sort(([a], [b]) => b - a);
  return [
    element("p", { class: "chosen" }, shorten(texts[index], 400)),
    element(
      "table",
      { class: "plain fit" },
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th", { scope: "col", class: "number" }, "Cosine"),
          element("th", { scope: "col" }, "Nearest texts"),
        ),
      ),
      element(
        "tbody",
        {},
        nearest
          .slice(0, MAX_NEIGHBORS)
          .map(([value, i]) =>
            element(
              "tr",
              {},
              element("td", { class: "number" }, value.toFixed(3)),
              element("td", {}, shorten(texts[i], 120)),
            ),
          ),
      ),
    ),
  ];
}
