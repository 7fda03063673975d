/**
 * What edge and device say to each other. Each message is a MessagePack array: its number, then its fields in order.
 *
 * A message is a plain object here: `{ type: "Grant", session: 1, round: 3, length: 4, bandwidth_hz: 2e4 }`. `FIELDS` is
 * the whole protocol as a table; docs/protocol.md says what the fields mean.
 */
import { InputError, withArticle } from "./errors.js";
import { Float, pack, unpack } from "./msgpack.js";

export const PROTOCOL_VERSION = 3;
export const SESSION_PATH = "/v1/session";
export const MAX_FRAME_BYTES = 256 * 1024;
/** Most messages that a device takes from an edge since its text last grew; one that waits for 40 hours gets fewer. */
export const MAX_MESSAGES_WITHOUT_TOKENS = 10_000;
export const MAX_DRAFT_LENGTH = 63;
export const MAX_STOP_IDS = 16;

const MAX_BIASES = 300;
const MAX_SCORED_TAIL = 512;
const RULES = ["greedy", "coupled", "rejection", "rejection-up", "rejection-down"];

const same = (value) => value;
/** A kind of field: how its value is checked, and how it is turned into a MessagePack value and back, before the check. */
const kind = (name, holds, write = same, read = same) => ({ name, holds, write, read });
/** A MessagePack number as a JavaScript number; anything else stays what it is, and is refused. */
const toNumber = (raw) => (raw instanceof Float ? raw.value : typeof raw === "bigint" ? Number(raw) : raw);
const each = (read) => (raw) => (Array.isArray(raw) ? raw.map(read) : raw);
const integer = (least, most) => (value) =>
  (Number.isInteger(value) || typeof value === "bigint") && value >= least && value <= most;
const text = (most) => (value) => typeof value === "string" && [...value].length <= most;
const isNumber = (value) => typeof value === "number";
const number = (least, most) => (value) => isNumber(value) && value >= least && value <= most;
const float = (least, most) => kind(`a number in ${least} … ${most}`, number(least, most), (value) => new Float(value), toNumber);
const pair = (first, second) => (value) => Array.isArray(value) && value.length === 2 && first(value[0]) && second(value[1]);
const list = (most, holds) => (value) => Array.isArray(value) && value.length <= most && value.every(holds);

const count = kind("a whole number", integer(0, 2 ** 31 - 1));
const tokens = kind("a number of tokens", integer(1, 2 ** 20));
const draftLength = kind(`a length of 0 … ${MAX_DRAFT_LENGTH}`, integer(0, MAX_DRAFT_LENGTH));
const someTokens = kind(`1 … ${MAX_DRAFT_LENGTH} tokens`, integer(1, MAX_DRAFT_LENGTH));
const microseconds = kind("microseconds", integer(0, 2 ** 32 - 1));
const seed = kind("a seed", integer(0n, 2n ** 64n - 1n));
const name = kind("a text of at most 80 characters", text(80));
const sentence = kind("a text of at most 1000 characters", text(1000));
const credential = kind("a text of at most 256 characters", text(256));
const bool = kind("true or false", (value) => typeof value === "boolean");
const bytes = kind("bytes", (value) => value instanceof Uint8Array);
const anyNumber = kind("a number", isNumber, (value) => new Float(value), toNumber);
const rule = kind("an acceptance rule or nil", (value) => value === null || RULES.includes(value));
const token = kind("a token id or nil", (value) => value === null || integer(0, 2 ** 31 - 1)(value));
const stopIds = kind("stop ids", list(MAX_STOP_IDS, integer(0, 2 ** 31 - 1)));
const newIds = kind("token ids", list(MAX_DRAFT_LENGTH + 1, integer(0, 2 ** 31 - 1)));
const grammar = kind("a text", text(2 ** 16));
const logprobs = kind("0 … 20 or nil", (value) => value === null || integer(0, 20)(value));
/** [id, number] pairs, as they are written and read. */
const writePair = ([id, value]) => [id, new Float(value)];
const readPair = (raw) => (Array.isArray(raw) ? [raw[0], ...raw.slice(1).map(toNumber)] : raw);
/** A score is [log probability, [[id, log probability], …]]; the second may be missing in a frame. */
const isLogprob = number(-9999, 0);
const isScore = pair(isLogprob, list(20, pair(integer(0, 2 ** 31 - 1), isLogprob)));
const writeScore = ([own, others]) => [new Float(own), others.map(writePair)];
const readScore = (raw) =>
  Array.isArray(raw) && raw.length ? [toNumber(raw[0]), raw.length > 1 ? each(readPair)(raw[1]) : [], ...raw.slice(2)] : raw;
const scores = (most) => kind("log probabilities", list(most, isScore), (value) => value.map(writeScore), each(readScore));
const profile = kind(
  "[seconds per token, bit/s/Hz]",
  pair(number(1e-9, 3600), number(1e-9, 1000)),
  (value) => value.map((each) => new Float(each)),
  (raw) => (Array.isArray(raw) ? raw.slice(0, 2).map(toNumber) : raw),
);
const biases = kind(
  "pairs of a token id and a bias",
  list(MAX_BIASES, pair(integer(0, 2 ** 31 - 1), isNumber)),
  (value) => value.map(writePair),
  each(readPair),
);
const grantOrNil = kind(
  "a Grant or nil",
  (value) => value === null || value.type === "Grant",
  (value) => (value === null ? null : toArray(value)),
  (raw) => (Array.isArray(raw) ? fromArray(raw) : raw),
);

