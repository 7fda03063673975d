export { DeviceClient } from "./client.js";
export { argmax, drawRow, gumbelArgmax } from "./draw.js";
export { InputError, RefusedError, SessionGoneError } from "./errors.js";
export { bitsPerId, packIds, unpackIds } from "./ids.js";
export * from "./messages.js";
export { Float, pack, unpack } from "./msgpack.js";
export { gumbel, highWord, keys, uniform } from "./noise.js";
export { DeviceSession } from "./session.js";
export { TextStream, TokenTable } from "./text.js";
