/** Returns the lines of a text that aren't blank. */
export function lines(text) {
  return text
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter(Boolean);
}

/** Returns a text that fits into `length` characters. */
export function shorten(text, length) {
  const characters = Array.from(text.replace(/\s+/g, " "));
  return characters.length <= length
    ? characters.join("")
    : `${characters
        .slice(0, length - 1)
        .join("")
        .trimEnd()}…`;
}
