const NONE = "–";

/** Returns a number with about three digits, such as `0.42`, `17.3`, `1.2 k`, `3.4 M`. */
export function amount(value) {
  if (!isKnown(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1e9) return `${digits(value / 1e9)} G`;
  if (size >= 1e6) return `${digits(value / 1e6)} M`;
  if (size >= 1e4) return `${digits(value / 1e3)} k`;
  return digits(value);
}

function digits(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 100) return value.toFixed(0);
  return value.toFixed(size >= 10 ? 1 : 2);
}

export function percent(share) {
  return isKnown(share) ? `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %` : NONE;
}

export function milliseconds(value) {
  return isKnown(value) ? `${amount(value)} ms` : NONE;
}

export function usd(value) {
  if (!isKnown(value)) return NONE;
  const dollars = Number(value);
  return `$${dollars >= 1 || dollars === 0 ? dollars.toFixed(2) : dollars.toPrecision(3)}`;
}

export function bytes(value) {
  if (!isKnown(value)) return NONE;
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, value)) / 10));
  return `${digits(Math.round((value / 2 ** (10 * power)) * 10) / 10)} ${units[power]}`;
}

export function duration(seconds) {
  if (!isKnown(seconds)) return NONE;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800
    ? `${(seconds / 3600).toFixed(1)} h`
    : `${(seconds / 86400).toFixed(1)} d`;
}

function isKnown(value) {
  return value !== null && value !== undefined && !Number.isNaN(Number(value));
}
