/**
 * Reads a JSONL file: one JSON object a line.
 *
 * Throws an Error that names the first line that is none.
 */
export function parseJsonl(content) {
  const records = [];
  content.split(/\r?\n/).forEach((line, i) => {
    if (!line.trim()) return;
    let record;
    try {
      record = JSON.parse(line);
    } catch {
      throw new Error(`Line ${i + 1} isn’t JSON. A JSONL file has one JSON object a line.`);
    }
    if (typeof record === "string") record = { text: record };
    if (record === null || typeof record !== "object" || Array.isArray(record)) {
      throw new Error(`Line ${i + 1} isn’t a JSON object.`);
    }
    records.push(record);
  });
  if (!records.length) throw new Error("The file is empty.");
  return records;
}

/** Returns the fields that hold texts, the longest texts first. */
export function textFields(records) {
  const sizes = new Map();
  for (const record of records) {
    for (const [name, value] of Object.entries(record)) {
      if (typeof value === "string") sizes.set(name, (sizes.get(name) ?? 0) + value.length);
    }
  }
  return [...sizes].sort(([, a], [, b]) => b - a).map(([name]) => name);
}

/** Returns the fields with few distinct values, by which points can be colored. */
export function categoryFields(records, maxValues) {
  const names = new Set(records.flatMap((record) => Object.keys(record)));
  return [...names].filter((name) => {
    const values = new Set(records.map((record) => record[name]));
    const isSimple = [...values].every((value) => value === null || typeof value !== "object");
    return isSimple && values.size > 1 && values.size <= maxValues;
  });
}
