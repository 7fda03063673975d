/** The conversation of this tab, which a reload keeps: its messages, the unfinished text, and a question not yet sent. */
import { keep, kept, keptJson } from "./kept.js";

const MESSAGES = "multispin.messages";
const UNDER_WAY = "multispin.text";
const QUESTION = "multispin.question";
const AREA = "sessionStorage"; // each tab has its own

export class Conversation {
  constructor() {
    const found = keptJson(AREA, MESSAGES);
    /** @type {{role: string, content: string}[]} */
    this.messages = Array.isArray(found) ? found : [];
  }

  /** Add a message. */
  add(role, content) {
    this.messages.push({ role, content });
    keep(AREA, MESSAGES, JSON.stringify(this.messages));
  }

  /** Remove the newest message, which got no answer at all. */
  takeBack() {
    this.messages.pop();
    keep(AREA, MESSAGES, JSON.stringify(this.messages));
  }

  /** Begin a new conversation. */
  clear() {
    this.messages = [];
    for (const key of [MESSAGES, UNDER_WAY]) keep(AREA, key, null);
  }

  /**
   * Keep the unfinished text.
   *
   * @param {object|null} saved what `DeviceSession.save` returned; null: no text is unfinished
   * @param {string} fingerprint fingerprint of the tokenizer; with another tokenizer the ids mean something else
   * @param {string} text
   */
  keepText(saved, fingerprint, text) {
    keep(AREA, UNDER_WAY, saved && JSON.stringify({ fingerprint, text, saved }));
  }

  /** @returns {{fingerprint: string, text: string, saved: object}|null} what `keepText` has kept */
  get underWay() {
    const found = keptJson(AREA, UNDER_WAY);
    return found?.saved ? found : null;
  }

  /** Keep a question that a reload puts back into its box. */
  keepQuestion(question) {
    keep(AREA, QUESTION, question);
  }

  /** @returns {string} that question, only once; else empty */
  takeQuestion() {
    const question = kept(AREA, QUESTION) ?? "";
    keep(AREA, QUESTION, null);
    return question;
  }
}
