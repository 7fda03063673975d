/**
 * The device's half of a session: the text that it owns and the draft that it owes. No sockets, no clocks, no model.
 *
 * The device keeps prompt and committed tokens itself. After a lost connection it resumes; after a lost edge it opens again
 * from where it stood: nothing but time is lost. Everything that the edge says is checked here, so that an edge which
 * breaks the protocol ends the request with one sentence. The rules `greedy` and `coupled` are spoken, not the rejection
 * rules.
 *
 *     Away ──greet──► Greeting ──Welcome──► Welcomed ──open──► Waiting ◄─► Granted ──answer──► Drafted ──► … Ended
 *       ▲    └─────► Resuming ──Welcome, Tail──────────────────► one of the three, as the edge says
 *       └── any stage whose connection is lost; what was under way is kept inside
 */
import { InputError, RefusedError, SessionGoneError } from "./errors.js";
import { packIds, unpackIds } from "./ids.js";
import { encode, isDownlink, MAX_FRAME_BYTES, PROTOCOL_VERSION } from "./messages.js";
import { TextStream } from "./text.js";

const WORK = new Set(["Waiting", "Granted", "Drafted", "Ended"]);
/** Refusals of a Resume after which the device greets anew and opens from where it stands. */
const GONE = new Set(["unknown-session", "no-request", "ahead"]);

/**
 * @typedef {object} Request one prompt and how it is to become a text
 * @property {number[]} prompt token ids, at least one
 * @property {number} maxTokens most tokens to generate
 * @property {number} [minTokens] no stop id and no stop string ends the text before so many tokens; default 0
 * @property {number[]} [stopIds] ids that end the text and stay in it
 * @property {string[]} [stopStrings] texts that end the text before them; looked for here, not sent
 * @property {number} [temperature] default 0
 * @property {number} [topK] default 0, all
 * @property {number} [topP] default 1, all
 * @property {number|bigint|null} [seed] default the edge's
 * @property {[number, number][]} [logitBias]
 */

/**
 * @typedef {object} Progress what a message from the edge changed
 * @property {number[]} tokens new tokens
 * @property {number} accepted how many of them, the first ones, had been drafted here
 * @property {number} drafted how many tokens had been drafted in all
 * @property {string} finish "stop" or "length" at the end of the text, else empty
 * @property {string} text text that became final; empty without a token table
 */

/** What a device keeps of its session. */
export class DeviceSession {
  /**
   * @param {object} hello the Hello with which this device introduces itself
   * @param {import("./text.js").TokenTable} [table] bytes of the target's tokens; needed for a text and for stop strings
   */
  constructor(hello, table) {
    this.hello = hello;
    this.table = table;
    /** @type {object|null} the edge's answer; null while no edge knows this device */
    this.welcome = null;
    /** @type {Request|null} */
    this.request = null;
    /** @type {number[]} prompt and generated ids */
    this.committed = [];
    /** The final text so far. */
    this.text = "";
    this.stage = { name: "Away", kept: null };
    this.stream = null;
  }

  // What stands -----------------------------------------------------------------------------------------------------

  /** @returns {number[]} the text so far, as ids */
  get generated() {
    return this.committed.slice(this.request.prompt.length);
  }

  /** @returns {string} why the text ended, "stop" or "length"; empty while it goes on */
  get finish() {
    return this.work?.name === "Ended" ? this.work.finish : "";
  }

  /** @returns {object|null} the grant whose draft is still to be made, kept over a lost connection */
  get grant() {
    return this.work?.name === "Granted" ? this.work.grant : null;
  }

  /** @returns {boolean} whether edge and device stand at the same place of an open request */
  get joined() {
    return WORK.has(this.stage.name);
  }

  /** @returns {boolean} whether an open grant asks for tokens, on a connection that holds */
  get wantsDraft() {
    return this.stage.name === "Granted" && this.stage.grant.length > 0;
  }

