/** Tells the user why parts of a text were written without this device's drafts. */

/** Tokens written without drafts for one reason, from which on the user is told. */
const LONG_TOKENS = 32;

/** What the user is told, by reason. */
const WORDS = {
  "not-asked": () => "the edge asked for none: it asks only devices that make texts faster",
  context: (most) => `the text is longer than the ${most} tokens that its drafter can read`,
  nothing: () => "its drafter had nothing to propose",
  resting: () => "it rested, since too many of its tokens would be wasted",
  late: () => "its tokens came too late, or followed a rejected one",
};

/** Counts the tokens of one text that were written without drafts, by reason. */
export class Silence {
  #tokens = new Map();
  #offered = false; // whether the edge lets the device draft now
  #everOffered = false;
  #drafted = true; // whether the drafter proposed anything when it was last asked

  /** @param {number} [most] length of the longest text that the drafter can read [tokens]; default no limit */
  constructor(most = Infinity) {
    this.most = most;
  }

  /** Note that the device may draft up to `length` tokens from now on. */
  offer(length) {
    this.#offered = length > 0;
    this.#everOffered ||= this.#offered;
  }

  /** Note that the drafter was asked and proposed `drafted` tokens. */
  asked(drafted) {
    this.#drafted = drafted > 0;
  }

  /**
   * Count tokens that a pass wrote without a draft.
   *
   * @param {number} tokens number of these tokens
   * @param {number} textTokens length of the whole text after them [tokens], prompt included
   * @param {boolean} rests whether the device rests
   */
  written(tokens, textTokens, rests) {
    let why = this.#drafted ? "late" : "nothing";
    if (rests) why = "resting";
    if (!this.#offered) why = "not-asked";
    if (this.#everOffered && textTokens > this.most) why = "context"; // also if the edge has stopped asking, since no draft ever comes
    this.#tokens.set(why, (this.#tokens.get(why) ?? 0) + tokens);
  }

  /**
   * The sentence to tell the user about the text.
   *
   * @param {number} drafted the device's drafted tokens of the text that were verified
   * @param {number} generated tokens of the text, without the prompt
   * @param {{[why: string]: string}} [remedies] by reason, what the user can change
   * @returns {string} the sentence; empty if there is nothing to tell
   */
  sentence(drafted, generated, remedies = {}) {
    const why = this.#reason(drafted);
    if (!why) return "";
    const remedy = remedies[why] ? ` (${remedies[why]})` : "";
    return `${this.#tokens.get(why)} of ${generated} tokens were written without drafts of this device: ${WORDS[why](this.most)}${remedy}`;
  }

  #reason(drafted) {
    const told = [...this.#tokens].filter(([why]) => !drafted || why !== "late");
    if (this.#tokens.has("context")) return "context"; // the user can change that
    const most = told.reduce((best, each) => (best && best[1] >= each[1] ? best : each), null);
    if (!most || (drafted && most[1] < LONG_TOKENS)) return null;
    const all = told.reduce((sum, [, count]) => sum + count, 0);
    return all > 1 ? most[0] : null; // a text of one token leaves nothing to draft
  }
}
