/**
 * Embedding spaces: which vectors may be compared with each other.
 *
 * A space is written `<family>-<precision>`. The family is a hash of everything that determines a
 * vector except the precision.
 */

import { ParseError, SpaceMismatchError } from "./errors.js";

const FLOAT_PRECISIONS = new Set(["fp32", "bf16", "fp16"]);

function parseSpace(space: string): [family: string, precision: string] {
  const dash = space.lastIndexOf("-");
  if (dash < 1 || dash === space.length - 1) {
    throw new ParseError(`"${space}" isn't a space. The form is <family>-<precision>.`);
  }
  return [space.slice(0, dash), space.slice(dash + 1)];
}

/** Returns whether a precision is floating-point, stored as floats too, such as `bf16+float16`. */
function isFloat(precision: string): boolean {
  return FLOAT_PRECISIONS.has(precision.replace(/\+float16$/, ""));
}

/**
 * Returns whether vectors of both spaces may share an index: the family is the same, and either the
 * precision is the same or both precisions are floating-point.
 * @throws {ParseError} one of them isn't a space.
 */
export function isComparable(a: string, b: string): boolean {
  const [[familyA, precisionA], [familyB, precisionB]] = [parseSpace(a), parseSpace(b)];
  if (familyA !== familyB) return false;
  return precisionA === precisionB || (isFloat(precisionA) && isFloat(precisionB));
}

/**
 * Checks that a client's vectors are comparable with the first ones of the same model. Calls that
 * name no model use the service's default, which counts as one model.
 */
export class SpaceGuard {
  readonly #strict: boolean;
  readonly #required: string | undefined;
  readonly #spaces = new Map<string | undefined, string>();

  /**
   * @param expected the space to require of all models; undefined: that of each model's first vectors
   * @param strict false: accepts all spaces and only records the first of each model
   * @throws {TypeError} `expected` isn't a space.
   */
  constructor(expected: string | undefined, strict: boolean) {
    if (expected !== undefined && strict) {
      try {
        parseSpace(expected);
      } catch (error) {
        throw new TypeError(`\`expectedSpace\`: ${(error as Error).message}`);
      }
    }
    this.#required = expected;
    this.#strict = strict;
  }

  /** The space that requests name, so that the service computes no vectors of another one. */
  get pinned(): string | undefined {
    return this.#strict ? this.#required : undefined;
  }

  /**
   * Returns the space to require of a model's vectors; undefined: there are none yet, or the service
   * doesn't report spaces.
   */
  expected(model: string | undefined): string | undefined {
    return this.#required ?? this.#spaces.get(model);
  }

  /**
   * Checks the space of new vectors; undefined, an unknown space, always passes.
   * @param model the model's name in the call; undefined: the service's default model
   * @throws {SpaceMismatchError} it can't be compared with the expected space.
   * @throws {ParseError} it isn't a space.
   */
  check(space: string | undefined, model?: string | undefined): void {
    if (space === undefined) return;
    const expected = this.expected(model) ?? space;
    this.#spaces.set(model, expected);
    if (this.#strict && !isComparable(expected, space)) {
      throw new SpaceMismatchError(expected, space);
    }
  }
}
