/** What the vectors do not say: text, saving, sizes, and the client over a WebSocket that the test plays. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as everything from "../src/index.js";
import { DeviceClient, DeviceSession, decode, encode, gumbel, gumbelArgmax, InputError, keys, MAX_MESSAGES_WITHOUT_TOKENS, pack, packIds, PROTOCOL_VERSION, TextStream, TokenTable, unpack } from "../src/index.js";

const letters = new TokenTable([..."abcde<>"].map((letter) => new TextEncoder().encode(letter)).concat([[0xe2], [0x98], [0x8e]].map((b) => Uint8Array.from(b))));
const HELLO = { type: "Hello", version: PROTOCOL_VERSION, fingerprint: "f", name: "n", drafter: "d", drafts: true, profile: [0.1, 3] };
const WELCOME = { type: "Welcome", session: 7, resume_token: "r", seed: 2n ** 62n, vocabulary_size: 10, max_length: 100, resume_grace_s: 30 };

test("what a request asks for and this client cannot do is refused", () => {
  const request = { prompt: [1], maxTokens: 5 };
  for (const more of [{ rule: "rejection" }, { rule: "rejection-down", temperature: 1 }, { rule: "coupled" }, { grammar: "start: /a/" }]) {
    assert.throws(() => new DeviceSession(HELLO).begin({ ...request, ...more }), InputError, JSON.stringify(more));
  }
  for (const more of [{}, { rule: null }, { rule: "greedy" }, { rule: "coupled", temperature: 1 }]) {
    new DeviceSession(HELLO).begin({ ...request, ...more });
  }
});

test("a character that is split over tokens is held until it is whole", () => {
  const stream = new TextStream(letters);
  assert.deepEqual([stream.push([0, 7]), stream.push([8]), stream.push([9, 1]), stream.end()], ["a", "", "☎b", ""]);
  assert.equal(new TextStream(letters).push([7, 0]), "\ufffda");
});

test("the beginning of a stop string is held, and the string is cut", () => {
  const stream = new TextStream(letters, ["<ab>"]);
  assert.deepEqual([stream.push([2, 5, 0]), stream.push([2]), stream.push([5, 0, 1, 6, 3])], ["c", "<ac", ""]);
  assert.deepEqual([stream.stopped, stream.tokens, stream.end()], [true, 8, ""]);
});

test("a stop string before the least number of tokens does not count", () => {
  const stream = new TextStream(letters, ["ab"], 3);
  assert.equal(stream.push([0, 1, 2, 0, 1, 2]), "abc");
  assert.equal(stream.tokens, 5);
});

test("a token table is read from its file", () => {
  const table = TokenTable.unpack(Uint8Array.from([0, 1, 97, 0, 0, 0, 2, 98, 99]));
  assert.deepEqual([0, 1, 2, 3].map((id) => [...table.piece(id)]), [[97], [], [98, 99], []]);
});

test("the pruned draw is the plain one", () => {
  const row = Float32Array.from({ length: 5000 }, (_, id) => 4 * Math.sin(id * id));
  for (let position = 0; position < 200; position++) {
    const four = keys(5, position);
    let best = 0;
    row.forEach((logit, id) => (logit + gumbel(four, id) > row[best] + gumbel(four, best) ? (best = id) : best));
    assert.equal(gumbelArgmax(row, 5, position), best);
  }
});

test("a row without a token to draw is refused", () => {
  assert.throws(() => gumbelArgmax(new Float32Array(4).fill(-Infinity), 1, 0), /no token to draw/);
});

test("integers of every size are written in their shortest form and read back", () => {
  for (const n of [0, 127, 128, 255, 256, 65535, 65536, 2 ** 32 - 1, 2 ** 32, 2n ** 63n, -1, -32, -33, -129, -40000, -(2 ** 40)]) {
    assert.equal(unpack(pack(n)), typeof n === "bigint" ? n : n);
  }
  assert.throws(() => pack(1.5), TypeError);
});

test("a message that is refused is named with its article", () => {
  assert.throws(() => decode(pack([3, -1])), /^Error: session of an Open is not /);
  assert.throws(() => decode(pack([4, -1])), /^Error: session of a Grant is not /);
});

test("any bytes are a message or are refused, never anything else", () => {
  let state = 1;
  const random = (most) => (state = (state * 48271) % 2147483647) % most;
  for (let round = 0; round < 20000; round++) {
    const frame = Uint8Array.from({ length: random(40) }, () => random(256));
    if (frame.length) frame[0] = 0x90 | random(12);
    if (frame.length > 1) frame[1] = random(14);
    try {
      decode(frame);
    } catch (error) {
      assert.ok(error instanceof InputError, String(error));
    }
  }
});

test("a saved session goes on where it stood, with its seed", () => {
  const session = new DeviceSession(HELLO, letters);
  session.begin({ prompt: [1, 2], maxTokens: 9, seed: null, temperature: 0.5 });
  session.greet();
  session.receive(WELCOME);
  session.open();
  session.receive({ type: "Tail", session: 7, base: 2, ids: packIds([3, 4], 10), count: 2, finish: "", grant: null });
  const again = new DeviceSession(HELLO, letters);
  again.restore(JSON.parse(JSON.stringify(session.save())));
  assert.deepEqual([again.committed, again.text, again.params.seed], [[1, 2, 3, 4], "de", 2n ** 62n]);
  assert.deepEqual(again.greet(), { type: "Resume", version: HELLO.version, resume_token: "r", length: 4, credential: "" });
  assert.throws(() => again.receive({ type: "Error", code: "unknown-session", sentence: "gone" }), /gone/);
  assert.equal(again.greet(), HELLO);
  again.receive(WELCOME);
  assert.equal(again.open().continued, 2);
});

/** Plays the edge: a WebSocket whose other end is a function of each message. */
function playedSocket(answers) {
  return class {
    static OPEN = 1;
    static opened = 0;
    constructor() {
      this.readyState = 1;
      this.constructor.opened += 1;
      queueMicrotask(() => this.onopen?.());
    }
    send(frame) {
      for (const answer of answers(decode(frame), this.constructor.opened) ?? []) {
        queueMicrotask(() => (answer === "cut" ? this.onclose?.() : this.onmessage?.({ data: encode(answer).buffer })));
      }
    }
    close() {
      this.readyState = 3;
    }
  };
}

