/** Why a part of a text was written without drafts of this device: the person at the device is told. */

/** A person is told if this many tokens of a text were written without drafts for one reason. */
const LONG_TOKENS = 32;

/** What a person is told, by reason. */
const WORDS = {
  "not-asked": () => "the edge asked for none; it asks where they make texts faster",
  context: (most) => `the text is longer than the ${most} tokens that its drafter reads`,
  nothing: () => "its drafter had nothing to propose",
  resting: () => "it rested, so that few of its tokens are wasted",
  late: () => "its tokens came too late, or after one that was wrong",
};

/** Counts the tokens of one text that were written without drafts, by reason. */
export class Silence {
  #tokens = new Map();
  #offered = false; // whether the edge lets the device draft now
  #everOffered = false;
  #drafted = true; // whether the drafter had something, when it was last asked

  /** @param {number} [most] tokens of the longest text that the drafter reads; default as many as there are */
  constructor(most = Infinity) {
    this.most = most;
  }

  /** The edge lets the device draft up to `length` tokens from now on. */
  offer(length) {
    this.#offered = length > 0;
    this.#everOffered ||= this.#offered;
  }

  /** The drafter was asked, and has proposed `drafted` tokens. */
  asked(drafted) {
    this.#drafted = drafted > 0;
  }

  /**
   * A pass has written tokens without a draft.
   *
   * @param {number} tokens how many
   * @param {number} textTokens tokens of the whole text after them, prompt included
   * @param {boolean} rests whether the device rests
   */
  written(tokens, textTokens, rests) {
    let why = this.#drafted ? "late" : "nothing";
    if (rests) why = "resting";
    if (!this.#offered) why = "not-asked";
    if (this.#everOffered && textTokens > this.most) why = "context"; // also where the edge has stopped asking for what never comes
    this.#tokens.set(why, (this.#tokens.get(why) ?? 0) + tokens);
  }

  /**
   * What a person is to know of the text.
   *
   * @param {number} drafted the device's drafted tokens of the text that were verified
   * @param {number} generated tokens of the text, without the prompt
   * @param {{[why: string]: string}} [remedies] by reason, what the person can change
   * @returns {string} a sentence; empty if there is nothing to know
   */
  sentence(drafted, generated, remedies = {}) {
    const why = this.#reason(drafted);
    if (!why) return "";
    const remedy = remedies[why] ? ` (${remedies[why]})` : "";
    return `${this.#tokens.get(why)} of ${generated} tokens were written without drafts of this device: ${WORDS[why](this.most)}${remedy}`;
  }

  #reason(drafted) {
    const told = [...this.#tokens].filter(([why]) => !drafted || why !== "late");
    if (this.#tokens.has("context")) return "context"; // a person can mend that
    const most = told.reduce((best, each) => (best && best[1] >= each[1] ? best : each), null);
    if (!most || (drafted && most[1] < LONG_TOKENS)) return null;
    const all = told.reduce((sum, [, count]) => sum + count, 0);
    return all > 1 ? most[0] : null; // a text of one token leaves nothing to draft
  }
}
