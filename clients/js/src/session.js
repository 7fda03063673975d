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
 *
 * Where the edge sends a Window in place of grants, Waiting becomes Streaming, until the text or the connection ends.
 */
import { InputError, RefusedError, SessionGoneError, withArticle } from "./errors.js";
import { packIds, unpackIds } from "./ids.js";
import { encode, isDownlink, MAX_FRAME_BYTES, MAX_MESSAGES_WITHOUT_TOKENS, PROTOCOL_VERSION } from "./messages.js";
import { Streaming } from "./stream.js";
import { TextStream } from "./text.js";
import { Thrift } from "./thrift.js";

const WORK = new Set(["Waiting", "Granted", "Drafted", "Streaming", "Ended"]);
const OPEN = new Set(["Waiting", "Granted", "Drafted", "Streaming"]);
/** Refusals of a Resume after which the device greets anew and opens from where it stands. */
const GONE = new Set(["unknown-session", "no-request", "ahead"]);

/** What a request may hold; anything else is refused, since it would be ignored. */
const REQUEST = new Set([
  "prompt", "maxTokens", "minTokens", "stopIds", "stopStrings", "temperature", "topK", "topP", "seed", "logitBias", "minP",
  "presencePenalty", "frequencyPenalty", "repetitionPenalty", "rule",
]);

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
 * @property {number} [minP]
 * @property {number} [presencePenalty]
 * @property {number} [frequencyPenalty]
 * @property {number} [repetitionPenalty]
 * @property {"greedy"|"coupled"|null} [rule] default and only choice: greedy at temperature 0, else coupled
 */

/**
 * @typedef {object} Progress what a message from the edge changed
 * @property {number[]} tokens new tokens
 * @property {number} accepted how many of them, the first ones, had been drafted here
 * @property {number} drafted how many tokens had been drafted in all
 * @property {string} finish "stop" or "length" at the end of the text, else empty
 * @property {string} text text that became final; empty without a token table
 * @property {number} wasted drafted tokens of a stream that nobody will verify any more
 * @property {string[]} texts the same, one for each of `tokens`; what a character or a stop string held back comes with
 *   the token that decides it
 */

/** The acceptance rule of a request. The rejection rules need distributions on the air, which this client does not send. */
const ruleOf = (request) => ((request.temperature ?? 0) === 0 ? "greedy" : "coupled");

/** What a device keeps of its session. */
export class DeviceSession {
  /**
   * @param {object} hello the Hello with which this device introduces itself
   * @param {import("./text.js").TokenTable} [table] bytes of the target's tokens; needed for a text and for stop strings
   * @param {number} [maxWastedShare] in a stream it drafts only so far ahead that no more than this share of its tokens is
   *   wasted, 0 … 1; default 1, as far as the edge allows
   */
  constructor(hello, table, maxWastedShare = 1) {
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
    /** Drafted tokens of the present request's stream that were never verified. */
    this.wasted = 0;
    this.wastedSeen = 0; // of them, those that the thrift has learned from
    this.thrift = new Thrift(maxWastedShare);
    /** Number of the newest chain of drafted tokens; each has a greater one than those before. */
    this.epoch = 0;
    /** Messages of the edge since the text last grew. */
    this.withoutTokens = 0;
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
      minP: request.minP ?? 0,
      presencePenalty: request.presencePenalty ?? 0,
      frequencyPenalty: request.frequencyPenalty ?? 0,
      repetitionPenalty: request.repetitionPenalty ?? 1,
      promptTokens: request.prompt.length,
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
    if (OPEN.has(this.stage.name)) {
      throw new Error("the last request is still open: let it end, or call forgetEdge");
    }
    if (request.stopStrings?.length && !this.table) throw new InputError("stop strings need a table of the target's tokens");
    if (!request.prompt.length) throw new InputError("the prompt is empty");
    const unknown = Object.keys(request).find((name) => !REQUEST.has(name));
    if (unknown) throw new InputError(`${unknown} is not known here: a request may hold ${[...REQUEST].join(", ")}`);
    const rule = ruleOf(request);
    if (![undefined, null, rule].includes(request.rule)) {
      throw new InputError(`this client does not speak the rule ${request.rule} at this temperature: leave it out for ${rule}`);
    }
    this.request = { ...request };
    this.committed = [...request.prompt, ...generated];
    this.stream = this.table ? new TextStream(this.table, request.stopStrings, request.minTokens) : null;
    this.text = this.stream ? this.stream.push(generated) : "";
    this.wasted = this.wastedSeen = this.withoutTokens = 0;
    this.stage = ["Ended", "Welcomed"].includes(this.stage.name) ? { name: "Welcomed" } : { name: "Away", kept: null };
  }