test("a client drafts, survives a cut and writes its text", async () => {
  const said = [];
  const grant = (round) => ({ type: "Grant", session: 7, round, length: 2, bandwidth_hz: 1e4 });
  const edge = (message, connection) => {
    said.push(message.type);
    if (message.type === "Hello") return [WELCOME];
    if (message.type === "Open") return [grant(1)];
    if (message.type === "Resume") return [WELCOME, { type: "Tail", session: 7, base: 2, ids: packIds([], 10), count: 0, finish: "", grant: grant(1) }];
    if (message.type === "Draft" && connection === 1) return ["cut"];
    if (message.type === "Draft") return [{ type: "Verdict", session: 7, round: 1, base: 2, accepted: 2, next_token: 0, finish: "length" }];
    return [];
  };
  globalThis.WebSocket = playedSocket(edge);
  const outages = [];
  const client = new DeviceClient({
    url: "ws://edge",
    hello: HELLO,
    table: letters,
    drafter: { prepare: async () => {}, draft: async () => [3, 4] },
    onOutage: (why) => outages.push(why),
    patience: { firstDelayMs: 1 },
  });
  assert.deepEqual(await client.generate({ prompt: [1, 2], maxTokens: 3 }), [3, 4, 0]);
  assert.equal(client.session.text, "dea");
  assert.deepEqual(said, ["Hello", "Open", "Draft", "Resume", "Draft", "Close"]);
  assert.equal(outages.length, 1);
});

test("a client gives up an edge that never answers, and says so", async () => {
  globalThis.WebSocket = playedSocket(() => ["cut"]);
  const patience = { firstDelayMs: 1, atFirstMs: 20 };
  const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} }, patience });
  await assert.rejects(client.generate({ prompt: [1], maxTokens: 3 }), /^Error: the server at ws:\/\/edge takes connections, but does not answer as an edge/);
});

