/**
 * How long to wait before the next attempt to reach an edge [ms]. It doubles with each failure up to a bound. Up to half of it
 * is chance, so that many devices do not come back at once.
 *
 * @param {number} failures attempts that have failed, one after the other
 * @param {{firstDelayMs: number, longestDelayMs: number}} bounds the wait after the first failure, and the longest
 * @param {number} [chance] 0 … 1; drawn if it is left out
 * @returns {number} between half of the doubled wait and all of it
 */
export function pauseMs(failures, { firstDelayMs, longestDelayMs }, chance = Math.random()) {
  return Math.min(longestDelayMs, firstDelayMs * 2 ** Math.min(failures - 1, 30)) * (0.5 + 0.5 * chance);
}