  /** @returns {import("./draw.js").Params} the sampling parameters in effect */
  get params() {
    const request = this.request;
    return {
      temperature: request.temperature ?? 0,
      topK: request.topK ?? 0,
      topP: request.topP ?? 1,
      seed: request.seed ?? 0,
      logitBias: request.logitBias ?? [],
      withheld: request.stopIds ?? [],
      withheldUntil: request.prompt.length + (request.minTokens ?? 0),
    };
  }

  // What outlives the process ---------------------------------------------------------------------------------------

  /** @returns {object|null} what `restore` needs to go on with an open request, as JSON values; null without one */
  save() {
    if (!this.request || this.finish) return null;
    const { request, welcome } = this;
    const plain = (value) => (typeof value === "bigint" ? String(value) : value);
    return {
      request: { ...request, seed: plain(request.seed ?? null) },
      generated: this.generated,
      welcome: welcome && { ...welcome, seed: plain(welcome.seed) },
    };
  }

  /**
   * Go on with a request that another process began (a page that was loaded anew).
   *
   * @param {object} saved from `save`
   */
  restore(saved) {
    const seed = (value) => (typeof value === "string" ? BigInt(value) : value);
    this.begin({ ...saved.request, seed: seed(saved.request.seed) }, saved.generated);
    if (!saved.welcome) return;
    this.welcome = { ...saved.welcome, seed: seed(saved.welcome.seed) };
    this.stage = { name: "Away", kept: { name: "Waiting" } };
  }

  // What the device does --------------------------------------------------------------------------------------------

  /**
   * Set the next request; `open` puts it on the wire.
   *
   * @param {Request} request
   * @param {number[]} [generated] what was generated of it already, by an edge or a page that was lost
   */
  begin(request, generated = []) {
    if (["Waiting", "Granted", "Drafted"].includes(this.stage.name)) {
      throw new Error("the request before is still open: let it end, or forget the edge");
    }
    if (request.stopStrings?.length && !this.table) throw new InputError("stop strings need a table of the target's tokens");
    if (!request.prompt.length) throw new InputError("the prompt is empty");
    this.request = { ...request };
    this.committed = [...request.prompt, ...generated];
    this.stream = this.table ? new TextStream(this.table, request.stopStrings, request.minTokens) : null;
    this.text = this.stream ? this.stream.push(generated) : "";
    this.stage = ["Ended", "Welcomed"].includes(this.stage.name) ? { name: "Welcomed" } : { name: "Away", kept: null };
  }

  /** @returns {object} the first message on a new connection: a Resume if a request is open at the edge, else a Hello */
  greet() {
    this.lose();
    const work = this.work;
    if (this.welcome && work && work.name !== "Ended") {
      this.stage = { name: "Resuming", kept: work, welcomed: false };
      return { type: "Resume", version: PROTOCOL_VERSION, resume_token: this.welcome.resume_token, length: this.committed.length };
    }
    this.forgetEdge();
    this.stage = { name: "Greeting" };
    return this.hello;
  }

  /** @returns {object} the Open of the request as it stands; InputError if it does not fit this edge */
  open() {
    if (this.stage.name !== "Welcomed") throw new Error("a request is opened after the edge's Welcome, and once");
    const { welcome, request } = this;
    if (request.seed === undefined || request.seed === null) request.seed = welcome.seed;
    const needed = request.prompt.length + request.maxTokens;
    if (needed > welcome.max_length) {
      throw new InputError(
        `${request.prompt.length} prompt tokens and ${request.maxTokens} to generate make ${needed}, over this edge's ` +
          `limit of ${welcome.max_length}: shorten the prompt or ask for fewer tokens`,
      );
    }
    const message = {
      type: "Open",
      session: welcome.session,
      prompt: packIds(this.committed, welcome.vocabulary_size),
      prompt_tokens: this.committed.length,
      max_tokens: request.maxTokens,
      temperature: request.temperature ?? 0,
      top_k: request.topK ?? 0,
      top_p: request.topP ?? 1,
      seed: request.seed,
      stop_ids: request.stopIds ?? [],
      continued: this.committed.length - request.prompt.length,
      rule: (request.temperature ?? 0) === 0 ? "greedy" : "coupled",
      min_tokens: request.minTokens ?? 0,
      logit_bias: request.logitBias ?? [],
    };
    const size = encode(message).length;
    if (size > MAX_FRAME_BYTES) throw new InputError(`a prompt of ${this.committed.length} tokens is over the largest message`);
    this.stage = { name: "Waiting" };
    return message;
  }

