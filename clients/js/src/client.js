/**
 * A device: drafts when it is granted, sends what it drafted, and comes back after every loss. It runs wherever there is a
 * `WebSocket`: in browsers, Electron, React Native, Node 22, and Node 20 with --experimental-websocket.
 */
import { InputError, RefusedError, SessionGoneError } from "./errors.js";
import { decode, encode } from "./messages.js";
import { pauseMs } from "./pause.js";
import { DeviceSession } from "./session.js";
import { Silence } from "./silence.js";

/** Longest wait for the answer to a greeting [ms]. */
const WELCOME_TIMEOUT_MS = 10_000;
/** Codes of refusals after which the same edge may serve the device later. */
const LATER = new Set(["full", "shutdown", "timeout", "too-slow"]);

/**
 * @typedef {object} Drafter proposes the next tokens of a text
 * @property {(committed: number[]) => Promise<void>} prepare reads a prompt, so that the first draft is not slower than
 *   the others; `draft` may be called before it ends
 * @property {(committed: number[], length: number, params: object, signal: AbortSignal) => Promise<number[]>} draft
 *   up to `length` tokens that follow `committed`; fewer, or none, is a valid answer. It may stop early when the signal
 *   says that nobody waits for the draft any more.
 * @property {number} [maxLength] tokens of the longest text that it reads; `draft` is silent after a longer one
 */

/**
 * @typedef {object} Patience how long to go on without an edge
 * @property {number} atFirstMs while no edge has ever answered; default 10 s
 * @property {number} onceKnownMs after one has answered, since the text last grew; default 300 s. Time in which a page
 *   slept and made no attempts does not count.
 * @property {number} silenceMs longest wait for a message about the text on an open connection, while it is the edge's
 *   turn; default 120 s. Then the edge counts as away, until it says that its passes go on. While they do, an edge
 *   writes to waiting devices every 15 s.
 * @property {number} firstDelayMs delay after the first failure; default 100 ms. It doubles with each further failure.
 * @property {number} longestDelayMs longest delay; default 5 s
 */

