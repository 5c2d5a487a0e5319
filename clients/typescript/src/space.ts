/** Spaces: which vectors may be compared with which. */

import { ParseError, SpaceMismatchError } from "./errors.js";

const FLOATS = new Set(["fp32", "bf16", "fp16"]);

/** `<family>-<precision>`: the family is everything before the last `-`. */
function parts(space: string): [family: string, precision: string] {
  const dash = space.lastIndexOf("-");
  if (dash < 1 || dash === space.length - 1) {
    throw new ParseError(`"${space}" isn't a space; they are written <family>-<precision>.`);
  }
  return [space.slice(0, dash), space.slice(dash + 1)];
}

/** Whether a precision is a float's, perhaps stored as another: `bf16+float16`. */
function isFloat(precision: string): boolean {
  return FLOATS.has(precision.split("+", 1)[0] ?? "");
}

/**
 * Whether vectors of both spaces may lie in one index: one family, at equal or at float precisions.
 * @throws {ParseError} one of them isn't a space.
 */
export function comparable(one: string, other: string): boolean {
  const [[family, precision], [family2, precision2]] = [parts(one), parts(other)];
  if (family !== family2) return false;
  return precision === precision2 || (isFloat(precision) && isFloat(precision2));
}

/** Holds a client to the space of its first vectors. */
export class SpaceGuard {
  readonly #strict: boolean;
  #held: string | undefined;

  /**
   * @param expected the space to hold to; undefined: that of the first vectors
   * @param strict false: lets everything pass, and only remembers
   * @throws {TypeError} `expected` isn't a space.
   */
  constructor(expected: string | undefined, strict: boolean) {
    if (expected !== undefined && strict) {
      try {
        parts(expected);
      } catch (error) {
        throw new TypeError(`expectSpace: ${(error as Error).message}`);
      }
    }
    this.#held = expected;
    this.#strict = strict;
  }

  /** The space that is held to; undefined: none came yet, or the service doesn't say. */
  get held(): string | undefined {
    return this.#held;
  }

  /**
   * Lets vectors of a space pass; undefined, where the service or the browser doesn't say, always.
   * @throws {SpaceMismatchError} they can't be compared with those before.
   * @throws {ParseError} it isn't a space.
   */
  check(space: string | undefined): void {
    if (space === undefined) return;
    this.#held ??= space;
    if (this.#strict && !comparable(this.#held, space)) {
      throw new SpaceMismatchError(this.#held, space);
    }
  }
}