test("the time in which a resumed session hears nothing of its text counts, and a refusal at the end is told as one", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  let connections = 0;
  globalThis.WebSocket = playedSocket((message, connection) => {
    connections = connection;
    if (message.type === "Hello") return [WELCOME];
    return message.type === "Open" ? ["cut"] : [WELCOME]; // nothing follows a Resume
  });
  const started = (Socket) => {
    globalThis.WebSocket = Socket;
    return new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} }, patience: { onceKnownMs: 60_000 } });
  };
  const ended = async (client) => {
    let said;
    client.generate({ prompt: [1], maxTokens: 3 }).catch((error) => (said = error));
    const began = Date.now();
    while (!said) {
      for (let step = 0; step < 20; step++) await Promise.resolve();
      t.mock.timers.tick(100);
    }
    return [said, Date.now() - began];
  };
  const [silent, silentMs] = await ended(started(globalThis.WebSocket));
  assert.match(silent.message, /greets this device, and then does not keep its session: no answer to a greeting/);
  assert.ok(silentMs < 80_000 && connections < 9, `${silentMs} ms, ${connections} connections`);
  const full = { type: "Error", code: "full", sentence: "no room here", retry_after_s: 3600 };
  const [refused, refusedMs] = await ended(started(playedSocket(() => [full])));
  assert.deepEqual([refused.code, refused.message], ["full", "no room here"]);
  assert.ok(refusedMs < 15_000, `${refusedMs} ms`); // not the hour that the edge asked for
});

test("a client tells an edge that greets and closes from one that is not there", async () => {
  const patience = { firstDelayMs: 1, longestDelayMs: 1, atFirstMs: 20, onceKnownMs: 20 };
  const told = async () => {
    const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} }, patience });
    return client.generate({ prompt: [1], maxTokens: 3 }).catch((error) => error.message);
  };
  globalThis.WebSocket = playedSocket(() => [WELCOME, "cut"]);
  assert.match(await told(), /^the edge at ws:\/\/edge greets this device, and then does not keep its session/);
  globalThis.WebSocket = class {
    constructor() {
      queueMicrotask(() => this.onerror());
    }
    close() {}
  };
  assert.match(await told(), /^cannot reach the edge at ws:\/\/edge/);
});

test("a client leaves an edge that keeps the connection and sends nothing about the text", async () => {
  const said = [];
  globalThis.WebSocket = playedSocket((message) => {
    said.push(message.type);
    if (message.type === "Hello") return [WELCOME];
    return message.type === "Resume" ? [WELCOME, { type: "Tail", session: 7, base: 1, ids: packIds([], 10), count: 0, finish: "" }] : [];
  });
  const patience = { firstDelayMs: 1, onceKnownMs: 25, silenceMs: 10 };
  const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} }, patience });
  await assert.rejects(client.generate({ prompt: [1], maxTokens: 3 }), /sends nothing about this text/);
  assert.deepEqual(said.slice(0, 3), ["Hello", "Open", "Resume"]);
});

