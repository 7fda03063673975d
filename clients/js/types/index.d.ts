/** Types of multispin-device: what an app uses. The comments in src/ say more. */

export declare const PROTOCOL_VERSION: number;
export declare const SESSION_PATH: string;
export declare const MAX_FRAME_BYTES: number;
export declare const MAX_DRAFT_LENGTH: number;
export declare const MAX_MESSAGES_WITHOUT_TOKENS: number;
export declare const MAX_STOP_IDS: number;

/** How a device introduces itself. */
export interface Hello {
  type: "Hello";
  version: number;
  /** 16 hexadecimal digits: the fingerprint of the target's tokenizer. */
  fingerprint: string;
  name: string;
  drafter: string;
  /** Whether it drafts at all. */
  drafts: boolean;
  /** Seconds per drafted token, and bit/s/Hz of the uplink: first guesses, the edge measures both. */
  profile: [secondsPerToken: number, bitsPerSecondPerHertz: number];
  credential?: string;
}

/** How an edge greets a device. */
export interface Welcome {
  type: "Welcome";
  session: number;
  resume_token: string;
  seed: number | bigint;
  vocabulary_size: number;
  /** Most tokens of a text, prompt included. */
  max_length: number;
  resume_grace_s: number;
}

/** Any message of the protocol: its name in `type`, and its fields as docs/protocol.md names them. */
export interface Message {
  type: string;
  [field: string]: unknown;
}

/** One prompt, and how it is to become a text. Only `prompt` and `maxTokens` are needed. */
export interface Request {
  prompt: number[];
  maxTokens: number;
  minTokens?: number;
  stopIds?: number[];
  stopStrings?: string[];
  temperature?: number;
  topK?: number;
  topP?: number;
  /** null or absent: the edge's */
  seed?: number | bigint | null;
  logitBias?: [id: number, bias: number][];
  minP?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  repetitionPenalty?: number;
  rule?: "greedy" | "coupled" | null;
}

/** How the next token is drawn. */
export interface Params {
  temperature: number;
  topK: number;
  topP: number;
  seed: number | bigint;
  logitBias?: [id: number, bias: number][];
  minP?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  repetitionPenalty?: number;
  promptTokens?: number;
  withheld?: number[];
  withheldUntil?: number;
}

/** Proposes the next tokens of a text. */
export interface Drafter {
  /** Read a prompt, so that the first draft is not slower than the others; `draft` may be called before it ends. */
  prepare(committed: number[]): Promise<void>;
  /** Up to `length` ids that follow `committed`; fewer, or none, is a valid answer. */
  draft(committed: number[], length: number, params: Params, signal: AbortSignal): Promise<number[]>;
  /** Tokens of the longest text that it reads; `draft` is silent after a longer one. */
  readonly maxLength?: number;
}

/** What a message from the edge changed. */
export interface Progress {
  /** New ids. */
  tokens: number[];
  /** How many of them, the first ones, had been drafted here. */
  accepted: number;
  /** How many had been drafted in all. */
  drafted: number;
  /** Drafted tokens of a stream that nobody will verify any more. */
  wasted: number;
  finish: "" | "stop" | "length";
  /** Text that became final; empty without a token table. */
  text: string;
  /** The same, one for each of `tokens`. */
  texts: string[];
}

/** How long to go on without an edge [ms]. */
export interface Patience {
  atFirstMs: number;
  onceKnownMs: number;
  silenceMs: number;
  firstDelayMs: number;
  longestDelayMs: number;
}

export interface ClientOptions {
  /** Address of the edge's session endpoint: ws://HOST:PORT/v1/session */
  url: string;
  hello: Hello;
  drafter: Drafter;
  /** Bytes of the target's tokens; without them there are ids and no text. */
  table?: TokenTable;
  onProgress?: (progress: Progress) => void;
  onOutage?: (why: string, delayMs: number) => void;
  patience?: Partial<Patience>;
  /** In a stream, most of the drafted tokens that may be wasted, 0 … 1; default 1. */
  maxWastedShare?: number;
}

/** A device: drafts when it may, sends what it drafted, and comes back after every loss. */
export declare class DeviceClient {
  constructor(options: ClientOptions);
  readonly session: DeviceSession;
  /** Why tokens of the present text were written without drafts. */
  readonly silence: Silence;
  /** Have one text generated; null goes on with what `session.restore` took in. RefusedError or InputError where it cannot. */
  generate(request: Request | null): Promise<number[]>;
  /** End the text where it stands. */
  stop(): void;
  /** Try again at once, where the next attempt to reach the edge is waited for. */
  hurry(): void;
  /** Connect anew, because the connection may have died unnoticed. */
  reconnect(): void;
}