  /**
   * The draft that answers the open grant. Without a connection it is kept for `unsent`.
   *
   * @param {number[]} ids drafted tokens, at most as many as were granted
   * @param {number} draftSeconds time that it took [s]
   * @returns {object} the Draft
   */
  answer(ids, draftSeconds) {
    const grant = this.grant;
    if (!grant) throw new Error("no grant is open");
    if (ids.length > grant.length) throw new Error(`${ids.length} tokens were drafted for a grant of ${grant.length}`);
    const message = {
      type: "Draft",
      session: this.welcome.session,
      round: grant.round,
      base: this.committed.length,
      length: ids.length,
      payload: packIds(ids, this.welcome.vocabulary_size),
      draft_us: Math.min(Math.round(draftSeconds * 1e6), 2 ** 32 - 1),
      head: null,
    };
    this.proceed({ name: "Drafted", message, ids: [...ids], sent: this.joined });
    return message;
  }

  /** @returns {object|null} the draft that the edge waits for and that this connection has not carried */
  unsent() {
    if (this.stage.name !== "Drafted" || this.stage.sent) return null;
    this.stage = { ...this.stage, sent: true };
    return this.stage.message;
  }

  /** The connection is lost, at whatever stage; the text and what is under way are kept. */
  lose() {
    this.stage = { name: "Away", kept: this.work };
  }

  /** The session ends here: its edge is lost, or does not know it any more. The text is kept. */
  forgetEdge() {
    const work = this.work;
    this.welcome = null;
    this.stage = { name: "Away", kept: work?.name === "Ended" ? work : null };
  }

  // What the edge says ----------------------------------------------------------------------------------------------

  /**
   * Take in a message.
   *
   * @param {object} message from `decode`
   * @returns {Progress} SessionGoneError, RefusedError or InputError where the session cannot go on
   */
  receive(message) {
    const stage = this.stage;
    if (!isDownlink(message)) throw new InputError(`the edge sent a ${message.type}, which only devices send`);
    if (message.type === "Error") {
      if (stage.name === "Resuming" && GONE.has(message.code)) {
        this.forgetEdge();
        throw new SessionGoneError(message.code, message.sentence);
      }
      throw new RefusedError(message.code, message.sentence);
    }
    if (message.type === "Welcome") {
      this.welcomed(message);
      return progress();
    }
    if (!this.welcome || message.session !== this.welcome.session) {
      throw new InputError(`the edge sent a ${message.type} of session ${message.session}, not ours`);
    }
    if (message.type === "Tail" && stage.name === "Resuming" && stage.welcomed) {
      this.stage = stage.kept;
      return this.tail(message);
    }
    if (stage.name === "Ended") return progress({ finish: stage.finish }); // it was on its way when the text ended
    if (!WORK.has(stage.name)) throw new InputError(`the edge sent a ${message.type} before it was due`);
    switch (message.type) {
      case "Grant":
        this.stage = this.granted(message);
        return progress();
      case "Verdict":
        return this.verdict(message);
      case "Tail":
        return this.tail(message);
      default:
        throw new InputError(`the edge sent a ${message.type}, which is for the rejection rules`);
    }
  }

  welcomed(welcome) {
    const { stage } = this;
    if (welcome.vocabulary_size < 1 || welcome.max_length < 1) {
      throw new InputError("the edge's Welcome names an empty vocabulary or no room for a text");
    }
    if (stage.name === "Greeting") this.stage = { name: "Welcomed" };
    else if (stage.name === "Resuming" && !stage.welcomed) {
      if (welcome.session !== this.welcome.session || welcome.vocabulary_size !== this.welcome.vocabulary_size) {
        throw new InputError("the edge resumed another session than ours");
      }
      this.stage = { ...stage, welcomed: true };
    } else throw new InputError("the edge sent a Welcome in the middle of a session");
    this.welcome = welcome;
  }

