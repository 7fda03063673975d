/** Refused: what an edge sent makes no sense, or what a caller asked for is impossible. The message is one sentence. */
export class InputError extends Error {}

/** The edge ended the session; `code` is for programs, the message for people. */
export class RefusedError extends InputError {
  /**
   * @param {string} code one of the error codes of docs/protocol.md
   * @param {string} sentence
   * @param {number} [retryAfter] when the edge wants to be asked again [s]; 0: it does not say
   */
  constructor(code, sentence, retryAfter = 0) {
    super(sentence);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The edge does not know the session any more. The text is kept: greet again, and open from where it stands. */
export class SessionGoneError extends RefusedError {}

/** @returns {string} a message's type with "a" or "an" before it */
export function withArticle(type) {
  return `${"AEIO".includes(type[0]) ? "an" : "a"} ${type}`;
}
