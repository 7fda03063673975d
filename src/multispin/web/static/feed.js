/** The dashboard's feed: server-sent events over fetch, because an EventSource cannot send a token. */
import { fetchWith } from "./fetching.js";

const SILENCE_MS = 10_000; // the edge sends two documents a second

/**
 * Read documents until the connection ends or nothing has come for a while, since a lost network gives no sign.
 *
 * @param {string} token
 * @param {(state: object) => void} onState
 */
export async function follow(token, onState) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  const reader = (await fetchWith(token, "/dashboard/feed", { signal: silence.signal })).body.pipeThrough(new TextDecoderStream()).getReader();
  const read = () => reader.read().catch(() => ({ done: true }));
  let held = "";
  for (let next = await read(); !next.done; next = await read()) {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE_MS);
    held += next.value;
    const events = held.split("\n\n");
    held = events.pop();
    if (events.length) onState(JSON.parse(events.at(-1).replace(/^data: /, "")));
  }
  clearTimeout(timer);
}
