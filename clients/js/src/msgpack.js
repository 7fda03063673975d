/**
 * The part of MessagePack that the protocol uses: nil, booleans, integers, float64, text, bytes and arrays.
 *
 * Integers beyond 2^53 are BigInt and floats instances of `Float`, in both directions: a JavaScript number does not say
 * whether it is one. Maps, extensions and text that is not UTF-8, which may stand in a field that is not known here, are
 * read as `OTHER`. https://github.com/msgpack/msgpack/blob/master/spec.md
 */
import { InputError } from "./errors.js";

const MAX_DEPTH = 500; // the edge's own is about as much
const TEXT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Stands for a value that is not of this protocol. */
export const OTHER = Symbol("a value that is not of this protocol");

/** A number that is written as a float64, whatever its value, or was read from a float. */
export class Float {
  /** @param {number} value */
  constructor(value) {
    this.value = value;
  }
}

/**
 * @param {*} value nil (null or undefined), boolean, number, bigint, Float, string, Uint8Array, or an array of these
 * @returns {Uint8Array} one MessagePack value, in its shortest form
 */
export function pack(value) {
  const parts = [];
  write(value, parts);
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/**
 * @param {Uint8Array} bytes exactly one value
 * @returns {*} the value; text as string, bytes as Uint8Array, floats as Float. InputError for anything else.
 */
export function unpack(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value(0);
  if (reader.at !== bytes.length) throw new InputError(`${bytes.length - reader.at} bytes follow a MessagePack value`);
  return value;
}

function write(value, parts) {
  if (value === null || value === undefined) parts.push([0xc0]);
  else if (value === false || value === true) parts.push([value ? 0xc3 : 0xc2]);
  else if (value instanceof Float) parts.push(big(0xcb, 8, (view) => view.setFloat64(1, value.value)));
  else if (typeof value === "number" || typeof value === "bigint") writeInteger(value, parts);
  else if (typeof value === "string") writeText(value, parts);
  else if (value instanceof Uint8Array) {
    parts.push(head(value.length, [[0xff, 0xc4, 1], [0xffff, 0xc5, 2], [0xffffffff, 0xc6, 4]]), value);
  } else if (Array.isArray(value)) {
    parts.push(value.length < 16 ? [0x90 | value.length] : head(value.length, [[0xffff, 0xdc, 2], [0xffffffff, 0xdd, 4]]));
    for (const each of value) write(each, parts);
  } else throw new TypeError(`no MessagePack value of this protocol: ${typeof value}`);
}

function writeInteger(value, parts) {
  if (typeof value === "number" && !Number.isSafeInteger(value)) throw new TypeError(`${value} is not a whole number`);
  const n = BigInt(value);
  if (n >= 0n) {
    if (n < 128n) parts.push([Number(n)]);
    else if (n < 2n ** 32n) parts.push(head(Number(n), [[0xff, 0xcc, 1], [0xffff, 0xcd, 2], [0xffffffff, 0xce, 4]]));
    else if (n < 2n ** 64n) parts.push(big(0xcf, 8, (view) => view.setBigUint64(1, n)));
    else throw new TypeError(`${n} is over 64 bits`);
  } else if (n >= -32n) parts.push([Number(n) & 0xff]);
  else if (n >= -128n) parts.push(big(0xd0, 1, (view) => view.setInt8(1, Number(n))));
  else if (n >= -(2n ** 15n)) parts.push(big(0xd1, 2, (view) => view.setInt16(1, Number(n))));
  else if (n >= -(2n ** 31n)) parts.push(big(0xd2, 4, (view) => view.setInt32(1, Number(n))));
  else if (n >= -(2n ** 63n)) parts.push(big(0xd3, 8, (view) => view.setBigInt64(1, n)));
  else throw new TypeError(`${n} is over 64 bits`);
}

function writeText(value, parts) {
  const bytes = new TextEncoder().encode(value);
  const forms = [[0xff, 0xd9, 1], [0xffff, 0xda, 2], [0xffffffff, 0xdb, 4]];
  parts.push(bytes.length < 32 ? [0xa0 | bytes.length] : head(bytes.length, forms), bytes);
}

/** The first of the forms [largest, tag, bytes] that holds `count`, written out. */
function head(count, forms) {
  const [, tag, size] = forms.find(([largest]) => count <= largest);
  return big(tag, size, (view) => (size === 1 ? view.setUint8(1, count) : size === 2 ? view.setUint16(1, count) : view.setUint32(1, count)));
}

function big(tag, size, put) {
  const bytes = new Uint8Array(1 + size);
  bytes[0] = tag;
  put(new DataView(bytes.buffer));
  return bytes;
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  /** Step over `size` bytes; returns where they began. */
  step(size) {
    if (this.at + size > this.bytes.length) throw new InputError("a frame ends in the middle of a value");
    const began = this.at;
    this.at += size;
    return began;
  }

  value(depth) {
    if (depth > MAX_DEPTH) throw new InputError(`a frame nests over ${MAX_DEPTH} values`);
    const tag = this.view.getUint8(this.step(1));
    if (tag < 0x80) return tag;
    if (tag >= 0xe0) return tag - 0x100;
    if (tag >= 0xa0 && tag < 0xc0) return this.text(tag & 0x1f);
    if (tag >= 0x90 && tag < 0xa0) return this.array(tag & 0x0f, depth);
    if (tag < 0x90) return this.map(tag & 0x0f, depth);
    switch (tag) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.binary(this.view.getUint8(this.step(1)));
      case 0xc5: return this.binary(this.view.getUint16(this.step(2)));
      case 0xc6: return this.binary(this.view.getUint32(this.step(4)));
      case 0xc7: return this.extension(this.view.getUint8(this.step(1)));
      case 0xc8: return this.extension(this.view.getUint16(this.step(2)));
      case 0xc9: return this.extension(this.view.getUint32(this.step(4)));
      case 0xca: return new Float(this.view.getFloat32(this.step(4)));
      case 0xcb: return new Float(this.view.getFloat64(this.step(8)));
      case 0xcc: return this.view.getUint8(this.step(1));
      case 0xcd: return this.view.getUint16(this.step(2));
      case 0xce: return this.view.getUint32(this.step(4));
      case 0xcf: return small(this.view.getBigUint64(this.step(8)));
      case 0xd0: return this.view.getInt8(this.step(1));
      case 0xd1: return this.view.getInt16(this.step(2));
      case 0xd2: return this.view.getInt32(this.step(4));
      case 0xd3: return small(this.view.getBigInt64(this.step(8)));
      case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return this.extension(1 << (tag - 0xd4));
      case 0xd9: return this.text(this.view.getUint8(this.step(1)));
      case 0xda: return this.text(this.view.getUint16(this.step(2)));
      case 0xdb: return this.text(this.view.getUint32(this.step(4)));
      case 0xdc: return this.array(this.view.getUint16(this.step(2)), depth);
      case 0xdd: return this.array(this.view.getUint32(this.step(4)), depth);
      case 0xde: return this.map(this.view.getUint16(this.step(2)), depth);
      case 0xdf: return this.map(this.view.getUint32(this.step(4)), depth);
      default: throw new InputError(`a frame holds the byte 0x${tag.toString(16)}, which begins no MessagePack value`);
    }
  }

  binary(size) {
    const began = this.step(size);
    return this.bytes.slice(began, began + size);
  }

  text(size) {
    const began = this.step(size);
    try {
      return TEXT.decode(this.bytes.subarray(began, began + size));
    } catch {
      return OTHER; // refused in every field that is known, and of no interest in others
    }
  }

  array(count, depth) {
    const items = []; // grows with what is there, not with what the frame claims
    for (let place = 0; place < count; place++) items.push(this.value(depth + 1));
    return items;
  }

  map(count, depth) {
    for (let place = 0; place < 2 * count; place++) this.value(depth + 1);
    return OTHER;
  }

  extension(size) {
    this.step(1 + size);
    return OTHER;
  }
}

/** A number where it is exact, else a BigInt. */
function small(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