  /** @returns {object} the first message on a new connection: a Resume if a request is open at the edge, else a Hello */
  greet() {
    this.lose();
    const work = this.work;
    if (this.welcome && work && work.name !== "Ended") {
      this.stage = { name: "Resuming", kept: work, welcomed: false };
      return {
        type: "Resume",
        version: PROTOCOL_VERSION,
        resume_token: this.welcome.resume_token,
        length: this.committed.length,
        credential: this.hello.credential ?? "",
      };
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
      rule: ruleOf(request),
      min_tokens: request.minTokens ?? 0,
      logit_bias: request.logitBias ?? [],
      min_p: request.minP ?? 0,
      presence_penalty: request.presencePenalty ?? 0,
      frequency_penalty: request.frequencyPenalty ?? 0,
      repetition_penalty: request.repetitionPenalty ?? 1,
    };
    const size = encode(message).length;
    if (size > MAX_FRAME_BYTES) throw new InputError(`${this.committed.length} tokens make a message of ${size} bytes; the limit is ${MAX_FRAME_BYTES}: shorten the prompt`);
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

  /** The connection is lost, at whatever stage; the text and what is under way are kept, but for a stream. */
  lose() {
    let work = this.work;
    if (work instanceof Streaming) {
      this.wasted += work.ids.length;
      work = { name: "Waiting" };
    }
    this.stage = { name: "Away", kept: work };
  }

  /** The session ends here: its edge is lost, or does not know it any more. The text is kept. */
  forgetEdge() {
    this.lose();
    const work = this.work;
    this.welcome = null;
    this.stage = { name: "Away", kept: work?.name === "Ended" ? work : null };
  }

  // Streams ---------------------------------------------------------------------------------------------------------

  /** @returns {number} tokens that may be drafted ahead now, beside those that have been; 0 outside a stream */
  get roomAhead() {
    const { stage, request } = this;
    if (!(stage instanceof Streaming)) return 0;
    const left = request.maxTokens - (this.committed.length - request.prompt.length);
    return stage.room(left, request.stopIds ?? [], this.thrift.ahead);
  }

  /** @returns {boolean} whether it drafts nothing in a stream because it would waste too much */
  get rests() {
    return this.stage instanceof Streaming && this.thrift.ahead === 0;
  }

  /** @returns {number[]} the committed text and the drafted tokens behind it: what the next token is drafted after */
  get ahead() {
    return this.stage instanceof Streaming ? [...this.committed, ...this.stage.ids] : [...this.committed];
  }

  /**
   * Take in tokens that were drafted ahead.
   *
   * @param {number} epoch of the chain that they continue, as it was when they were begun
   * @param {number} start position of the first of them: the length of `ahead` then
   * @param {number[]} ids none where the drafter has nothing to say; an id outside the vocabulary ends them
   * @param {number} seconds time that they took
   */
  drafted(epoch, start, ids, seconds) {
    const { stage } = this;
    if (!(stage instanceof Streaming) || stage.epoch !== epoch) {
      this.wasted += ids.length;
      return;
    }
    const beyond = ids.findIndex((id) => id >= this.welcome.vocabulary_size);
    const end = beyond < 0 ? ids.length : beyond;
    this.wasted += ids.length - end + stage.take(start, ids.slice(0, end), seconds, this.committed);
    // If the text has grown beyond these tokens meanwhile, there is something new to draft after.
    stage.stuck = (!ids.length || end < ids.length) && start + end >= this.committed.length;
  }

  /** @returns {object|null} the next frame of the stream, if one is full or no more can be drafted */
  chunk() {
    const { stage } = this;
    if (!(stage instanceof Streaming)) return null;
    return stage.chunk(this.committed.length, this.roomAhead > 0, this.welcome.vocabulary_size);
  }

  streamed(window) {
    const { stage } = this;
    if (!Number.isFinite(window.bandwidth_hz)) throw new InputError(`the edge granted a band of ${window.bandwidth_hz} Hz`);
    if (stage instanceof Streaming) stage.window = window;
    else if (stage.name === "Waiting") this.beginChain(window);
    else throw new InputError("the edge sent a Window for a text that cannot stream now");
  }

  beginChain(window) {
    this.epoch += 1;
    this.stage = new Streaming(window, this.epoch);
  }

  /** Take in what a stream's pass has committed, and drop what was drafted if it says something else. */
  commit(commit) {
    if (commit.base < this.committed.length) return progress({ finish: this.finish }); // a repeated answer
    const { stage, wasted: before } = this;
    const ours = stage instanceof Streaming && stage.epoch === commit.epoch;
    const sent = ours ? stage.sent : 0;
    if (commit.base > this.committed.length || !(commit.accepted <= commit.verified && commit.verified <= sent)) {
      throw new InputError(
        `the edge accepted ${commit.accepted} of ${commit.verified} tokens at ${commit.base} that were never sent`,
      );
    }
    const tokens = [...(ours ? stage.ids.slice(0, commit.accepted) : []), ...commit.ids];
    const made = this.advance(tokens, commit.accepted, commit.verified, { ...commit, grant: null });
    if (stage instanceof Streaming) {
      const drafted = stage.ids.length;
      const goesOn = this.stage === stage;
      const followed = goesOn ? stage.follow(tokens) : null;
      if (followed === null) {
        // The text has ended, or says something else.
        this.wasted += drafted - commit.verified;
        if (goesOn) this.beginChain(stage.window);
      } else this.wasted += Math.max(0, followed - commit.verified);
      this.thrift.observe(commit.verified, this.wasted - this.wastedSeen, stage.window.length);
    }
    this.wastedSeen = this.wasted;
    return { ...made, wasted: this.wasted - before };
  }

  // What the edge says ----------------------------------------------------------------------------------------------

  /**
   * Whether a message that is about to be taken comes by itself, so that the edge's passes go on. What answers a Resume does
   * not: an edge says the same again without any pass.
   *
   * @param {object} message from `decode`
   * @returns {boolean}
   */
  tellsOfPasses(message) {
    if (message.type === "Tail") return this.joined;
    return message.type === "Grant" || (message.type === "Window" && this.stage.name === "Streaming");
  }

  /**
   * Take in a message.
   *
   * @param {object} message from `decode`
   * @returns {Progress} SessionGoneError, RefusedError or InputError where the session cannot go on
   */
  receive(message) {
    const made = this.takeIn(message);
    this.withoutTokens = made.tokens.length ? 0 : this.withoutTokens + 1;
    if (this.withoutTokens > MAX_MESSAGES_WITHOUT_TOKENS && !made.finish) {
      throw new InputError(`the edge has sent ${MAX_MESSAGES_WITHOUT_TOKENS} messages without a new token of this text: restart it, or give another address`);
    }
    return made;
  }

  takeIn(message) {
    const stage = this.stage;
    if (!isDownlink(message)) throw new InputError(`the edge sent ${withArticle(message.type)}, which only devices send`);
    if (message.type === "Error") {
      if (stage.name === "Resuming" && GONE.has(message.code)) {
        this.forgetEdge();
        throw new SessionGoneError(message.code, message.sentence, message.retry_after_s);
      }
      throw new RefusedError(message.code, message.sentence, message.retry_after_s);
    }
    if (message.type === "Welcome") {
      this.welcomed(message);
      return progress();
    }
    if (message.type === "Commit") {
      if (["Streaming", "Waiting"].includes(stage.name)) return this.commit(message);
      if (stage.name === "Ended") return progress({ finish: stage.finish }); // it was on its way when the text ended
      throw new InputError("the edge sent a Commit, which is not allowed at this stage");
    }
    if (!this.welcome || message.session !== this.welcome.session) {
      throw new InputError(`the edge sent ${withArticle(message.type)} of session ${message.session}, not ours`);
    }
    if (message.type === "Tail" && stage.name === "Resuming" && stage.welcomed) {
      this.stage = stage.kept;
      return this.tail(message);
    }
    if (stage.name === "Ended") return progress({ finish: stage.finish }); // it was on its way when the text ended
    if (!WORK.has(stage.name)) throw new InputError(`the edge sent ${withArticle(message.type)}, which is not allowed at this stage`);
    const known = message.type === "Verdict" && message.base < this.committed.length; // a repeated answer
    if (stage instanceof Streaming && message.type !== "Window" && !known) {
      throw new InputError(`the edge sent ${withArticle(message.type)} for a text that streams`);
    }
    switch (message.type) {
      case "Window":
        this.streamed(message);
        return progress();
      case "Grant":
        this.stage = this.granted(message);
        return progress();
      case "Verdict":
        return this.verdict(message);
      case "Tail":
        return this.tail(message);
      default:
        throw new InputError(`the edge sent ${withArticle(message.type)}, which is for the rejection rules`);
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
    const scores = tail.scores?.slice(known - tail.base); // those of known tokens say nothing new
    return this.advance(ids.slice(known - tail.base), 0, 0, { ...tail, scores });
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
    if (message.scores?.length) throw new InputError("the edge sent log probabilities, which were not asked for");
    if (!["", "stop", "length"].includes(message.finish)) {
      throw new InputError(`the edge ended the text for the unknown reason ${message.finish}`);
    }
    this.committed.push(...tokens);
    let { finish } = message;
    const texts = tokens.map((token) => this.stream?.push([token]) ?? "");
    if (this.stream) {
      if (this.stream.stopped) {
        finish = "stop";
        tokens = tokens.slice(0, this.stream.tokens - known);
        this.committed.length = request.prompt.length + this.stream.tokens;
      }
      if (finish && texts.length) texts[texts.length - 1] += this.stream.end();
      else if (finish) texts.push(this.stream.end());
    }
    const text = texts.join("");
    this.text += text;
    this.stage = this.next(finish, message.grant);
    return progress({ tokens, accepted: Math.min(accepted, tokens.length), drafted, finish, text, texts });
  }

  next(finish, grant) {
    const { stage } = this;
    if (finish) return { name: "Ended", finish };
    if (grant) return this.granted(grant);
    if (stage instanceof Streaming) return stage;
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
  return { tokens: [], accepted: 0, drafted: 0, wasted: 0, finish: "", text: "", texts: [], ...changed };
}
