/** The dashboard's feed: server-sent events over fetch, because an EventSource cannot send a token. */

/** The edge does not know the token. */
export class TokenError extends Error {}

/** @returns {Promise<Response>} an answer of the edge to who holds this token */
export async function fetchWith(token, path) {
  const answer = await fetch(path, { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  if (answer.status === 401) throw new TokenError("this edge wants a token");
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error?.message ?? said.error ?? `the edge answered ${answer.status}`);
  }
  return answer;
}

/**
 * Read documents until the connection ends.
 *
 * @param {string} token
 * @param {(state: object) => void} onState
 */
export async function follow(token, onState) {
  const reader = (await fetchWith(token, "/dashboard/feed")).body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    held += next.value;
    const events = held.split("\n\n");
    held = events.pop();
    if (events.length) onState(JSON.parse(events.at(-1).replace(/^data: /, "")));
  }
}