/** The connection is lost, or could not be made. */
class LinkLostError extends Error {}
/** The edge keeps the connection open but sends nothing about the text. */
class SilentError extends LinkLostError {}

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
   * @param {number} [options.maxWastedShare] in a stream it drafts only so far ahead that no more than this share of its
   *   tokens is wasted, 0 … 1; default 1, as far as the edge allows
   */
  constructor({ url, hello, drafter, table, onProgress = () => {}, onOutage = () => {}, patience = {}, maxWastedShare = 1 }) {
    this.session = new DeviceSession(hello, table, maxWastedShare);
    /** Why tokens of the present text were written without drafts. */
    this.silence = new Silence(drafter.maxLength);
    this.url = url;
    this.drafter = drafter;
    this.onProgress = onProgress;
    this.onOutage = onOutage;
    this.patience = { atFirstMs: 10_000, onceKnownMs: 300_000, silenceMs: 120_000, firstDelayMs: 100, longestDelayMs: 5_000, ...patience };
    this.socket = null;
    this.stopped = false;
    this.drafting = null; // {grant, base, abort, done}
    this.known = false; // whether an edge has ever answered
    this.resetPatience();
    this.listen = () => {}; // begins the wait for the edge's next word anew
    this.endWait = () => {}; // ends the wait before the next attempt
  }

  /**
   * Have one text generated.
   *
   * @param {import("./session.js").Request|null} request null to go on with what `session.restore` took in
   * @returns {Promise<number[]>} its ids. RefusedError where the edge will not serve it, InputError where no edge can be
   *   reached or what it says makes no sense.
   */
  async generate(request) {
    if (typeof WebSocket === "undefined") {
      throw new InputError("there is no WebSocket here: use Node 22 or newer, or start Node 20 with --experimental-websocket");
    }
    if (request) this.session.begin(request);
    this.stopped = false;
    this.silence = new Silence(this.drafter.maxLength);
    this.resetPatience();
    // The text need not wait for the drafter to have read the prompt: until then the edge writes alone.
    Promise.resolve(this.drafter.prepare([...this.session.committed])).catch((error) => this.lost?.(error));
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
    this.endWait();
  }

  /** Make the next attempt to reach the edge at once, if the client waits before it. */
  hurry() {
    this.endWait();
  }

  /** Connect anew, because the connection may have died unnoticed: the phone slept, or its network changed. */
  reconnect() {
    this.lost?.(new LinkLostError("connecting anew"));
    this.endWait();
  }

  resetPatience() {
    this.failures = 0; // since the text last grew
    this.awayMs = 0; // time without an edge, as far as attempts were made
    this.silentMs = 0; // part of it: on open connections of the present session
    this.failedAt = null; // when the newest attempt failed
    this.delayMs = 0; // delay after which the next attempt was due
  }

  /** Add what has passed since the newest attempt failed; while a page slept, it made none. */
  countAbsence() {
    if (this.failedAt !== null) this.awayMs += Math.min(Date.now() - this.failedAt, this.delayMs + WELCOME_TIMEOUT_MS);
  }

  /** One connection, from its greeting to the end of the text; an error says why it ended before. */
  connection() {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(this.url);
      let timer;
      const fall = () => {
        const silent = (ms) => {
          this.awayMs += ms;
          this.silentMs += ms;
        };
        if (this.isGreeting()) {
          if (this.session.stage.welcomed) silent(WELCOME_TIMEOUT_MS);
          return this.lost(new LinkLostError("no answer to a greeting"));
        }
        if (this.session.wantsDraft) return this.listen(); // it is the device's turn
        silent(this.patience.silenceMs);
        return this.lost(new SilentError("it sends nothing about this text"));
      };
      this.listen = () => {
        clearTimeout(timer);
        timer = setTimeout(fall, this.isGreeting() ? WELCOME_TIMEOUT_MS : this.patience.silenceMs);
      };
      const settle = (end) => (value) => {
        clearTimeout(timer);
        this.listen = () => {};
        socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
        if (!this.session.finish) socket.close();
        end(value);
      };
      const finished = settle(resolve);
      this.lost = settle(reject);
      this.socket = socket;
      this.listen();
      socket.binaryType = "arraybuffer";
      socket.onopen = () => this.send(this.session.greet());
      socket.onclose = ({ code } = {}) => this.lost(new LinkLostError(code ? `the edge closed the connection with code ${code}` : "the connection was lost"));
      socket.onerror = () => this.lost(new LinkLostError("the connection was lost"));
      socket.onmessage = ({ data }) => {
        try {
          if (typeof data === "string") throw new InputError("the edge sent text, not a message of this protocol");
          this.take(decode(new Uint8Array(data)));
          this.listen();
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
    if (session.tellsOfPasses(message)) {
      this.awayMs -= this.silentMs; // that was a long pass
      this.silentMs = 0;
    }
    const progress = session.receive(message);
    if (message.type === "Welcome") {
      this.known = true;
      this.countAbsence();
      this.failedAt = null; // time on a connection does not count
      if (session.stage.name === "Welcomed") this.send(session.open());
    }
    if (progress.tokens.length) this.resetPatience();
    if (progress.tokens.length && !progress.drafted) this.silence.written(progress.tokens.length, session.committed.length, session.rests);
    const offer = ["Grant", "Window"].includes(message.type) ? message : message.grant;
    if (offer) this.silence.offer(offer.length);
    if (progress.tokens.length || progress.finish) this.onProgress(progress);
    const unsent = session.unsent();
    if (unsent) this.send(unsent);
    this.goOn();
  }

  /** Draft what may be drafted now, and send what is drafted. */
  goOn() {
    const { session } = this;
    for (let chunk = session.chunk(); chunk; chunk = session.chunk()) this.send(chunk);
    if (session.wantsDraft) this.startDrafting({ round: session.grant.round, base: session.committed.length });
    else if (session.roomAhead > 0) this.startDrafting({ epoch: session.epoch });
    else if (session.stage.name === "Streaming" && this.drafting && this.drafting.epoch !== session.epoch) this.abandon();
  }

  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send(encode(message));
    this.listen();
  }

  isGreeting() {
    return ["Greeting", "Resuming"].includes(this.session.stage.name);
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
    const how = this.howFar(error);
    session.lose();
    if (error instanceof RefusedError) {
      this.abandon();
      session.forgetEdge();
      this.silentMs = 0; // another session's passes say nothing of it
    }
    const limit = this.known ? patience.onceKnownMs : patience.atFirstMs;
    this.countAbsence();
    this.failedAt = Date.now();
    const left = limit - this.awayMs;
    if (left < 0 && error instanceof RefusedError && !(error instanceof SessionGoneError)) throw error;
    if (left < 0) throw new InputError(`${how}: ${error.message}`);
    const chance = Math.random(); // so that many devices do not come back at once
    const asked = 1e3 * (error.retryAfter ?? 0) * (1 + 0.25 * chance);
    const delay = Math.min(left + 1, Math.max(pauseMs((this.failures += 1), patience, chance), asked)); // then it is over
    this.delayMs = delay;
    this.onOutage(error.message, delay);
    let timer;
    await new Promise((resolve) => {
      this.endWait = resolve;
      timer = setTimeout(resolve, delay);
    });
    clearTimeout(timer);
  }

  /** How far the last attempt came, for whoever is told that the client gives up. */
  howFar(error) {
    const { stage } = this.session;
    if (error instanceof SilentError) return `the edge at ${this.url} keeps the connection open but does not go on`;
    if (stage.name === "Greeting" || (stage.name === "Resuming" && !stage.welcomed)) {
      return `the server at ${this.url} takes connections, but does not answer as an edge`;
    }
    if (stage.name === "Away" && !(error instanceof SessionGoneError)) return `cannot reach the edge at ${this.url}`;
    return `the edge at ${this.url} greets this device, and then does not keep its session`;
  }

  // Drafting --------------------------------------------------------------------------------------------------------

  /**
   * Draft for the open grant or on in the stream, unless that is being done already; an older draft is given up.
   *
   * @param {{round: number, base: number}|{epoch: number}} what
   */
  startDrafting(what) {
    const under = this.drafting;
    if (under && !under.abort.signal.aborted && under.round === what.round && under.base === what.base && under.epoch === what.epoch) return;
    this.abandon();
    const next = { ...what, abort: new AbortController() };
    const work = () => (what.epoch === undefined ? this.draftFor(next) : this.draftOn(next));
    const before = under?.done ?? Promise.resolve();
    next.done = before
      .then(() => (next.abort.signal.aborted ? undefined : work()))
      .catch((error) => this.lost(error))
      .finally(() => {
        if (this.drafting === next) this.drafting = null;
      });
    this.drafting = next;
  }

  abandon() {
    this.drafting?.abort.abort();
  }

  /** Draft for a grant, and answer it. */
  async draftFor(mine) {
    const { session } = this;
    const began = performance.now();
    const { signal } = mine.abort;
    const drafted = await this.drafter.draft([...session.committed], session.grant.length, session.params, signal);
    if (!signal.aborted) this.silence.asked(drafted.length);
    if (signal.aborted || session.grant?.round !== mine.round || session.committed.length !== mine.base) return;
    const size = session.welcome.vocabulary_size; // a drafter may know special tokens that the edge's target lacks
    const beyond = drafted.findIndex((id) => id >= size);
    const draft = session.answer(beyond < 0 ? drafted : drafted.slice(0, beyond), (performance.now() - began) / 1e3);
    if (session.joined) this.send(draft);
  }

  /** Draft on in a stream, a frame at a time, while its chain lives and its window has room. */
  async draftOn(mine) {
    const { session } = this;
    const { signal } = mine.abort;
    while (!signal.aborted && session.epoch === mine.epoch && session.roomAhead > 0) {
      const ahead = session.ahead;
      const count = Math.min(session.roomAhead, session.stage.window.chunk);
      const began = performance.now();
      const ids = await this.drafter.draft(ahead, count, session.params, signal);
      if (signal.aborted && !ids.length) return;
      this.silence.asked(ids.length);
      session.drafted(mine.epoch, ahead.length, ids, (performance.now() - began) / 1e3);
      for (let chunk = session.chunk(); chunk; chunk = session.chunk()) this.send(chunk);
    }
  }
}
