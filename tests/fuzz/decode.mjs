/**
 * The JavaScript client as a program that `javascript.py` feeds. Each line on standard input is a JSON array, a name and
 * what it is for; each line on standard output says what became of it: ["read", what came of it], ["refused", why] or
 * ["broken", an error that is no refusal], and the time that it took [ms].
 */
import { createInterface } from "node:readline";

import { decode, DeviceSession, encode, InputError, packIds, TokenTable, unpackIds } from "../../clients/js/src/index.js";

const bytes = (digits) => new Uint8Array(Buffer.from(digits, "hex"));
const hex = (values) => Buffer.from(values).toString("hex");

const WORK = {
  /** A frame: its message encoded again. */
  message: (digits) => hex(encode(decode(bytes(digits)))),
  /** Packed ids of a vocabulary of 50: packed again. The first byte is their number. */
  ids: (digits) => hex(packIds(unpackIds(bytes(digits).subarray(1), bytes(digits)[0], 50), 50)),
  /** A table of tokens: packed again. */
  table: (digits) => hex(TokenTable.unpack(bytes(digits)).pieces.flatMap((piece) => [piece.length >> 8, piece.length & 255, ...piece])),
  /** A conversation, as clients/vectors/sessions.json has them: how the device stands after each step. */
  session: ({ hello, request, max_wasted_share: most, steps }) => {
    const session = new DeviceSession(decode(bytes(hello)), undefined, most);
    const begun = { ...request, seed: request.seed === null ? null : BigInt(request.seed) };
    return steps.map((step) => {
      let [frame, error] = [null, ""];
      try {
        if (step.edge) session.receive(decode(bytes(step.edge)));
        else if (step.do === "begin") session.begin(begun);
        else frame = session[step.do](...step.arguments);
      } catch (problem) {
        if (!(problem instanceof InputError)) throw problem;
        error = problem.constructor.name;
      }
      const { stage, committed, finish, wantsDraft, roomAhead, epoch, wasted } = session;
      return { frame: frame ? hex(encode(frame)) : null, error, stage: stage.name, committed: [...committed], finish, wants_draft: wantsDraft, room_ahead: roomAhead, epoch, wasted };
    });
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, given] = JSON.parse(line);
  const began = performance.now();
  let said;
  try {
    said = ["read", WORK[name](given)];
  } catch (error) {
    said = [error instanceof InputError ? "refused" : "broken", error instanceof InputError ? error.message : error.stack];
  }
  process.stdout.write(`${JSON.stringify([...said, performance.now() - began])}\n`);
}
