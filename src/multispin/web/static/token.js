/** The token of this browser, which both pages show the edge. */
import { keep, kept } from "./kept.js";

const TOKEN = "multispin.token";

/** @returns {string} the token: from the address that a QR code holds, or from before; may be empty */
export function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    keepToken(given);
    history.replaceState(null, "", location.pathname);
  }
  return kept("localStorage", TOKEN) ?? "";
}

/** @param {string} given the token to show from now on */
export function keepToken(given) {
  keep("localStorage", TOKEN, given);
}
