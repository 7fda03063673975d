/** The conversation of this tab: what was said, the text under way, and a question that was not sent. A reload keeps it. */
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

  /** Something was said. */
  add(role, content) {
    this.messages.push({ role, content });
    keep(AREA, MESSAGES, JSON.stringify(this.messages));
  }

  /** The newest message was not answered at all: it is to be asked again. */
  takeBack() {
    this.messages.pop();
    keep(AREA, MESSAGES, JSON.stringify(this.messages));
  }

  /** Begin a new one. */
  clear() {
    this.messages = [];
    for (const key of [MESSAGES, UNDER_WAY]) keep(AREA, key, null);
  }

  /**
   * The text under way, as it stands.
   *
   * @param {object|null} saved from `DeviceSession.save`; null where there is none
   * @param {string} fingerprint of the tokenizer: with another one its ids mean something else
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

  /** A question that is to be in its box again when the page has been loaded anew. */
  keepQuestion(question) {
    keep(AREA, QUESTION, question);
  }

  /** @returns {string} that question, once; or nothing */
  takeQuestion() {
    const question = kept(AREA, QUESTION) ?? "";
    keep(AREA, QUESTION, null);
    return question;
  }
}
