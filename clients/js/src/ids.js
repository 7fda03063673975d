/** Token ids packed at ⌈log2 V⌉ bits each: one big-endian bit string, zero-padded to whole bytes. */
import { InputError } from "./errors.js";

/**
 * @param {number} vocabularySize V, 2 … 2^31
 * @returns {number} ⌈log2 V⌉; 15 for V = 32,000
 */
export function bitsPerId(vocabularySize) {
  if (!(vocabularySize >= 2 && vocabularySize <= 2 ** 31)) throw new InputError(`a vocabulary of ${vocabularySize} ids is outside 2 … 2^31`);
  return 32 - Math.clz32(vocabularySize - 1);
}

/**
 * @param {number[]} ids each 0 … V − 1
 * @param {number} vocabularySize V
 * @returns {Uint8Array} ⌈n·⌈log2 V⌉/8⌉ bytes
 */
export function packIds(ids, vocabularySize) {
  const width = bitsPerId(vocabularySize);
  const bytes = new Uint8Array(Math.ceil((ids.length * width) / 8));
  let bit = 0;
  for (const id of ids) {
    if (!(Number.isInteger(id) && id >= 0 && id < vocabularySize)) {
      throw new InputError(`token id ${id} is outside 0 … ${vocabularySize - 1}`);
    }
    for (let place = width - 1; place >= 0; place--, bit++) {
      if ((id >>> place) & 1) bytes[bit >> 3] |= 0x80 >> (bit & 7);
    }
  }
  return bytes;
}

/**
 * @param {Uint8Array} packed
 * @param {number} count number of ids
 * @param {number} vocabularySize V
 * @returns {number[]} the ids; InputError for a wrong length, padding that is not zero and ids outside the vocabulary
 */
export function unpackIds(packed, count, vocabularySize) {
  const width = bitsPerId(vocabularySize);
  const size = Math.ceil((count * width) / 8);
  if (packed.length !== size) {
    throw new InputError(`${count} ids of ${width} bits need ${size} bytes, not ${packed.length}`);
  }
  let bit = 0;
  const next = () => (packed[bit >> 3] >> (7 - (bit++ & 7))) & 1;
  const ids = [];
  for (let index = 0; index < count; index++) {
    let id = 0;
    for (let place = 0; place < width; place++) id = id * 2 + next();
    if (id >= vocabularySize) throw new InputError(`packed id ${id} is outside 0 … ${vocabularySize - 1}`);
    ids.push(id);
  }
  while (bit < 8 * size) if (next()) throw new InputError("the padding bits are not zero");
  return ids;
}
