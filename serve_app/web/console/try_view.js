import { CurlPanel } from "./curl_panel.js";
import { element } from "./element.js";
import { facts } from "./facts.js";
import { shorten } from "./lines.js";
import { ModelSelect } from "./model_select.js";
import { ReplyInfo } from "./reply_info.js";
import { call } from "./service.js";
import { textColumns } from "./text_columns.js";
import { TextForm, textArea } from "./text_form.js";
import { tokenList } from "./token_list.js";
import { norm } from "./vector.js";
import { vectorStrip } from "./vector_strip.js";
import { waterfall } from "./waterfall.js";

const EXAMPLE =
  "Embeddings map texts to vectors, so that similar meanings are close to each other.";
const MAX_RUNS = 8;

/** Embeds one text and shows all that is known of the reply. */
export class TryView {
  title = "Try a text";
  #result = element("div", { class: "result" });
  #runs = [];
  #curl = new CurlPanel();

  constructor() {
    const changed = () => this.#curl.show("v1/embeddings", { body: this.#body });
    this.select = new ModelSelect("embed", changed, (error) => this.form.notice.fail(error));
    const [area, field] = textArea("try-text", "Text", EXAMPLE, 6, changed);
    this.text = area;
    this.cache = element("input", { type: "checkbox", checked: true, onchange: changed });
    this.form = new TextForm(
      [field, this.select.element],
      "Embed",
      (signal) => this.#run(signal),
      element("label", { class: "check" }, this.cache, "use the cache"),
    );
    const hint = "The vector, its tokens and where the time went appear here.";
    this.element = textColumns(this.title, this.form, this.#result, this.#curl, hint);
    changed();
  }

  get #body() {
    const body = { ...this.select.fields, input: this.text.value };
    return this.cache.checked ? body : { ...body, use_cache: false };
  }

  async show() {
    if ((await this.select.load()) === false) {
      this.form.notice.say("No served model embeds texts.");
    }
  }

  async #run(signal) {
    const body = this.#body;
    const reply = await call("v1/embeddings", { body, signal });
    const info = new ReplyInfo(reply.headers);
    const run = { body, reply, info, vector: reply.body.data[0].embedding };
    this.#runs.unshift({ text: body.input, source: info.source, ms: info.stages.total });
    this.#runs.length = Math.min(this.#runs.length, MAX_RUNS);
    const summary = element("div", {}, this.#facts(run, null));
    const tokens = element("div", {}, element("p", { class: "muted" }, "…"));
    this.#result.replaceChildren(
      summary,
      section("Vector", vectorStrip(run.vector)),
      section("Tokens", tokens),
      section("Time", waterfall(info.stages, reply.elapsedMs)),
      section("Last requests", this.#runTable()),
    );
    try {
      const [row, promptLength] = await this.#tokens(body, signal);
      summary.replaceChildren(this.#facts(run, row.length));
      tokens.replaceChildren(tokenList(body.input, row, this.#model.maxTokens, promptLength));
    } catch (error) {
      if (error.name === "AbortError") throw error;
      tokens.firstChild.textContent = error.message;
    }
  }

  /** Returns the tokens of the text with its prompt, and the length of the prompt. */
  async #tokens({ input, model, input_type }, signal) {
    const tokenize = async (fields) => {
      const body = { inputs: input, ...(model && { model }), ...fields };
      return (await call("tokenize", { body, signal })).body[0];
    };
    if (!input_type) return [await tokenize({}), 0];
    const [tokens, plain] = await Promise.all([
      tokenize({ prompt_name: input_type }),
      tokenize({}),
    ]);
    const length = (row) => Math.max(0, ...row.map((token) => token.stop ?? 0));
    return [tokens, length(tokens) - length(plain)];
  }

  #facts({ reply, info, vector }, tokenCount) {
    const { maxTokens, engine } = this.#model;
    const count = tokenCount ?? reply.body.usage.prompt_tokens;
    const dropped = tokenCount === null ? "" : `, ${tokenCount - maxTokens} tokens dropped`;
    const hit = element(
      "span",
      { class: `badge ${info.hits ? "hit" : "miss"}`, id: "cache-tier" },
      info.hits ? `hit · ${info.source}` : "miss · computed",
    );
    return facts([
      ["Dimensions", String(vector.length)],
      ["Norm", norm(vector).toFixed(4)],
      ["Tokens", maxTokens ? `${count} of ${maxTokens}` : String(count)],
      ["Truncated", info.isTruncated ? `yes${dropped}` : "no"],
      ["Cache", hit],
      ["Cost", info.costUsd ? `$${info.costUsd}` : "no price"],
      ["Engine", engine],
      ["Space", element("code", {}, info.space ?? "–")],
      ...(info.answeredBy ? [["Answered by", info.answeredBy]] : []),
    ]);
  }

  get #model() {
    const info = this.select.info;
    const engine = [info?.engine, info?.precision, info?.device].filter(Boolean).join(" · ");
    return { maxTokens: info?.max_tokens, engine: engine || "–" };
  }

  #runTable() {
    const rows = this.#runs.map(({ text, source, ms }) =>
      element(
        "tr",
        {},
        element("td", {}, shorten(text, 60)),
        element("td", { class: "word" }, source),
        element("td", { class: "number" }, ms === undefined ? "–" : ms.toFixed(2)),
      ),
    );
    return element(
      "table",
      { class: "plain" },
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          ...["Text", "From", "ms in the service"].map((name, i) =>
            element("th", { scope: "col", class: i === 2 ? "number" : "" }, name),
          ),
        ),
      ),
      element("tbody", {}, rows),
    );
  }
}

function section(title, content) {
  return element("section", {}, element("h3", {}, title), content);
}
