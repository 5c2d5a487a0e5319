import { apiKey } from "./api_key.js";
import { element } from "./element.js";
import { describe, models } from "./model_list.js";

let count = 0;

/** Selects one of the models that support a task and, if it has any, one of its input types. */
export class ModelSelect {
  #task;
  #onChange;
  #onError;
  #ready = null;

  constructor(task, onChange, onError) {
    const id = `model-${++count}`;
    this.#task = task;
    this.#onChange = onChange;
    this.#onError = onError;
    this.info = null;
    this.model = element("select", { id, onchange: () => this.#describe() });
    this.type = element("select", { id: `${id}-type`, onchange: onChange });
    this.typeField = element(
      "div",
      { class: "field", hidden: true },
      element("label", { for: `${id}-type` }, "Input type"),
      this.type,
    );
    this.element = element(
      "div",
      { class: "row fields" },
      element("div", { class: "field grow" }, element("label", { for: id }, "Model"), this.model),
      this.typeField,
    );
    apiKey.addEventListener("change", () => {
      this.#ready = null;
      this.load();
    });
  }

  /** The fields of a request that select the model and the input type. */
  get fields() {
    const fields = this.model.value ? { model: this.model.value } : {};
    return this.type.value ? { ...fields, input_type: this.type.value } : fields;
  }

  get isEmpty() {
    return this.model.options.length === 0;
  }

  /** Fills the list, once; resolves to whether a model supports the task. */
  load() {
    this.#ready ??= this.#fill().catch((error) => {
      this.#ready = null;
      this.#onError(error);
      return null;
    });
    return this.#ready;
  }

  async #fill() {
    const suitable = (await models()).filter((model) => model.tasks.includes(this.#task));
    this.model.replaceChildren(...suitable.map(({ name }) => element("option", {}, name)));
    if (suitable.length) await this.#describe();
    return suitable.length > 0;
  }

  async #describe() {
    try {
      this.info = await describe(this.model.value);
    } catch (error) {
      this.#onError(error);
      return;
    }
    const types = this.info.input_types;
    this.typeField.hidden = types.length === 0 || this.#task !== "embed";
    this.type.replaceChildren(
      element("option", { value: "" }, "none"),
      ...types.map((type) => element("option", {}, type)),
    );
    this.#onChange();
  }
}
