/** Token ids become text that is final: no half characters, no beginning of a stop string. */

import { InputError } from "./errors.js";

/** The bytes of every token, as an edge hands them out for its target (`/device/tokens`). */
export class TokenTable {
  /** @param {Uint8Array[]} pieces bytes of each token id; empty for tokens that leave no text */
  constructor(pieces) {
    this.pieces = pieces;
  }

  /**
   * @param {Uint8Array} packed for each id its number of bytes (two bytes, big-endian; 0 for an id without text), then
   *   the bytes
   * @returns {TokenTable} InputError for a file that ends too early
   */
  static unpack(packed) {
    const view = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
    const pieces = [];
    for (let at = 0; at < packed.length; ) {
      const size = at + 2 <= packed.length ? view.getUint16(at) : Infinity;
      if (at + 2 + size > packed.length) throw new InputError("a table of tokens ends in the middle of a token");
      pieces.push(packed.subarray(at + 2, at + 2 + size));
      at += 2 + size;
    }
    return new TokenTable(pieces);
  }

  /** @returns {Uint8Array} the bytes of one token; none for an id that the table lacks */
  piece(token) {
    return this.pieces[token] ?? new Uint8Array();
  }
}

/** The final text of a growing sequence of token ids. */
export class TextStream {
  /**
   * @param {TokenTable} table
   * @param {string[]} [stopStrings] the text ends before the first of them
   * @param {number} [minTokens] a stop string that is complete before so many tokens does not count
   */
  constructor(table, stopStrings = [], minTokens = 0) {
    this.table = table;
    this.strings = stopStrings;
    this.minTokens = minTokens;
    this.early = 0; // characters of `held` within which no stop string counts
    this.stopped = false;
    this.tokens = 0; // ids taken; none after a stop string
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.held = ""; // decided bytes that may be the beginning of a stop string
  }

  /**
   * @param {number[]} ids new ids
   * @returns {string} the text that has become final with them
   */
  push(ids) {
    let final = "";
    for (const id of ids) {
      if (this.stopped) break;
      this.tokens += 1;
      this.held += this.decoder.decode(this.table.piece(id), { stream: true });
      if (this.tokens < this.minTokens) this.early = this.held.length;
      final += this.leave();
    }
    return final;
  }

  /** @returns {string} the text that is still due when no more ids will come */
  end() {
    if (this.stopped) return "";
    this.held += this.decoder.decode();
    const final = this.leave() + (this.stopped ? "" : this.held);
    this.held = "";
    return final;
  }

  leave() {
    const places = this.strings
      .map((string) => this.held.indexOf(string, Math.max(0, this.early - string.length + 1)))
      .filter((place) => place >= 0);
    if (places.length) {
      this.stopped = true;
      return this.take(Math.min(...places));
    }
    let most = 0; // characters at the end with which a stop string begins
    for (const string of this.strings) {
      for (let length = Math.min(string.length - 1, this.held.length); length > most; length--) {
        if (this.held.endsWith(string.slice(0, length))) most = length;
      }
    }
    return this.take(this.held.length - most);
  }

  take(count) {
    const text = this.held.slice(0, count);
    this.held = this.stopped ? "" : this.held.slice(count);
    this.early = Math.max(0, this.early - count);
    return text;
  }
}
