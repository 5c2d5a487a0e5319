/**
 * Puts the modules of a program into one, as text, before they are compiled.
 *
 * A browser without a bundler then loads one file, and types show what is exported and nothing
 * else. It can be this simple because it only takes what it finds here: imports and exports by
 * name, and no two modules that give one name to unlike things, which the compiler would refuse.
 */

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import ts from "typescript";

/** A source file, in parts. */
function read(path) {
  const text = readFileSync(path, "utf8");
  const file = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const found = { imports: [], statements: [] };
  for (const statement of file.statements) {
    const from = statement.moduleSpecifier?.text;
    if (from === undefined) {
      found.statements.push(statement);
      continue;
    }
    const names = statement.importClause?.namedBindings ?? statement.exportClause;
    const elements = (names?.elements ?? []).map((element) => element.getText());
    const isOurs = from.startsWith(".");
    const source = isOurs ? join(dirname(path), from).replace(/js$/, "ts") : from;
    found.imports.push({ from: source, elements });
  }
  return found;
}

/** What modules import of others, by name, without `type`. */
export function imported(path) {
  return read(path).imports.map(({ from, elements }) => ({
    from,
    names: elements.map((element) => element.replace(/^type /, "")),
  }));
}

/** Modules that `entry` needs, each after those that it needs itself. */
export function modules(entry, found = new Set()) {
  for (const { from } of imported(entry)) if (from.endsWith(".ts")) modules(from, found);
  found.add(entry);
  return [...found];
}

/**
 * One module out of several.
 * @param exported names that it exports
 * @param outside where names come from that none of these modules has
 */
export function flatten(paths, exported, outside) {
  const imports = new Map();
  const text = [];
  for (const path of paths) {
    const { imports: wanted, statements } = read(path);
    for (const { from, elements } of wanted) {
      if (paths.includes(from)) continue;
      const source = from.endsWith(".ts") ? outside : from;
      imports.set(source, new Set([...(imports.get(source) ?? []), ...elements]));
    }
    for (const statement of statements) {
      const name = statement.name?.text;
      const keeps = name === undefined || exported.has(name);
      const body = statement.getText();
      const start = statement.getStart();
      // With its own comment, and without that of its file, which an empty line parts from it.
      const comments = statement.getFullText().slice(0, start - statement.getFullStart());
      text.push(comments.split("\n\n").at(-1) + (keeps ? body : body.replace(/^export /, "")));
    }
  }
  const head = [...imports].map(([from, names]) => {
    // Once as a value is enough.
    const isTwice = (name) => name.startsWith("type ") && names.has(name.slice(5));
    const kept = [...names].filter((name) => !isTwice(name));
    return `import { ${kept.join(", ")} } from "${from}";`;
  });
  return [...head, ...text, ""].join("\n");
}
