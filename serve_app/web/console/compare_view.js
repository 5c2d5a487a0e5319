import { CurlPanel } from "./curl_panel.js";
import { element } from "./element.js";
import { heatMap } from "./heat_map.js";
import { lines, shorten } from "./lines.js";
import { ModelSelect } from "./model_select.js";
import { call } from "./service.js";
import { textColumns } from "./text_columns.js";
import { TextForm, textArea } from "./text_form.js";
import { cosine } from "./vector.js";

const MAX_TEXTS = 20;
const MAX_PAIRS = 8;
const EXAMPLE = `How do I export my data?
Download a copy of everything in your account
The invoice is due at the end of the month
When do I have to pay?
A recipe for sourdough bread
Flour, water, salt and patience`;

/** Embeds up to 20 texts and shows how similar each two of them are. */
export class CompareView {
  title = "Compare texts";
  #result = element("div", { class: "result" });
  #curl = new CurlPanel();

  constructor() {
    const changed = () => this.#curl.show("v1/embeddings", { body: this.#body });
    this.select = new ModelSelect("embed", changed, (error) => this.form.notice.fail(error));
    const label = `Texts, one a line, up to ${MAX_TEXTS}`;
    const [area, field] = textArea("compare-texts", label, EXAMPLE, 10, changed);
    this.text = area;
    this.form = new TextForm([field, this.select.element], "Compare", (signal) =>
      this.#run(signal),
    );
    const hint = "A matrix of cosine similarities and the nearest pairs appear here.";
    this.element = textColumns(this.title, this.form, this.#result, this.#curl, hint);
    changed();
  }

  get #body() {
    return { ...this.select.fields, input: lines(this.text.value) };
  }

  async show() {
    if ((await this.select.load()) === false) {
      this.form.notice.say("No served model embeds texts.");
    }
  }

  async #run(signal) {
    const body = this.#body;
    const texts = body.input;
    if (texts.length < 2) throw new Error("Enter at least two texts, one a line.");
    if (texts.length > MAX_TEXTS) {
      throw new Error(`These are ${texts.length} texts. Leave ${MAX_TEXTS} of them.`);
    }
    const reply = await call("v1/embeddings", { body, signal });
    const vectors = reply.body.data.map((item) => item.embedding);
    const matrix = vectors.map((a) => vectors.map((b) => cosine(a, b)));
    this.#result.replaceChildren(
      element("section", {}, element("h3", {}, "Cosine similarity"), heatMap(texts, matrix)),
      element("section", {}, element("h3", {}, "Nearest pairs"), nearestPairs(texts, matrix)),
    );
  }
}

function nearestPairs(texts, matrix) {
  const pairs = texts.flatMap((_, i) => texts.slice(0, i).map((_, j) => [matrix[i][j], j, i]));
  pairs.sort(([a], [b]) => b - a);
  const row = ([value, i, j]) =>
    element(
      "tr",
      {},
      element("td", { class: "number" }, value.toFixed(3)),
      element(
        "td",
        {},
        element("p", {}, shorten(texts[i], 90)),
        element("p", {}, shorten(texts[j], 90)),
      ),
    );
  return element(
    "table",
    { class: "plain pairs" },
    element(
      "thead",
      { class: "unseen" },
      element(
        "tr",
        {},
        element("th", { scope: "col" }, "Cosine"),
        element("th", { scope: "col" }, "Texts"),
      ),
    ),
    element("tbody", {}, pairs.slice(0, MAX_PAIRS).map(row)),
  );
}
