/** The conversation on the page. */

/** @param {string} id */
export const element = (id) => document.getElementById(id);

/** Append a message; returns its element. */
export function say(kind, text = "") {
  const box = document.createElement("div");
  box.className = kind;
  box.textContent = text;
  element("chat").append(box);
  box.scrollIntoView({ block: "end" });
  return box;
}

/** Append new text to an answer, and mark the tokens that this device drafted. */
export function write(box, progress) {
  const near = window.innerHeight + window.scrollY > document.body.scrollHeight - 80;
  progress.texts.forEach((text, index) => {
    if (!text) return;
    const own = index < progress.accepted;
    const last = box.lastChild;
    if (last?.dataset && (last.className === "own") === own) last.append(text);
    else {
      const part = document.createElement("span");
      part.className = own ? "own" : "edge";
      part.append(text);
      box.append(part);
    }
  });
  if (near) box.scrollIntoView({ block: "end" });
}

/** Tokens per second with and without this device's help. */
export class Figures {
  constructor() {
    this.sums = { with: { tokens: 0, ms: 0 }, without: { tokens: 0, ms: 0 } };
    this.drafted = this.accepted = 0;
    this.begin();
  }

  /** A text begins. */
  begin() {
    this.text = { tokens: 0, ms: 0, drafted: 0, newest: null };
  }

  /** Count the growth of the text; the wait for its first tokens is not counted. */
  count(progress) {
    const { text } = this;
    const now = performance.now();
    if (text.newest !== null) [text.tokens, text.ms] = [text.tokens + progress.tokens.length, text.ms + now - text.newest];
    text.newest = now;
    text.drafted += progress.drafted;
    this.drafted += progress.drafted;
    this.accepted += progress.accepted;
    if (this.drafted) element("accepted").textContent = `${this.accepted} of ${this.drafted}`;
    this.show(text);
  }

  /** Count the ended text with or without help, by whether any draft of this device was verified for it. */
  end() {
    const sum = this.sums[this.kind];
    [sum.tokens, sum.ms] = [sum.tokens + this.text.tokens, sum.ms + this.text.ms];
    this.begin();
  }

  get kind() {
    return this.text.drafted ? "with" : "without";
  }

  show(text) {
    for (const [kind, sum] of Object.entries(this.sums)) {
      const own = kind === this.kind ? text : { tokens: 0, ms: 0 };
      const tokens = sum.tokens + own.tokens;
      element(kind).textContent = tokens ? ((1e3 * tokens) / (sum.ms + own.ms)).toFixed(1) : "–";
    }
  }
}