test("an edge that writes without end and without tokens is left", () => {
  const tail = (base, ids) => ({ type: "Tail", session: 7, base, ids: packIds(ids, 10), count: ids.length, finish: "", grant: null, scores: [] });
  const window = { type: "Window", session: 7, length: 2, chunk: 1, bandwidth_hz: 1e4 };
  const commit = (base, ids) => ({ type: "Commit", base, epoch: 1, verified: 0, accepted: 0, ids, finish: "", scores: [] });
  const cases = [
    [[], tail(1, [])],
    [[tail(1, [3])], tail(1, [3])],
    [[], { type: "Grant", session: 7, round: 1, length: 2, bandwidth_hz: 1e4 }],
    [[], window],
    [[window], commit(1, [])],
    [[tail(1, [3]), window], commit(1, [3])],
    [[tail(1, [3])], { type: "Verdict", session: 7, round: 1, base: 1, accepted: 0, next_token: 3, finish: "", grant: null, offer: new Uint8Array(), scores: [] }],
  ];
  for (const [before, message] of cases) {
    const session = new DeviceSession(HELLO);
    session.begin({ prompt: [1], maxTokens: 9 });
    session.greet();
    session.receive(WELCOME);
    session.open();
    before.forEach((each) => session.receive(each));
    const flood = (times) => {
      for (let time = 0; time < times; time++) session.receive(message);
    };
    flood(MAX_MESSAGES_WITHOUT_TOKENS - 3); // of `before` there are at most two, and the Welcome
    assert.throws(() => flood(4), /10000 messages without a new token/, JSON.stringify(message));
  }
  const session = new DeviceSession(HELLO);
  session.begin({ prompt: [1], maxTokens: 9 });
  session.greet();
  session.receive(WELCOME);
  session.open();
  for (let base = 1; base < 4; base++) {
    for (let time = 0; time < MAX_MESSAGES_WITHOUT_TOKENS - 1; time++) session.receive(tail(base, []));
    session.receive(tail(base, [3])); // the text grows, and the count begins anew
  }
});

test("a client goes on with an edge that is silent in its passes and says that they go on", async (t) => {
  t.mock.timers.enable({ apis: ["Date"] }); // only silence counts
  const tail = (ids, finish) => ({ type: "Tail", session: 7, base: 1, ids: packIds(ids, 10), count: ids.length, finish });
  let waits = 0;
  globalThis.WebSocket = playedSocket((message) => {
    if (message.type === "Hello") return [WELCOME];
    if (message.type !== "Resume") return [];
    return [WELCOME, tail([], ""), ++waits < 6 ? tail([], "") : tail([3], "stop")];
  });
  const patience = { firstDelayMs: 1, longestDelayMs: 1, onceKnownMs: 25, silenceMs: 10 };
  const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} }, patience });
  assert.deepEqual(await client.generate({ prompt: [1], maxTokens: 3 }), [3]);
});

test("passes of the next session take back no silence of the one before", async (t) => {
  t.mock.timers.enable({ apis: ["Date"] });
  const grant = { type: "Grant", session: 7, round: 1, length: 0, bandwidth_hz: 1e4 };
  let texts = 0;
  globalThis.WebSocket = playedSocket((message) => {
    if (message.type === "Hello") return [WELCOME];
    if (message.type !== "Open") return [{ type: "Error", code: "unknown-session", sentence: "gone" }];
    return ++texts < 8 ? [grant] : [{ type: "Tail", session: 7, base: 1, ids: packIds([3], 10), count: 1, finish: "stop" }];
  });
  const patience = { firstDelayMs: 1, longestDelayMs: 1, onceKnownMs: 25, silenceMs: 10 };
  const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} }, patience });
  await assert.rejects(client.generate({ prompt: [1], maxTokens: 3 }), /greets this device, and then does not keep its session|sends nothing about this text/);
});

test("a draft that takes longer is no silence of the edge", async () => {
  const grant = { type: "Grant", session: 7, round: 1, length: 2, bandwidth_hz: 1e4 };
  const outages = [];
  globalThis.WebSocket = playedSocket((message) => {
    if (message.type === "Hello") return [WELCOME];
    if (message.type === "Open") return [grant];
    return message.type === "Draft" ? [{ type: "Verdict", session: 7, round: 1, base: 1, accepted: 2, next_token: 0, finish: "length" }] : [];
  });
  const draft = () => new Promise((resolve) => setTimeout(resolve, 50, [3, 4]));
  const client = new DeviceClient({
    url: "ws://edge",
    hello: HELLO,
    drafter: { prepare: async () => {}, draft },
    patience: { silenceMs: 10 },
    onOutage: (why) => outages.push(why),
  });
  assert.deepEqual(await client.generate({ prompt: [1], maxTokens: 3 }), [3, 4, 0]);
  assert.deepEqual(outages, []);
});

