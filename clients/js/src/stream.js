/**
 * A stream as the device sees it: the tokens that it has drafted ahead of the committed text, and which are sent.
 *
 * They are a chain, numbered by its epoch. The chain goes on while the text agrees with it. When the text says something
 * else, what is left of it is dropped and the next chain begins, with a greater epoch.
 */
import { packIds } from "./ids.js";

/** The stage of a device that drafts on by itself. */
export class Streaming {
  name = "Streaming";

  /**
   * @param {object} window the edge's Window
   * @param {number} epoch number of the chain
   */
  constructor(window, epoch) {
    this.window = window;
    this.epoch = epoch;
    this.ids = []; // its tokens that follow the committed text
    this.sent = 0; // how many of them have been sent
    this.spent = 0; // time spent drafting the others [s]
    this.stuck = false; // whether the drafter had nothing to say after them
  }

  /**
   * @param {number} left tokens that the text may still grow by; the edge adds the last one itself
   * @param {number[]} stopIds ids that end the text, so that nothing need be drafted after them
   * @param {number} [most] most tokens ahead by the device's own will; default as many as its window
   * @returns {number} tokens that may be drafted now
   */
  room(left, stopIds, most = Infinity) {
    if (this.stuck || stopIds.includes(this.ids.at(-1))) return 0;
    return Math.max(0, Math.min(this.window.length, most, left - 1) - this.ids.length);
  }

  /**
   * Take in drafted tokens that begin at position `start`; the edge may have written on at their places meanwhile.
   *
   * @returns {number} how many of them were in vain
   */
  take(start, ids, seconds, committed) {
    const written = committed.slice(start, start + ids.length);
    if (written.some((id, place) => id !== ids[place])) return ids.length;
    this.ids.push(...ids.slice(written.length));
    this.spent += seconds;
    return written.length;
  }

  /**
   * @param {number} committed tokens of the committed text
   * @param {boolean} more whether more can be drafted now, so that a frame that is not full can wait
   * @param {number} vocabularySize
   * @returns {object|null} the next Chunk; it counts as sent from now on. With a window of 0 there is none.
   */
  chunk(committed, more, vocabularySize) {
    const ids = this.ids.slice(this.sent, this.sent + this.window.chunk);
    if (!ids.length || !this.window.length || (more && ids.length < this.window.chunk)) return null;
    const spent = (this.spent * ids.length) / (this.ids.length - this.sent);
    const start = committed + this.sent;
    this.sent += ids.length;
    this.spent -= spent;
    const micros = Math.min(Math.round(spent * 1e6), 2 ** 32 - 1);
    return { type: "Chunk", epoch: this.epoch, start, length: ids.length, ids: packIds(ids, vocabularySize), draft_us: micros };
  }

  /**
   * The text has gone on by `tokens`.
   *
   * @returns {number|null} how many of its own they were; null if the text differs from them
   */
  follow(tokens) {
    const written = Math.min(this.ids.length, tokens.length);
    for (let place = 0; place < written; place++) if (this.ids[place] !== tokens[place]) return null;
    this.ids.splice(0, written);
    this.sent = Math.max(0, this.sent - written);
    this.stuck = false;
    return written;
  }
}
