import { CurlPanel } from "./curl_panel.js";
import { element } from "./element.js";
import { readEvents } from "./event_stream.js";
import { facts } from "./facts.js";
import { LineChart } from "./line_chart.js";
import { Notice } from "./notice.js";
import { amount, bytes, duration, milliseconds, percent, usd } from "./quantity.js";
import { ScalingLog } from "./scaling_log.js";
import { StatusTable } from "./status_table.js";

const PATH = "live?interval_s=1";
const LENGTH = 180; // snapshots that charts show

/** The state of the service as it changes. */
export class LiveView {
  title = "Live";
  #snapshots = [];
  #abort = null;
  #isPaused = false;
  #notice = new Notice();
  #summary = element("div");
  #charts = charts();
  #log = new ScalingLog();
  #tables = tables();
  #state = element("span", { class: "badge", role: "status" }, "connecting");
  #pause = element("button", { type: "button", onclick: () => this.#togglePause() }, "Pause");

  constructor() {
    const curl = new CurlPanel();
    curl.show(PATH);
    this.element = element(
      "div",
      { class: "live" },
      element("div", { class: "row" }, element("h2", {}, this.title), this.#state, this.#pause),
      this.#notice.element,
      this.#summary,
      element(
        "div",
        { class: "grid" },
        this.#charts.map((chart) => chart.element),
      ),
      this.#log.element,
      this.#tables.map((table) => table.element),
      curl.element,
    );
    // A page that nobody sees holds none of the service's streams.
    document.addEventListener("visibilitychange", () => {
      if (!this.element.isConnected) return;
      if (document.hidden) this.hide();
      else this.show();
    });
  }

  show() {
    this.hide();
    this.#abort = new AbortController();
    this.#state.textContent = "connecting";
    const { signal } = this.#abort;
    readEvents(
      PATH,
      signal,
      (snapshot) => this.#add(snapshot),
      (error) => {
        if (signal.aborted) return;
        this.#setState(error ? "disconnected" : "connected");
        if (error) this.#notice.fail(error);
        else this.#notice.clear();
      },
    );
  }

  hide() {
    this.#abort?.abort();
    this.#abort = null;
  }

  #togglePause() {
    this.#isPaused = !this.#isPaused;
    this.#pause.textContent = this.#isPaused ? "Continue" : "Pause";
    if (!this.#isPaused && this.#snapshots.length) this.#draw();
  }

  #setState(state) {
    this.#state.textContent = state;
    this.#state.className = `badge ${state === "connected" ? "hit" : "miss"}`;
  }

