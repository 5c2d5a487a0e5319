import { dot, norm } from "./vector.js";

const MAX_ITERATIONS = 300;
const TOLERANCE = 1e-10;
/** The browser draws and handles input between this many iterations. */
const PAUSE_EVERY = 20;

/**
 * Projects vectors onto their two principal components, by power iteration.
 *
 * Takes n vectors of one length. Returns `{ points, shares }`: n pairs of coordinates, and the
 * share of the variance that each component explains.
 */
export async function principalComponents(vectors, signal) {
  const rows = center(vectors);
  const variance = rows.reduce((sum, row) => sum + dot(row, row), 0);
  const points = rows.map(() => [0, 0]);
  const shares = [];
  for (const axis of [0, 1]) {
    const component = await firstComponent(rows, signal);
    let explained = 0;
    rows.forEach((row, i) => {
      const value = dot(row, component);
      points[i][axis] = value;
      explained += value * value;
      addScaled(row, component, -value); // the next component is that of the rest
    });
    shares.push(variance ? explained / variance : 0);
  }
  return { points, shares };
}

function center(vectors) {
  const mean = new Float64Array(vectors[0].length);
  for (const vector of vectors) addScaled(mean, vector, 1 / vectors.length);
  return vectors.map((vector) => Float64Array.from(vector, (value, i) => value - mean[i]));
}

/** Returns the unit vector of the largest variance; a zero vector if the rows have none. */
async function firstComponent(rows, signal) {
  // The longest row is rarely orthogonal to the component, and makes the result repeatable.
  let component = unit(rows.reduce((a, b) => (norm(b) > norm(a) ? b : a)));
  for (let i = 1; i <= MAX_ITERATIONS; i++) {
    const next = new Float64Array(component.length);
    for (const row of rows) addScaled(next, row, dot(row, component));
    const direction = unit(next);
    const change = 1 - Math.abs(dot(direction, component));
    component = direction;
    if (change < TOLERANCE) break;
    if (i % PAUSE_EVERY === 0) {
      await new Promise((resolve) => setTimeout(resolve));
      signal?.throwIfAborted();
    }
  }
  return component;
}

function unit(vector) {
  const length = norm(vector);
  return length > 1e-12 ? vector.map((value) => value / length) : new Float64Array(vector.length);
}

function addScaled(target, vector, factor) {
  for (let i = 0; i < target.length; i++) target[i] += factor * vector[i];
}
