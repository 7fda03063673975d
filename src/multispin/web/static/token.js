/** The token of this browser, which both pages send to the edge. */
import { keep, kept } from "./kept.js";

const TOKEN = "multispin.token";

/** @returns {string} the token to send: from the address (of a QR code) or typed here, else the last that an edge accepted */
export function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    tryToken(given);
    history.replaceState(null, "", location.pathname);
  }
  return kept("sessionStorage", TOKEN) ?? kept("localStorage", TOKEN) ?? "";
}

/** @param {string} given the token to send from now on in this tab */
export function tryToken(given) {
  keep("sessionStorage", TOKEN, given);
}

/** Keep an accepted token for all tabs. A wrong one never replaces it. */
export function keepToken() {
  const tried = kept("sessionStorage", TOKEN);
  if (tried === null) return;
  keep("localStorage", TOKEN, tried);
  keep("sessionStorage", TOKEN, null);
}
