/** The dashboard's feed: server-sent events over fetch, because an EventSource cannot send a token. */

/** The edge does not know the token. */
export class TokenError extends Error {}

const SILENCE_MS = 10_000; // the edge sends two documents a second

/** @returns {Promise<Response>} an answer of the edge to who holds this token */
export async function fetchWith(token, path, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, signal }).catch(() => {
    throw new Error("the edge cannot be reached; trying again …");
  });
  if (answer.status === 401) throw new TokenError(token ? "this edge does not know the token" : "this edge wants a token");
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error?.message ?? said.error ?? `the edge answered ${answer.status}`);
  }
  return answer;
}

/**
 * Read documents until the connection ends, or nothing has come for a while: a lost network says nothing.
 *
 * @param {string} token
 * @param {(state: object) => void} onState
 */
export async function follow(token, onState) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  const reader = (await fetchWith(token, "/dashboard/feed", silence.signal)).body.pipeThrough(new TextDecoderStream()).getReader();
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
