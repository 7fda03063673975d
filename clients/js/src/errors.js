/** An edge said something that makes no sense, or a caller asked for it: one sentence for people. */
export class InputError extends Error {}

/** The edge ended the session; `code` is for programs, the message for people. */
export class RefusedError extends InputError {
  /**
   * @param {string} code one of the error codes of docs/protocol.md
   * @param {string} sentence
   */
  constructor(code, sentence) {
    super(sentence);
    this.code = code;
  }
}

/** The edge does not know the session any more. The text is kept: greet again, and open from where it stands. */
export class SessionGoneError extends RefusedError {}
