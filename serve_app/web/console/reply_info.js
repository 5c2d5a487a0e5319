/** What the headers of a reply say: cache, truncation, cost, space and times. */
export class ReplyInfo {
  constructor(headers) {
    const cache = headers.get("x-cache") ?? "";
    this.hits = Number(/hits=(\d+)/.exec(cache)?.[1] ?? 0);
    this.tiers = /tier=([\w,]+)/.exec(cache)?.[1]?.split(",") ?? [];
    this.costUsd = headers.get("x-cost-usd");
    this.space = headers.get("x-embedding-space");
    this.answeredBy = headers.get("x-embedding-model"); // only if it is another one
    this.isTruncated = headers.has("x-truncated-inputs");
    this.stages = parseServerTiming(headers.get("server-timing") ?? "");
  }

  /** Where the vector of a single text came from. */
  get source() {
    return this.hits ? this.tiers.join(", ") || "cache" : "computed";
  }
}

/** Returns the stages of `Server-Timing` with their durations in milliseconds. */
function parseServerTiming(header) {
  const stages = {};
  for (const [, name, ms] of header.matchAll(/([\w-]+);dur=([\d.]+)/g)) stages[name] = Number(ms);
  return stages;
}
