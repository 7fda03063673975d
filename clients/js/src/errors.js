/** An edge said something that makes no sense, or a caller asked for it: one sentence for people. */
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