/** The device's half of a session, without sockets, clocks and model. `save` and `restore` outlive a page. */
export declare class DeviceSession {
  constructor(hello: Hello, table?: TokenTable, maxWastedShare?: number);
  welcome: Welcome | null;
  request: Request | null;
  /** Prompt and generated ids. */
  committed: number[];
  text: string;
  readonly generated: number[];
  readonly finish: "" | "stop" | "length";
  readonly grant: Message | null;
  readonly joined: boolean;
  readonly wantsDraft: boolean;
  readonly params: Params;
  readonly roomAhead: number;
  readonly rests: boolean;
  readonly ahead: number[];
  readonly epoch: number;
  readonly wasted: number;
  save(): object | null;
  restore(saved: object): void;
  begin(request: Request, generated?: number[]): void;
  greet(): Message | Hello;
  open(): Message;
  receive(message: Message): Progress;
  answer(ids: number[], draftSeconds: number): Message;
  unsent(): Message | null;
  drafted(epoch: number, start: number, ids: number[], seconds: number): void;
  chunk(): Message | null;
  lose(): void;
  forgetEdge(): void;
}

/** How long to wait before the next attempt to reach an edge [ms]: it doubles with each failure, up to a bound, and half of it is chance. */
export declare function pauseMs(failures: number, bounds: Pick<Patience, "firstDelayMs" | "longestDelayMs">, chance?: number): number;

/** The bytes of every token of the target. */
export declare class TokenTable {
  constructor(pieces: Uint8Array[]);
  /** Reads the file that an edge hands out at /device/tokens. */
  static unpack(packed: Uint8Array): TokenTable;
  piece(token: number): Uint8Array;
}

/** Ids become text that is final: no half characters, no beginning of a stop string. */
export declare class TextStream {
  constructor(table: TokenTable, stopStrings?: string[], minTokens?: number);
  readonly stopped: boolean;
  readonly tokens: number;
  push(ids: number[]): string;
  end(): string;
}

/** How far ahead to draft where energy counts. */
export declare class Thrift {
  constructor(maxWastedShare?: number);
  readonly ahead: number;
  observe(verified: number, wasted: number, window: number): void;
}

/** Counts the tokens of a text that were written without drafts, by reason. */
export declare class Silence {
  constructor(most?: number);
  readonly most: number;
  offer(length: number): void;
  asked(drafted: number): void;
  written(tokens: number, textTokens: number, rests: boolean): void;
  /** What a person is to know, empty if nothing; `remedies` say by reason what the person can change. */
  sentence(
    drafted: number,
    generated: number,
    remedies?: { [why in "not-asked" | "context" | "nothing" | "resting" | "late"]?: string },
  ): string;
}

/** The stage of a session that streams. */
export declare class Streaming {
  constructor(window: Message, epoch: number);
  readonly epoch: number;
  readonly ids: number[];
}

/** An edge said something that makes no sense, or a caller asked for it: one sentence for people. */
export declare class InputError extends Error {}

/** The edge ended the session; `code` is one of the error codes of docs/protocol.md. */
export declare class RefusedError extends InputError {
  constructor(code: string, sentence: string, retryAfter?: number);
  readonly code: string;
  /** When the edge wants to be asked again [s]; 0: it does not say. */
  readonly retryAfter: number;
}

/** The edge does not know the session any more; the text is kept. */
export declare class SessionGoneError extends RefusedError {}

export declare function encode(message: Message | Hello | Welcome): Uint8Array;
export declare function decode(frame: Uint8Array): Message;
export declare function isDownlink(message: Message): boolean;

export declare function bitsPerId(vocabularySize: number): number;
export declare function packIds(ids: number[], vocabularySize: number): Uint8Array;
export declare function unpackIds(packed: Uint8Array, count: number, vocabularySize: number): number[];

/** The token that a row of V logits gives after a text: the argmax at temperature 0, else the draw with the shared noise. */
export declare function drawRow(row: Float32Array, text: number[], params: Params): number;
export declare function gumbelArgmax(row: Float32Array, seed: number | bigint, position: number): number;
export declare function argmax(row: Float32Array): number;
/** Whether the distribution depends on which tokens stand before the position. */
export declare function remembers(params: Params): boolean;

/** The shared noise of (seed, position): four keys, and from them the variates of a token. */
export declare function keys(seed: number | bigint, position: number): Uint32Array;
export declare function highWord(four: Uint32Array, token: number): number;
export declare function uniform(four: Uint32Array, token: number): number;
export declare function gumbel(four: Uint32Array, token: number): number;

/** A number that MessagePack writes as a float64. */
export declare class Float {
  constructor(value: number);
  readonly value: number;
}
export declare function pack(value: unknown): Uint8Array;
export declare function unpack(bytes: Uint8Array): unknown;