test("a wait doubles up to a bound, and half of it is chance", () => {
  const bounds = { firstDelayMs: 1000, longestDelayMs: 30_000 };
  assert.deepEqual([1, 2, 5, 6, 2000].map((failures) => everything.pauseMs(failures, bounds, 1)), [1000, 2000, 16_000, 30_000, 30_000]);
  assert.deepEqual([1, 2000].map((failures) => everything.pauseMs(failures, bounds, 0)), [500, 15_000]);
  const drawn = Array.from({ length: 50 }, () => everything.pauseMs(9, bounds));
  assert.ok(drawn.every((ms) => ms >= 15_000 && ms <= 30_000) && new Set(drawn).size > 1);
});

test("a refusal is final", async () => {
  globalThis.WebSocket = playedSocket(() => [{ type: "Error", code: "unauthorised", sentence: "the credential is wrong" }]);
  const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} } });
  await assert.rejects(client.generate({ prompt: [1], maxTokens: 3 }), { code: "unauthorised" });
});

test("where there is no WebSocket, a client says what has one", async () => {
  const { WebSocket } = globalThis;
  delete globalThis.WebSocket;
  try {
    const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} } });
    await assert.rejects(client.generate({ prompt: [1], maxTokens: 3 }), /--experimental-websocket/);
  } finally {
    if (WebSocket) globalThis.WebSocket = WebSocket;
  }
});

test("a client that slept while its edge was away still tries", async () => {
  const { now } = Date;
  let slept = 0;
  Date.now = () => now() + slept;
  try {
    let connections = 0;
    globalThis.WebSocket = playedSocket((message) => {
      if (message.type === "Hello" && ++connections === 1) return [WELCOME];
      if (message.type === "Open" && connections === 1) return ["cut"];
      if (message.type === "Hello") return [WELCOME];
      if (message.type === "Open") return [{ type: "Tail", session: 7, base: 1, ids: packIds([3], 10), count: 1, finish: "stop" }];
      if (message.type !== "Resume") return [];
      slept += 3600e3; // an hour passes between one attempt and the next
      return ++tries < 4 ? ["cut"] : [{ type: "Error", code: "unknown-session", sentence: "gone" }];
    });
    let tries = 0;
    const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} }, patience: { firstDelayMs: 1 } });
    assert.deepEqual(await client.generate({ prompt: [1], maxTokens: 3 }), [3]);
    assert.equal(tries, 4);
  } finally {
    Date.now = now;
  }
});

test("a client that waits for its next attempt can be hurried, and stopped", async () => {
  let attempts = 0;
  globalThis.WebSocket = playedSocket(() => (++attempts, ["cut"]));
  const patience = { firstDelayMs: 1e7, longestDelayMs: 1e7 };
  let waits;
  const waiting = () => new Promise((resolve) => (waits = resolve));
  const client = new DeviceClient({ url: "ws://edge", hello: HELLO, drafter: { prepare: async () => {} }, patience, onOutage: () => setTimeout(waits) });
  let next = waiting();
  const text = client.generate({ prompt: [1], maxTokens: 3 });
  await next;
  next = waiting();
  client.hurry();
  await next;
  assert.equal(attempts, 2);
  client.stop();
  assert.deepEqual(await text, []);
});

test("the types name what the package has, and nothing else", () => {
  const types = readFileSync(new URL("../types/index.d.ts", import.meta.url), "utf8");
  const named = [...types.matchAll(/^export declare (?:const|class|function) (\w+)/gm)].map((found) => found[1]);
  assert.deepEqual(named.sort(), Object.keys(everything).sort());
  for (const [, name, body] of types.matchAll(/^export declare class (\w+)[^{]*{\n([^]*?)^}/gm)) {
    for (const [, member] of body.matchAll(/^  (\w+)\(/gm)) assert.ok(member in everything[name].prototype, `${name}.${member}`);
  }
  const session = new DeviceSession(HELLO, letters);
  session.begin({ prompt: [1], maxTokens: 2 });
  const body = /class DeviceSession {([^]*?)\n}/.exec(types)[1];
  for (const [, member] of body.matchAll(/^  (?:readonly )?(\w+): /gm)) assert.ok(member in session, member);
});
