/** The token of this browser, which both pages show the edge. */
import { keep, kept } from "./kept.js";

const TOKEN = "multispin.token";

/** @returns {string} the token to show: the address's (a QR code holds it) or the one typed here, else the last that an edge took */
export function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    tryToken(given);
    history.replaceState(null, "", location.pathname);
  }
  return kept("sessionStorage", TOKEN) ?? kept("localStorage", TOKEN) ?? "";
}

/** @param {string} given the token to show from now on in this tab */
export function tryToken(given) {
  keep("sessionStorage", TOKEN, given);
}

/** The edge took the token: all tabs show it from now on. A wrong one has not replaced it. */
export function keepToken() {
  const tried = kept("sessionStorage", TOKEN);
  if (tried === null) return;
  keep("localStorage", TOKEN, tried);
  keep("sessionStorage", TOKEN, null);
}