  #add(snapshot) {
    this.#snapshots.push(snapshot);
    if (this.#snapshots.length > LENGTH) this.#snapshots.shift();
    this.#log.add(snapshot);
    if (!this.#isPaused) this.#draw();
  }

  #draw() {
    const snapshot = this.#snapshots.at(-1);
    this.#summary.replaceChildren(summary(snapshot));
    for (const chart of this.#charts) chart.draw(this.#snapshots);
    for (const table of this.#tables) table.show(snapshot);
    this.#log.draw();
  }
}

function summary({ version, topology, uptime_s: uptime, requests, cache, cost, ...rates }) {
  return facts([
    ["Requests", `${amount(requests.per_s)} /s · ${amount(requests.in_flight)} in flight`],
    ["Errors", `${amount(requests.errors_per_s)} /s`],
    ["Texts", `${amount(rates.texts_per_s)} /s`],
    ["Tokens", `${amount(rates.tokens_per_s)} /s`],
    ["Cache", cache.reason ? `${cache.state}: ${cache.reason}` : cache.state],
    ["L1", `${amount(cache.l1_entries)} vectors · ${bytes(cache.l1_bytes)}`],
    ["Cost", `${usd(cost.usd_total)} in all`],
    ["Service", `${version} · ${topology} · up ${duration(uptime)}`],
  ]);
}

function charts() {
  const chart = (title, format, series, options) =>
    new LineChart(title, series, format, { length: LENGTH, ...options });
  const lane = (name, field) => (snapshot) => snapshot.lanes[name][field];
  const sum =
    (field) =>
    ({ deployments }) => {
      const scaling = deployments.filter(({ target }) => target !== null);
      return scaling.length ? scaling.reduce((total, row) => total + row[field], 0) : null;
    };
  const latency = (name) => [
    { label: "p50", read: lane(name, "p50_ms") },
    { label: "p99", read: lane(name, "p99_ms") },
  ];
  return [
    chart("Requests", (value) => `${amount(value)} /s`, [
      { label: "all", read: ({ requests }) => requests.per_s },
      { label: "errors", read: ({ requests }) => requests.errors_per_s },
    ]),
    chart("Latency, interactive", milliseconds, latency("interactive")),
    chart("Latency, bulk", milliseconds, latency("bulk")),
    chart("Queued tokens", amount, [
      { label: "interactive", read: lane("interactive", "queued_tokens") },
      { label: "bulk", read: lane("bulk", "queued_tokens") },
    ]),
    chart(
      "Batches",
      percent,
      [
        { label: "fill", read: ({ batches }) => batches.fill },
        { label: "padding", read: ({ batches }) => batches.padding_share },
      ],
      { max: 1 },
    ),
    chart("Replicas of scaling deployments", amount, [
      { label: "running", read: sum("replicas"), isStep: true },
      { label: "target", read: sum("target"), isStep: true, isDashed: true },
    ]),
    chart(
      "Cache hits",
      percent,
      [
        { label: "all", read: ({ cache }) => cache.hit_ratio },
        { label: "L1", read: ({ cache }) => cache.l1_hit_ratio },
        { label: "L2", read: ({ cache }) => cache.l2_hit_ratio },
      ],
      { max: 1 },
    ),
    chart("Cost", (value) => `${usd(value)} /h`, [
      { label: "spent", read: ({ cost }) => cost.usd_per_hour },
      { label: "saved by the cache", read: ({ cost }) => cost.saved_usd_per_hour },
    ]),
  ];
}

function tables() {
  const number = (name, read) => ({ name, read, isNumber: true });
  const text = (name, read) => ({ name, read: (row) => read(row) ?? "–" });
  return [
    new StatusTable("Models", ({ models }) => models, "No models.", [
      text("Model", (row) => row.name),
      text("Task", (row) => row.task),
      text("State", (row) => row.state),
      text("Engine", (row) => [row.engine, row.precision].filter(Boolean).join(" · ") || null),
      number("Requests/s", (row) => amount(row.requests_per_s)),
      number("Queued tokens", (row) => amount(row.queued_tokens)),
    ]),
    new StatusTable(
      "Deployments",
      ({ deployments }) => deployments,
      "A standalone service has none.",
      [
        text("Deployment", (row) => row.name),
        number("Replicas", (row) => amount(row.replicas)),
        number("Target", (row) => amount(row.target)),
        number("Busy", (row) => percent(row.busy_share)),
        text("Decided by", (row) => row.decided_by),
        text("Reason", (row) => row.reason),
      ],
    ),
    new StatusTable("Replicas", ({ replicas }) => replicas, "None is known.", [
      text("Deployment", (row) => row.deployment),
      text("Replica", (row) => row.id),
      text("Node", (row) => row.node),
      number("Process", (row) => row.pid ?? "–"),
      text("State", (row) => row.state?.replaceAll("_", " ")),
      number("Busy", (row) => percent(row.busy_share)),
      number("Memory", (row) => bytes(row.memory_bytes)),
      number("Queued tokens", (row) => amount(row.queued_tokens)),
    ]),
    new StatusTable("API keys", ({ keys }) => keys, "The service needs no API key.", [
      text("Key", (row) => row.name),
      number("Tokens/s", (row) => amount(row.tokens_per_s)),
      number("Limit", (row) => (row.limit === null ? "none" : amount(row.limit))),
      number("Left", (row) => amount(row.remaining)),
    ]),
  ];
}
