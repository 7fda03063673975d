/**
 * A device: drafts when it is granted, sends what it drafted, and comes back after every loss. It runs in a browser and in
 * Node (22 or newer, which has a WebSocket).
 */
import { InputError, RefusedError, SessionGoneError } from "./errors.js";
import { decode, encode } from "./messages.js";
import { DeviceSession } from "./session.js";

/** Longest wait for the answer to a greeting [ms]. */
const WELCOME_TIMEOUT_MS = 10_000;
/** Refusals that the same edge may not repeat later. */
const LATER = new Set(["full", "shutdown", "timeout", "too-slow"]);

/**
 * @typedef {object} Drafter proposes the next tokens of a text
 * @property {(committed: number[]) => Promise<void>} prepare reads a prompt before its first draft
 * @property {(committed: number[], length: number, params: object, signal: AbortSignal) => Promise<number[]>} draft
 *   up to `length` tokens that follow `committed`; fewer, or none, is a valid answer. It may stop early when the signal
 *   says that nobody waits for the draft any more.
 */

/**
 * @typedef {object} Patience how long to go on without an edge
 * @property {number} atFirstMs while no edge has ever answered; default 10 s
 * @property {number} onceKnownMs after one has answered, since the text last grew; default 300 s
 * @property {number} firstDelayMs delay after the first failure; it doubles with each that follows
 * @property {number} longestDelayMs
 */

/** The connection is lost, or could not be made. */
class LinkLostError extends Error {}

/** One device: its session, its drafter, and the link between it and an edge. */
export class DeviceClient {
  /**
   * @param {object} options
   * @param {string} options.url address of the edge's session endpoint, ws://HOST:PORT/v1/session
   * @param {object} options.hello how the device introduces itself
   * @param {Drafter} options.drafter
   * @param {import("./text.js").TokenTable} [options.table] bytes of the target's tokens
   * @param {(progress: import("./session.js").Progress) => void} [options.onProgress] told of every advance of the text
   * @param {(why: string, delayMs: number) => void} [options.onOutage] told of every failed attempt
   * @param {Partial<Patience>} [options.patience]
   */
  constructor({ url, hello, drafter, table, onProgress = () => {}, onOutage = () => {}, patience = {} }) {
    this.session = new DeviceSession(hello, table);
    this.url = url;
    this.drafter = drafter;
    this.onProgress = onProgress;
    this.onOutage = onOutage;
    this.patience = { atFirstMs: 10_000, onceKnownMs: 300_000, firstDelayMs: 100, longestDelayMs: 5_000, ...patience };
    this.socket = null;
    this.stopped = false;
    this.drafting = null; // {grant, base, abort, done}
    this.known = false; // whether an edge has ever answered
    this.awaySince = null; // when the edge was lost, if the text has not grown since
    this.failures = 0; // since then
  }

  /**
   * Have one text generated.
   *
   * @param {import("./session.js").Request|null} request null to go on with what `session.restore` took in
   * @returns {Promise<number[]>} its ids. RefusedError where the edge will not serve it, InputError where no edge can be
   *   reached or what it says makes no sense.
   */
  async generate(request) {
    if (request) this.session.begin(request);
    this.stopped = false;
    [this.failures, this.awaySince] = [0, null];
    await this.drafter.prepare(this.session.committed);
    try {
      while (!this.session.finish && !this.stopped) {
        try {
          await this.connection();
        } catch (error) {
          if (!this.session.finish && !this.stopped) await this.wait(error);
        }
      }
      return this.session.generated;
    } finally {
      this.abandon();
      this.goodbye();
      this.session.forgetEdge();
    }
  }

  /** End the text where it stands. */
  stop() {
    this.stopped = true;
    this.goodbye();
    this.lost?.(new LinkLostError("stopped"));
  }

