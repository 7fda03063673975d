/**
 * Thrift: how far ahead a device drafts in a stream, by the price of its energy.
 *
 * A token far ahead is wasted often, since any token before it may be contradicted first. One just ahead is wasted often
 * too, since the edge writes the same place in the pass under way. So some distance between wastes least, and where even
 * that wastes too much the device rests.
 */
import { InputError } from "./errors.js";

/** Tokens ahead that are tried, the greatest first. */
const DISTANCES = [63, 32, 16, 12, 8, 6, 4, 3];
/** The distance is chosen anew after so many tokens have been decided. */
const LOOK_EVERY_TOKENS = 16;
/** Share of what was seen of a distance that still counts after another look. */
const REMEMBERED = 0.8;
/** Commits for which the device drafts nothing if every distance wastes too much. */
const REST_COMMITS = 32;
/** Most commits of such a rest: it doubles each time that all distances waste too much, and halves after a better look. */
const LONGEST_REST_COMMITS = 1024;

/** Drafts as far ahead as wastes no more than a bound, as far as it has been seen. */
export class Thrift {
  #most;
  #seen = new Map(DISTANCES.map((distance) => [distance, { decided: 0, wasted: 0 }]));
  #decided = 0;
  #wasted = 0;
  #rest = 0;
  #nextRest = REST_COMMITS;

  /**
   * @param {number} [maxWastedShare] most of the drafted tokens that may be wasted, 0 … 1; default 1, no bound. Wasted
   *   are those that were never verified.
   */
  constructor(maxWastedShare = 1) {
    if (typeof maxWastedShare !== "number" || !(maxWastedShare >= 0 && maxWastedShare <= 1)) {
      throw new InputError(`maxWastedShare is ${maxWastedShare}; it must be in [0, 1]`);
    }
    this.#most = maxWastedShare;
    /** Most tokens ahead of the committed text; infinite: as many as the edge allows. */
    this.ahead = maxWastedShare === 1 ? Infinity : DISTANCES[0];
  }

  /**
   * Learn what a commit has decided.
   *
   * @param {number} verified drafted tokens that were verified
   * @param {number} wasted drafted tokens that never will be
   * @param {number} window most tokens ahead that the edge allows
   */
  observe(verified, wasted, window) {
    if (this.ahead === Infinity) return;
    if (this.ahead === 0) {
      this.#rest -= 1;
      if (this.#rest <= 0) {
        this.ahead = this.#best(window); // it is tried again, and what it wasted long ago does not count
        this.#seen.set(this.ahead, { decided: 0, wasted: 0 });
      }
      return;
    }
    this.#decided += verified + wasted;
    this.#wasted += wasted;
    if (this.#decided < LOOK_EVERY_TOKENS) return;
    const seen = this.#seen.get(this.ahead);
    this.#seen.set(this.ahead, {
      decided: REMEMBERED * seen.decided + this.#decided,
      wasted: REMEMBERED * seen.wasted + this.#wasted,
    });
    this.#decided = this.#wasted = 0;
    this.ahead = this.#within(window).find((distance) => this.#share(distance) <= this.#most) ?? 0;
    if (this.ahead) this.#nextRest = Math.max(Math.floor(this.#nextRest / 2), REST_COMMITS);
    else {
      this.#rest = this.#nextRest;
      this.#nextRest = Math.min(2 * this.#nextRest, LONGEST_REST_COMMITS);
    }
  }

  /** Distances that differ from each other in this window. */
  #within(window) {
    const least = DISTANCES.filter((distance) => distance >= window).at(-1) ?? DISTANCES[0];
    return DISTANCES.filter((distance) => distance <= least);
  }

  #best(window) {
    const tried = this.#within(window);
    return tried.reduce((best, each) => (this.#share(each) < this.#share(best) ? each : best), tried[0]);
  }

  /** Share of wasted tokens, as far as it was seen; 0 before. */
  #share(distance) {
    const { decided, wasted } = this.#seen.get(distance);
    return decided ? wasted / decided : 0;
  }
}
