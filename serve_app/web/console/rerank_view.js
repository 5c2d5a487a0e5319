import { CurlPanel } from "./curl_panel.js";
import { element } from "./element.js";
import { lines } from "./lines.js";
import { ModelSelect } from "./model_select.js";
import { ReplyInfo } from "./reply_info.js";
import { call } from "./service.js";
import { TextForm, textArea } from "./text_form.js";

const QUERY = "How do I get my data out?";
const DOCUMENTS = `Export your data as CSV in the settings.
Bread needs flour, water and salt.
We keep backups for thirty days.
To delete your account, write to support.`;

/** Sorts documents by their relevance to a query. */
export class RerankView {
  title = "Rerank documents";
  #result = element("div", { class: "result" });
  #curl = new CurlPanel();

  constructor() {
    const changed = () => this.#curl.show("v1/rerank", { body: this.#body });
    this.select = new ModelSelect("rerank", changed, (error) => this.form.notice.fail(error));
    const [query, queryField] = textArea("rerank-query", "Query", QUERY, 2, changed);
    const [documents, documentsField] = textArea(
      "rerank-documents",
      "Documents, one a line",
      DOCUMENTS,
      8,
      changed,
    );
    this.query = query;
    this.documents = documents;
    this.form = new TextForm(
      [queryField, documentsField, this.select.element],
      "Rerank",
      (signal) => this.#run(signal),
    );
    this.element = element(
      "div",
      { class: "columns" },
      element("div", {}, element("h2", {}, this.title), this.form.element),
      this.#result,
      this.#curl.element,
    );
    this.#result.append(
      element("p", { class: "empty" }, "The documents appear here, the best one first."),
    );
    changed();
  }

  get #body() {
    return {
      ...this.select.fields,
      query: this.query.value,
      documents: lines(this.documents.value),
    };
  }

  async show() {
    const isAble = await this.select.load();
    this.form.button.disabled = isAble === false;
    if (isAble === false) {
      this.form.notice.say(
        "No served model reranks. Add a cross-encoder to `models` in the configuration.",
      );
    }
  }

  async #run(signal) {
    const body = this.#body;
    if (!body.documents.length) throw new Error("Enter at least one document, one a line.");
    const reply = await call("v1/rerank", { body, signal });
    const info = new ReplyInfo(reply.headers);
    const total = info.stages.total;
    const rows = reply.body.results.map(({ index, relevance_score: score }, rank) =>
      element(
        "tr",
        {},
        element("td", { class: "number" }, String(rank + 1)),
        element(
          "td",
          {},
          body.documents[index],
          element("span", { class: "meter", vars: { "--size": Math.max(0, Math.min(1, score)) } }),
        ),
        element("td", { class: "number" }, score.toFixed(4)),
        element("td", { class: "number" }, String(index + 1)),
      ),
    );
    const names = ["Rank", "Document", "Score", "Line"];
    this.#result.replaceChildren(
      element(
        "section",
        {},
        element("h3", {}, "By relevance"),
        element(
          "table",
          { class: "plain fit" },
          element(
            "thead",
            {},
            element(
              "tr",
              {},
              names.map((name) =>
                element("th", { scope: "col", class: name === "Document" ? "" : "number" }, name),
              ),
            ),
          ),
          element("tbody", {}, rows),
        ),
        element(
          "p",
          { class: "muted" },
          [
            total === undefined ? "" : `${total.toFixed(2)} ms in the service`,
            info.costUsd ? ` · $${info.costUsd}` : "",
          ].join(""),
        ),
      ),
    );
  }
}
