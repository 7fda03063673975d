/** Requests to the edge over HTTP, with the token. */

/** The edge does not know the token, or asks for one. */
export class TokenError extends Error {}

/** The edge cannot be reached now. */
export class AwayError extends Error {}

const MOST_CHARACTERS = 2048; // of a token; in UTF-8 they fit into what an edge reads of a header

/**
 * @param {string} token may be empty
 * @param {string} path
 * @param {RequestInit} options
 * @returns {Promise<Response>} the edge's answer; TokenError, AwayError, or an Error with the edge's message
 */
export async function fetchWith(token, path, { headers, ...options } = {}) {
  const unknown = new TokenError(token ? "this edge does not know the token" : "this edge asks for a token");
  if (/\p{Cc}/u.test(token) || token.length > MOST_CHARACTERS) throw unknown; // no request can carry it
  const own = token ? { Authorization: `Bearer ${inBytes(token)}` } : {};
  const answer = await fetch(path, { ...options, headers: { ...own, ...headers } }).catch(() => {
    throw new AwayError("the edge cannot be reached");
  });
  if (answer.status === 401) throw unknown;
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error?.message ?? said.error ?? `the edge answered ${answer.status}`);
  }
  return answer;
}

/** A text in the form that a header can hold: one character for each byte of its UTF-8. */
const inBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));