/** number: [type, from, {field: kind}, {field: value where it is missing at the end}] */
const TABLE = {
  1: ["Hello", "device", { version: count, fingerprint: name, name, drafter: name, drafts: bool, profile, credential }, { credential: "" }],
  2: ["Welcome", "edge", { session: count, resume_token: name, seed, vocabulary_size: count, max_length: count, resume_grace_s: float(0, 3600) }, {}],
  3: ["Open", "device", {
    session: count, prompt: bytes, prompt_tokens: tokens, max_tokens: tokens, temperature: anyNumber, top_k: count, top_p: anyNumber,
    seed, stop_ids: stopIds, continued: count, rule, retained: kind("1 … 4096", integer(1, 4096)),
    probability_bits: kind("2 … 32", integer(2, 32)), min_tokens: count, logit_bias: biases,
    min_p: anyNumber, presence_penalty: anyNumber, frequency_penalty: anyNumber, repetition_penalty: anyNumber,
    grammar, logprobs,
  }, { stop_ids: [], continued: 0, rule: null, retained: 1024, probability_bits: 16, min_tokens: 0, logit_bias: [],
    min_p: 0, presence_penalty: 0, frequency_penalty: 0, repetition_penalty: 1, grammar: "", logprobs: null }],
  4: ["Grant", "edge", { session: count, round: count, length: draftLength, bandwidth_hz: float(0, Infinity) }, {}],
  5: ["Draft", "device", { session: count, round: count, base: count, length: draftLength, payload: bytes, draft_us: microseconds, head: token }, { head: null }],
  6: ["Verdict", "edge", {
    session: count, round: count, base: count, accepted: count, next_token: count, finish: name, grant: grantOrNil, offer: bytes,
    scores: scores(MAX_DRAFT_LENGTH + 1),
  }, { finish: "", grant: null, offer: new Uint8Array(), scores: [] }],
  7: ["Tail", "edge", { session: count, base: count, ids: bytes, count, finish: name, grant: grantOrNil, scores: scores(MAX_SCORED_TAIL) }, { finish: "", grant: null, scores: [] }],
  8: ["Resume", "device", { version: count, resume_token: name, length: count, credential }, { credential: "" }],
  9: ["Close", "device", { session: count }, {}],
  10: ["Error", "edge", { code: name, sentence, retry_after_s: float(0, 3600) }, { retry_after_s: 0 }],
  11: ["Ask", "edge", { session: count, round: count, accepted: count }, {}],
  12: ["Distribution", "device", { session: count, round: count, accepted: count, distribution: bytes }, {}],
  13: ["Window", "edge", { session: count, length: draftLength, chunk: someTokens, bandwidth_hz: float(0, Infinity) }, {}],
  14: ["Chunk", "device", { epoch: count, start: count, length: someTokens, ids: bytes, draft_us: microseconds }, {}],
  15: ["Commit", "edge", { base: count, epoch: count, verified: draftLength, accepted: draftLength, ids: newIds, finish: name, scores: scores(MAX_DRAFT_LENGTH + 1) }, { finish: "", scores: [] }],
};
const NUMBER_OF = Object.fromEntries(Object.entries(TABLE).map(([tag, [type]]) => [type, Number(tag)]));

/**
 * @param {object} message with `type` and its fields; those with a default may be left out
 * @returns {Uint8Array} one binary frame
 */
export function encode(message) {
  return pack(toArray(message));
}

/**
 * @param {Uint8Array} frame
 * @returns {object} the message; InputError says what is wrong with the frame
 */
export function decode(frame) {
  if (frame.length > MAX_FRAME_BYTES) throw new InputError(`a frame of ${frame.length} bytes is over the limit of ${MAX_FRAME_BYTES}`);
  return fromArray(unpack(frame));
}

/** @returns {boolean} whether the edge sends messages of this type */
export function isDownlink(message) {
  return TABLE[NUMBER_OF[message.type]][1] === "edge";
}

function toArray(message) {
  const tag = NUMBER_OF[message.type];
  if (tag === undefined) throw new TypeError(`no message is called ${message.type}`);
  const [type, , fields, defaults] = TABLE[tag];
  const values = Object.entries(fields).map(([field, { name, holds, write }]) => {
    const value = message[field] === undefined ? defaults[field] : message[field];
    if (value === undefined || !holds(value)) throw new InputError(`${field} of ${type} is not ${name}: ${value}`);
    return write(value);
  });
  return [tag, ...values];
}

function fromArray(array) {
  const tag = Array.isArray(array) ? array[0] : undefined;
  if (typeof tag !== "number" || !Object.hasOwn(TABLE, tag)) throw new InputError("a frame is not a message of this protocol");
  const [type, , fields, defaults] = TABLE[tag];
  const message = { type };
  Object.entries(fields).forEach(([field, { name, holds, read }], place) => {
    const value = place + 1 < array.length ? read(array[place + 1]) : defaults[field];
    if (value === undefined || !holds(value)) throw new InputError(`${field} of ${withArticle(type)} is not ${name}`);
    message[field] = value;
  });
  return message;
}
