/**
 * One draw from a row of a drafter's logits: bias and withheld ids, penalties, temperature, min-p, top-k, top-p, then
 * Gumbel-max with the shared noise. A device's draw decides only how often its drafts are accepted, never which text comes out.
 *
 * The Gumbel-max draw is the token with the least E_i·e^(m − l_i), where E_i = −ln u_i and m = max l. As E_i ≥ 1 − u_i,
 * (1 − u_i)·e^(m − l_i) is a lower bound that needs no logarithm. Only tokens whose bound is below the best exact value
 * so far are computed exactly: a handful of 49,152.
 */
import { InputError } from "./errors.js";
import { gumbel, highWord, keys } from "./noise.js";

const SLACK = 1 + 1e-4; // covers the rounding of single-precision logits
const FARTHEST = 41; // u ≤ 1 − 2^−53, so a token so many nats below the largest cannot win

/**
 * @typedef {object} Params how the next token is drawn
 * @property {number} temperature 0 is greedy decoding, else 1e-6 … 10
 * @property {number} topK keep the k largest logits; 0 keeps all
 * @property {number} topP keep the most probable tokens whose probability reaches topP; 1 keeps all
 * @property {number|bigint} seed of the noise; without effect at temperature 0
 * @property {[number, number][]} [logitBias] (id, what is added to its logit)
 * @property {number} [minP] keep tokens with at least this share of the most probable token's probability; default 0
 * @property {number} [presencePenalty] subtracted from the logit of each token that was generated before; default 0
 * @property {number} [frequencyPenalty] subtracted as often as the token was generated before; default 0
 * @property {number} [repetitionPenalty] logits of all tokens of the text are divided by it where they are above 0, and
 *   multiplied where they are below; default 1
 * @property {number} [promptTokens] length of the prompt: what stands behind it was generated
 * @property {number[]} [withheld] ids that are impossible at positions below `withheldUntil`
 * @property {number} [withheldUntil]
 */

/**
 * @param {Float32Array} row [V] logits of the drafter; left as it is
 * @param {number[]} text ids of the text before the token, prompt and drafted tokens included
 * @param {Params} params
 * @returns {number} a token id: the argmax at temperature 0, else the Gumbel-max draw with the noise of (seed, length of
 *   the text)
 */
export function drawRow(row, text, params) {
  const shaped = penalisedRow(shapedRow(row, text.length, params), text, params);
  if (params.temperature === 0) return argmax(shaped);
  return gumbelArgmax(truncatedRow(shaped, params), params.seed, text.length);
}

/** @returns {boolean} whether the distribution depends on which tokens stand before the position */
export function remembers(params) {
  return Boolean(params.presencePenalty || params.frequencyPenalty || (params.repetitionPenalty ?? 1) !== 1);
}

/** @returns {number} index of the first largest logit */
export function argmax(row) {
  let best = 0;
  for (let token = 1; token < row.length; token++) if (row[token] > row[best]) best = token;
  return best;
}

/**
 * @param {Float32Array} row logits, −Infinity outside the support
 * @param {number|bigint} seed
 * @param {number} position
 * @returns {number} argmax of logit + Gumbel variate; the first of equals
 */
export function gumbelArgmax(row, seed, position) {
  const four = keys(seed, position);
  const top = row[argmax(row)];
  if (!Number.isFinite(top)) throw new InputError("a row of logits has no token to draw: all are −inf or not numbers");
  let best = -1;
  let score = -Infinity;
  let limit = Infinity;
  for (let token = 0; token < row.length; token++) {
    const gap = top - row[token];
    if (!(gap < FARTHEST)) continue;
    const bound = ((0xffffffff - highWord(four, token)) / 2 ** 32) * Math.exp(gap);
    if (bound > limit) continue;
    const own = row[token] + gumbel(four, token);
    if (own > score) {
      [best, score] = [token, own];
      limit = SLACK * Math.exp(top - own);
    }
  }
  return best;
}

function shapedRow(row, position, params) {
  const biases = params.logitBias ?? [];
  const withheld = position < (params.withheldUntil ?? 0) ? (params.withheld ?? []) : [];
  if (!biases.length && !withheld.length) return row;
  const changed = Float32Array.from(row);
  for (const [token, bias] of biases) changed[token] += bias;
  for (const token of withheld) changed[token] = -Infinity;
  return changed;
}

/** z ← z/θ if z > 0, else z·θ, for tokens of the text; then z ← z − f·n − s·[n > 0] for those generated n times. */
function penalisedRow(row, text, params) {
  if (!remembers(params)) return row;
  const times = new Map(text.map((token) => [token, 0]));
  for (const token of text.slice(params.promptTokens ?? 0)) times.set(token, times.get(token) + 1);
  const factor = Math.fround(params.repetitionPenalty ?? 1);
  const frequency = Math.fround(params.frequencyPenalty ?? 0);
  const presence = Math.fround(params.presencePenalty ?? 0);
  const changed = Float32Array.from(row);
  for (const [token, n] of times) {
    if (token >= changed.length) continue;
    const z = changed[token];
    const repeated = Math.fround(z > 0 ? z / factor : z * factor);
    changed[token] = Math.fround(repeated - Math.fround(frequency * n)) - (n > 0 ? presence : 0);
  }
  return changed;
}

/** Logits after temperature, min-p, top-k and top-p, −Infinity outside the support; ties at the top-k edge are all kept. */
function truncatedRow(row, params) {
  const cut = params.minP > 0 || (params.topK > 0 && params.topK < row.length) || params.topP < 1;
  if (params.temperature === 1 && !cut) return row;
  const scaled = new Float32Array(row.length);
  // A loop: Float32Array.from with a function takes 7 ms for 49,152 logits where this takes a tenth of one.
  for (let token = 0; token < row.length; token++) scaled[token] = row[token] / Math.fround(params.temperature);
  if (params.minP > 0) keepFrom(scaled, Math.fround(scaled[argmax(scaled)] + Math.fround(Math.log(params.minP))));
  if (params.topK > 0 && params.topK < scaled.length) keepFrom(scaled, edgeOf(scaled, params.topK));
  return params.topP < 1 ? nucleus(scaled, params.topP) : scaled;
}

function keepFrom(scaled, floor) {
  for (let token = 0; token < scaled.length; token++) if (scaled[token] < floor) scaled[token] = -Infinity;
}

/** The k-th largest logit, or −Infinity where fewer than k tokens are possible. */
function edgeOf(scaled, k) {
  const possible = new Float32Array(scaled.length);
  let count = 0;
  for (let token = 0; token < scaled.length; token++) if (scaled[token] > -Infinity) possible[count++] = scaled[token];
  return count < k ? -Infinity : possible.subarray(0, count).sort()[count - k];
}

function nucleus(scaled, topP) {
  const top = scaled[argmax(scaled)];
  const weights = new Float64Array(scaled.length);
  let total = 0;
  for (let token = 0; token < scaled.length; token++) total += weights[token] = Math.exp(scaled[token] - top);
  // All tokens below this weight together hold less than half of 1 − topP, so the nucleus lies above it.
  const floor = (0.5 * (1 - topP) * total) / scaled.length;
  const heavy = [];
  for (let token = 0; token < scaled.length; token++) if (weights[token] > floor) heavy.push(token);
  heavy.sort((a, b) => weights[b] - weights[a] || a - b);
  const kept = new Float32Array(scaled.length).fill(-Infinity);
  let before = 0;
  for (const token of heavy) {
    if (before >= topP * total) break;
    kept[token] = scaled[token];
    before += weights[token];
  }
  return kept;
}