  /** One connection, from its greeting to the end of the text; an error says why it ended before. */
  connection() {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(this.url);
      const timer = setTimeout(() => this.lost(new LinkLostError("no answer to a greeting")), WELCOME_TIMEOUT_MS);
      const settle = (end) => (value) => {
        clearTimeout(timer);
        socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
        if (!this.session.finish) socket.close();
        end(value);
      };
      const finished = settle(resolve);
      this.lost = settle(reject);
      this.socket = socket;
      socket.binaryType = "arraybuffer";
      socket.onopen = () => this.send(this.session.greet());
      socket.onclose = socket.onerror = () => this.lost(new LinkLostError("the connection to the edge was lost"));
      socket.onmessage = ({ data }) => {
        clearTimeout(timer);
        try {
          if (typeof data === "string") throw new InputError("the edge sent text, not a message of this protocol");
          this.take(decode(new Uint8Array(data)));
          if (this.session.finish) finished();
        } catch (error) {
          this.lost(error);
        }
      };
    });
  }

  /** Take in what the edge says. */
  take(message) {
    const { session } = this;
    const progress = session.receive(message);
    if (message.type === "Welcome") {
      this.known = true;
      if (session.stage.name === "Welcomed") this.send(session.open());
    }
    if (progress.tokens.length) [this.failures, this.awaySince] = [0, null];
    if (progress.tokens.length || progress.finish) this.onProgress(progress);
    const unsent = session.unsent();
    if (unsent) this.send(unsent);
    if (session.wantsDraft) this.startDrafting();
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(encode(message));
  }

  /** Tell the edge that the session is over, so that what it holds is free at once; then close. */
  goodbye() {
    if (this.session.welcome) this.send({ type: "Close", session: this.session.welcome.session });
    this.socket?.close();
  }

  /** After a lost connection: wait before the next attempt; throws the error when it is time to give up. */
  async wait(error) {
    const { session, patience } = this;
    const again = error instanceof LinkLostError || error instanceof SessionGoneError || LATER.has(error.code);
    if (!again) throw error;
    session.lose();
    if (error instanceof RefusedError) {
      this.abandon();
      session.forgetEdge();
    }
    const limit = this.known ? patience.onceKnownMs : patience.atFirstMs;
    this.awaySince ??= Date.now();
    if (Date.now() - this.awaySince > limit) throw new InputError(`cannot reach the edge at ${this.url}: ${error.message}`);
    const whole = Math.min(patience.longestDelayMs, patience.firstDelayMs * 2 ** Math.min(this.failures++, 30));
    const delay = whole * (0.5 + 0.5 * Math.random()); // so that many devices do not come back at once
    this.onOutage(error.message, delay);
    await new Promise((resolve) => setTimeout(resolve, delay));
  }

  // Drafting --------------------------------------------------------------------------------------------------------

  /** Draft for the open grant, unless that is being done already; a draft for an older grant is given up. */
  startDrafting() {
    const { grant, committed } = this.session;
    const under = this.drafting;
    if (under && under.round === grant.round && under.base === committed.length) return;
    this.abandon();
    const next = { round: grant.round, base: committed.length, abort: new AbortController() };
    const before = under?.done ?? Promise.resolve();
    next.done = before.then(() => this.draft(next, grant)).catch((error) => this.lost(error));
    this.drafting = next;
  }

  abandon() {
    this.drafting?.abort.abort();
  }

  async draft(mine, grant) {
    const { session } = this;
    if (mine.abort.signal.aborted) return;
    const began = performance.now();
    const drafted = await this.drafter.draft([...session.committed], grant.length, session.params, mine.abort.signal);
    if (this.drafting === mine) this.drafting = null;
    if (mine.abort.signal.aborted || session.grant?.round !== grant.round || session.committed.length !== mine.base) return;
    const size = session.welcome.vocabulary_size; // a drafter may know special tokens that the edge's target lacks
    const beyond = drafted.findIndex((id) => id >= size);
    const draft = session.answer(beyond < 0 ? drafted : drafted.slice(0, beyond), (performance.now() - began) / 1e3);
    if (session.joined) this.send(draft);
  }
}
