/** llama.cpp in the browser as a drafter: @wllama/wllama, with the shared noise of this project. */
import { drawRow, remembers } from "/device/client/index.js";
import { Wllama } from "/device/wllama/wllama.js";

const PROMPT_TOKENS_AT_ONCE = 64;
const MOST_THREADS = 4; // phones have few fast cores
const MOST_CONTEXT = 4096; // tokens; a drafter of 30 layers would need gigabytes for ten times as many, and phones have few
const KEPT = 2048; // most probable tokens that a draw looks at; the rest is nearly never drawn
const COMPARED = 200; // ids whose text is compared
const TEST_TOKENS = 8;
const TOLERANCE = 0.02; // of the most probable token, between tokens read at once and one by one
/** A module with one vector instruction, which llama.cpp's needs. */
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);
const silent = { debug() {}, log() {}, warn() {}, error: console.error };

export class WllamaDrafter {
  /** An error that says why this browser cannot draft, before anything is fetched for it. */
  static check() {
    if (typeof WebAssembly === "undefined") throw new Error("this browser does not support WebAssembly");
    if (!WebAssembly.validate(SIMD)) throw new Error("this browser's WebAssembly has no SIMD: use a newer browser");
  }

  /**
   * Load a GGUF file, and check that its tokens are the target's, and that rolling back and reading at once change nothing.
   *
   * @param {Blob} file
   * @param {number} longest most tokens of a text; the drafter reads up to 4,096 of them
   * @param {import("/device/client/index.js").TokenTable} table bytes of the target's tokens
   */
  static async load(file, longest, table) {
    const maxLength = Math.min(longest, MOST_CONTEXT);
    const assets = {
      "single-thread/wllama.wasm": "/device/wllama/single-thread.wasm",
      "multi-thread/wllama.wasm": "/device/wllama/multi-thread.wasm",
    };
    const wllama = new Wllama(assets, { suppressNativeLog: true, logger: silent });
    const threads = Math.max(1, Math.min(MOST_THREADS, Math.floor((navigator.hardwareConcurrency || 1) / 2)));
    await wllama.loadModel([file], { n_ctx: maxLength, n_batch: PROMPT_TOKENS_AT_ONCE, n_threads: threads });
    const drafter = new WllamaDrafter(wllama, maxLength, table.pieces.length);
    await drafter.compare(table);
    await drafter.test();
    return drafter;
  }

  constructor(wllama, maxLength, vocabularySize) {
    this.wllama = wllama;
    this.maxLength = maxLength;
    this.vocabularySize = vocabularySize;
    this.threads = wllama.getNumThreads();
    this.secondsPerToken = 0; // measured by the self-test, and then by every draft
    this.cached = [];
    this.busy = Promise.resolve(); // one call at a time
  }

  /** Read all but the newest committed token, so that the first draft is not slower than the others. */
  prepare(committed) {
    return this.alone(async () => {
      const known = committed.slice(0, this.maxLength);
      const start = await this.rewind(known);
      if (start < known.length - 1) await this.feed(known.slice(start, -1), true);
    });
  }

  /** Draw up to `length` tokens one after the other; fewer if the context ends or the draft is no longer wanted. */
  draft(committed, length, params, signal) {
    return this.alone(async () => {
      const most = Math.min(length, this.maxLength - committed.length + 1);
      const ids = [];
      if (most <= 0 || signal.aborted) return ids;
      const start = await this.rewind(committed);
      let unread = committed.slice(start);
      const began = performance.now();
      while (ids.length < most && !signal.aborted) {
        await this.feed(unread);
        const token = await this.draw([...committed, ...ids], params);
        ids.push(token);
        unread = [token];
      }
      if (ids.length) this.secondsPerToken = (performance.now() - began) / 1e3 / ids.length;
      return ids;
    });
  }

  alone(work) {
    const result = this.busy.then(work);
    this.busy = result.catch(() => {});
    return result;
  }

  /** Drop what is cached beyond the common beginning; returns its length, at most all but the newest token. */
  async rewind(committed) {
    const limit = Math.min(this.cached.length, committed.length - 1);
    let common = 0;
    while (common < limit && this.cached[common] === committed[common]) common += 1;
    if (common < this.cached.length) {
      await (common ? this.wllama.kvRemove(common, -1) : this.wllama.kvClear());
      this.cached.length = common;
    }
    return common;
  }

  async feed(tokens, skipLogits = false) {
    await this.wllama.decode(tokens, { skipLogits });
    this.cached.push(...tokens);
  }

  async draw(text, params) {
    const named = (params.logitBias?.length ?? 0) > 0 || remembers(params);
    const early = text.length < (params.withheldUntil ?? 0);
    if (params.temperature === 0 && !named && !early) return (await this.probable(1))[0].token;
    const row = new Float32Array(this.vocabularySize).fill(-Infinity);
    for (const { token, p } of await this.probable(named ? -1 : KEPT)) {
      if (token < row.length) row[token] = Math.log(p);
    }
    return drawRow(row, text, params);
  }

  /** The most probable next tokens with their probabilities; all of them for −1. */
  async probable(count) {
    const found = await this.wllama.getLogits(Math.min(count, this.vocabularySize)); // with a greater count the library reads foreign memory
    if (!found.length || Number.isNaN(found[0].p)) throw new Error("the drafter's probabilities are not numbers");
    return found;
  }

  /** Check that ids mean the same text for the drafter and the target, on a sample. */
  async compare(table) {
    const step = Math.max(1, Math.floor(this.vocabularySize / COMPARED));
    for (let id = 0; id < this.vocabularySize; id += step) {
      const target = table.piece(id);
      if (!target.length) continue; // special
      const own = await this.wllama.detokenize([id]);
      if (own.length !== target.length || own.some((byte, place) => byte !== target[place])) {
        throw new Error(`its tokens are not the target's: id ${id} has another text`);
      }
    }
  }

  /** Check that a batch computes the same as single steps; otherwise the library would silently draft nonsense. */
  async test() {
    const tokens = Array.from({ length: TEST_TOKENS }, (_, index) => (7 * index + 1) % this.vocabularySize);
    await this.feed(tokens);
    const [atOnce] = await this.probable(1);
    await this.rewind([...tokens.slice(0, 1), -1]);
    const began = performance.now();
    for (const token of tokens.slice(1)) await this.feed([token]);
    this.secondsPerToken = (performance.now() - began) / 1e3 / (TEST_TOKENS - 1);
    const [single] = await this.probable(1);
    if (single.token !== atOnce.token || !(Math.abs(single.p - atOnce.p) <= TOLERANCE)) {
      throw new Error("llama.cpp failed its self-test in this browser: tokens read at once and one by one differ");
    }
    await this.rewind([-1]);
  }
}
