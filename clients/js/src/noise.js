/**
 * Shared randomness: the same number for (seed, position, token) on every machine, in any order.
 *
 * The 64-bit seed and the position are mixed into four 32-bit keys with splitmix64 (Steele, Lea, Flood 2014). Each token
 * id passes twice through a keyed 32-bit finaliser of the murmur3 family (constants: C. Wellons' "lowbias32" search). All
 * of it is integer arithmetic, so the integers and the uniform variates are the edge's own, bit by bit; the logarithms of
 * a Gumbel variate may differ in the last place.
 */
import { InputError } from "./errors.js";

export const MAX_SEED = 2n ** 63n - 1n;
const MASK64 = 2n ** 64n - 1n;

function splitmix64(state) {
  state = (state + 0x9e3779b97f4a7c15n) & MASK64;
  state = ((state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK64;
  state = ((state ^ (state >> 27n)) * 0x94d049bb133111ebn) & MASK64;
  return state ^ (state >> 31n);
}

/**
 * @param {number|bigint} seed 0 … 2^63 − 1; beyond 2^53 a BigInt
 * @param {number} position absolute position of the token, prompt included, from 0
 * @returns {Uint32Array} four keys: two for the upper 32 bits of the variates, two for the lower 20
 */
export function keys(seed, position) {
  const given = BigInt(seed);
  if (given < 0n || given > MAX_SEED) throw new InputError(`seed = ${seed} is outside 0 … ${MAX_SEED}`);
  const first = splitmix64(splitmix64(given) ^ BigInt(position));
  const second = splitmix64(first);
  return Uint32Array.from([first >> 32n, first & 0xffffffffn, second >> 32n, second & 0xffffffffn], Number);
}

function mix(word, key) {
  word ^= key;
  word ^= word >>> 16;
  word = Math.imul(word, 0x7feb352d);
  word ^= word >>> 15;
  word = Math.imul(word, 0x846ca68b);
  return word ^ (word >>> 16);
}

/**
 * @param {Uint32Array} four from `keys`
 * @param {number} token id
 * @returns {number} the upper 32 bits h of the uniform variate: h/2^32 < u < (h + 1)/2^32
 */
export function highWord(four, token) {
  return mix(mix(token, four[0]), four[1]) >>> 0;
}

/**
 * @param {Uint32Array} four from `keys`
 * @param {number} token id
 * @returns {number} a uniform variate in (0, 1), 52 bits
 */
export function uniform(four, token) {
  const low = mix(mix(token, four[2]), four[3]) >>> 12;
  return (highWord(four, token) * 2 ** 20 + low + 0.5) * 2 ** -52;
}

/**
 * @param {Uint32Array} four from `keys`
 * @param {number} token id
 * @returns {number} a standard Gumbel variate −ln(−ln u)
 */
export function gumbel(four, token) {
  return -Math.log(-Math.log(uniform(four, token)));
}