  /** The stage after a grant: a draft that answers it already is to be sent again. */
  granted(grant) {
    const { stage } = this;
    if (grant.session !== this.welcome.session || !Number.isFinite(grant.bandwidth_hz)) {
      throw new InputError(`the edge granted a band of ${grant.bandwidth_hz} Hz to session ${grant.session}`);
    }
    const fits =
      stage.name === "Drafted" &&
      stage.message.round === grant.round &&
      stage.message.base === this.committed.length &&
      stage.message.length <= grant.length;
    return fits ? { ...stage, sent: false } : { name: "Granted", grant };
  }

  verdict(verdict) {
    if (verdict.base < this.committed.length) return progress({ finish: this.finish }); // a repeated answer
    const { stage } = this;
    const drafted = stage.name === "Drafted" && stage.message.base === verdict.base ? stage.ids : [];
    if (verdict.base > this.committed.length || verdict.accepted > drafted.length) {
      throw new InputError(`the edge accepted ${verdict.accepted} tokens at ${verdict.base} that were never sent`);
    }
    if (verdict.offer.length) throw new InputError("the edge made an offer, which is for a rejection rule");
    return this.advance([...drafted.slice(0, verdict.accepted), verdict.next_token], verdict.accepted, drafted.length, verdict);
  }

  tail(tail) {
    const known = this.committed.length;
    if (!(this.request.prompt.length <= tail.base && tail.base <= known)) {
      throw new InputError(`the edge sent a tail from ${tail.base} to a text of ${known} tokens`);
    }
    const ids = unpackIds(tail.ids, tail.count, this.welcome.vocabulary_size);
    return this.advance(ids.slice(known - tail.base), 0, 0, tail);
  }

  /** Commit tokens, and go to the stage that the message leads to. */
  advance(tokens, accepted, drafted, message) {
    const { request, welcome } = this;
    const known = this.committed.length - request.prompt.length;
    if (known + tokens.length > request.maxTokens) {
      throw new InputError(`the edge sent more than the ${request.maxTokens} tokens that were asked for`);
    }
    const beyond = tokens.find((token) => token >= welcome.vocabulary_size);
    if (beyond !== undefined) {
      throw new InputError(`the edge sent token ${beyond}, which is outside its vocabulary of ${welcome.vocabulary_size}`);
    }
    if (!["", "stop", "length"].includes(message.finish)) {
      throw new InputError(`the edge ended the text for a reason that is not known here: ${message.finish}`);
    }
    this.committed.push(...tokens);
    let { finish } = message;
    let text = "";
    if (this.stream) {
      text = this.stream.push(tokens);
      if (this.stream.stopped) {
        finish = "stop";
        tokens = tokens.slice(0, this.stream.tokens - known);
        this.committed.length = request.prompt.length + this.stream.tokens;
      }
      if (finish) text += this.stream.end();
      this.text += text;
    }
    this.stage = this.next(finish, message.grant);
    return progress({ tokens, accepted: Math.min(accepted, tokens.length), drafted, finish, text });
  }

  next(finish, grant) {
    const { stage } = this;
    if (finish) return { name: "Ended", finish };
    if (grant) return this.granted(grant);
    // Without a new grant the edge still has the draft that it was sent, unless it has decided it.
    const undecided = stage.name === "Drafted" && stage.sent && stage.message.base === this.committed.length;
    return undecided ? stage : { name: "Waiting" };
  }

  // -----------------------------------------------------------------------------------------------------------------

  /** What is under way, whatever has become of the connection. */
  get work() {
    const { stage } = this;
    if (stage.name === "Away" || stage.name === "Resuming") return stage.kept;
    return WORK.has(stage.name) ? stage : null;
  }

  proceed(work) {
    const { stage } = this;
    this.stage = stage.name === "Away" || stage.name === "Resuming" ? { ...stage, kept: work } : work;
  }
}

/** @returns {Progress} */
function progress(changed = {}) {
  return { tokens: [], accepted: 0, drafted: 0, finish: "", text: "", ...changed };
}
