/** The vectors that every device must pass (../../vectors, written by ../../make_vectors.py). */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { decode, DeviceSession, drawRow, encode, highWord, InputError, keys, packIds, Silence, Thrift, uniform, unpackIds } from "../src/index.js";

const read = (name) => JSON.parse(readFileSync(new URL(`../../vectors/${name}`, import.meta.url)));
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const bytes = (digits) => new Uint8Array(Buffer.from(digits, "hex"));

/** A message as the vectors write it: bytes in hexadecimal digits, large integers as text. */
function message(value) {
  if (Array.isArray(value)) return value.map(message);
  if (value === null || typeof value !== "object") return value;
  if ("hex" in value) return bytes(value.hex);
  if ("integer" in value) return BigInt(value.integer);
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, message(each)]));
}

test("ids are packed to the same bytes, and read back", () => {
  for (const each of read("ids.json")) {
    assert.equal(hex(packIds(each.ids, each.vocabulary_size)), each.packed);
    assert.deepEqual(unpackIds(bytes(each.packed), each.ids.length, each.vocabulary_size), each.ids);
  }
});

test("messages are the same frames, in both directions", () => {
  for (const each of read("messages.json").good) {
    assert.equal(hex(encode(message(each.message))), each.frame);
    assert.deepEqual(decode(bytes(each.frame)), message(each.message));
  }
});

test("frames that are no messages are refused", () => {
  for (const frame of read("messages.json").refused) assert.throws(() => decode(bytes(frame)), InputError, frame);
});

test("the noise is the same to the last bit", () => {
  for (const each of read("noise.json")) {
    const four = keys(BigInt(each.seed), each.position);
    assert.deepEqual([...four], each.keys);
    assert.deepEqual(each.tokens.map((token) => highWord(four, token)), each.high);
    assert.deepEqual(each.tokens.map((token) => uniform(four, token)), each.uniform);
  }
});

test("the same tokens are drawn", () => {
  const { rows, positions, step, cases } = read("draws.json");
  const texts = positions.map((length) => Array.from({ length }, (_, index) => (step * index) % rows[0].length));
  for (const each of cases) {
    const params = { ...each.params, seed: BigInt(each.params.seed) };
    const drawn = rows.map((row, index) => drawRow(Float32Array.from(row), texts[index], params));
    assert.deepEqual(drawn, each.tokens, JSON.stringify(each.params));
  }
});

test("a person is told the same about a text without drafts", () => {
  const { remedies, cases } = read("silence.json");
  for (const each of cases) {
    const silence = new Silence(each.most ?? undefined);
    for (const [name, ...values] of each.events) silence[name](...values);
    assert.equal(silence.sentence(each.drafted, 250, remedies), each.told, JSON.stringify(each));
  }
});

test("a thrifty device drafts as far ahead", () => {
  for (const each of read("thrift.json")) {
    const thrift = new Thrift(each.max_wasted_share);
    each.steps.forEach(([verified, wasted, ahead], place) => {
      thrift.observe(verified, wasted, each.window);
      assert.equal(Number.isFinite(thrift.ahead) ? thrift.ahead : -1, ahead, `${each.max_wasted_share}, step ${place}`);
    });
  }
  for (const share of [-0.1, 1.1, NaN, "0.5", null]) assert.throws(() => new Thrift(share), InputError);
});

const { hello, scripts } = read("sessions.json");
for (const script of scripts) {
  test(`a session takes part in: ${script.name}`, () => {
    const session = new DeviceSession(message(hello), undefined, script.max_wasted_share);
    const { seed } = script.request;
    const request = { ...script.request, seed: seed === null ? null : BigInt(seed) };
    const actions = { begin: () => session.begin(request), forget_edge: () => session.forgetEdge() };
    script.steps.forEach((step, place) => {
      const where = `step ${place}: ${JSON.stringify(step)}`;
      if (step.do) {
        const made = (actions[step.do] ?? (() => session[step.do](...step.arguments)))();
        assert.equal(made ? hex(encode(made)) : null, step.frame, where);
      } else {
        let error = "";
        try {
          session.receive(decode(bytes(step.edge)));
        } catch (problem) {
          error = problem.constructor.name;
        }
        assert.equal(error, step.error, where);
      }
      assert.deepEqual(
        [session.stage.name, session.committed, session.finish, session.wantsDraft, session.roomAhead, session.epoch, session.wasted],
        [step.stage, step.committed, step.finish, step.wants_draft, step.room_ahead, step.epoch, step.wasted],
        where,
      );
    });
  });
}
