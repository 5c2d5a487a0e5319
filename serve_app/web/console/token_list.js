import { element } from "./element.js";

const MAX_SHOWN = 800;

/**
 * Returns a text divided into its tokens, with what the model's token limit cuts off.
 *
 * `promptLength` is the length of the prompt, in characters, that precedes the text of the tokens.
 */
export function tokenList(text, tokens, maxTokens, promptLength) {
  const characters = Array.from(text); // offsets count code points, not UTF-16 units
  const special = tokens.filter((token) => token.special).length;
  const limit = maxTokens - special;
  const list = element("p", {
    class: "tokens",
    tabindex: 0,
    role: "group",
    "aria-label": "Tokens",
  });
  let end = promptLength;
  let content = 0;
  for (const token of tokens.slice(0, MAX_SHOWN)) {
    if (!token.special && content++ === limit) {
      list.append(element("strong", { class: "limit" }, `limit: ${maxTokens} tokens`));
    }
    const isPrompt = !token.special && token.start < promptLength;
    const from = (token.start ?? 0) - promptLength;
    if (!token.special && !isPrompt) {
      list.append(characters.slice(end - promptLength, from).join(""));
      end = Math.max(end, token.stop);
    }
    const surface =
      token.special || isPrompt
        ? token.text
        : characters.slice(from, token.stop - promptLength).join("");
    const kind = token.special ? "special" : isPrompt ? "prompt" : content > limit ? "cut" : "";
    list.append(
      element(
        "span",
        { class: `token ${kind}`, title: `id ${token.id} · ${token.text}` },
        surface || token.text,
      ),
    );
  }
  if (tokens.length > MAX_SHOWN) {
    list.append(element("em", {}, ` … and ${tokens.length - MAX_SHOWN} more`));
  }
  return list;
}
