/**
 * What the browser keeps for the pages: "localStorage" for good, "sessionStorage" until the tab is closed.
 *
 * A browser may refuse to keep anything (no room, a private window, a setting). Then the page keeps it while it is open,
 * since a text must not end because it could not be stored.
 */
const here = new Map(); // what the browser refused to keep

/**
 * @param {"localStorage"|"sessionStorage"} area
 * @param {string} key
 * @param {string|null} text null removes it
 */
export function keep(area, key, text) {
  try {
    if (text === null) window[area].removeItem(key);
    else window[area].setItem(key, text);
    here.delete(key);
  } catch {
    here.set(key, text);
  }
}

/** @returns {string|null} the kept text; null if there is none */
export function kept(area, key) {
  if (here.has(key)) return here.get(key);
  try {
    return window[area].getItem(key);
  } catch {
    return null;
  }
}

/** @returns {any} the kept text read as JSON; null if there is none or it cannot be read */
export function keptJson(area, key) {
  try {
    return JSON.parse(kept(area, key));
  } catch {
    return null;
  }
}
