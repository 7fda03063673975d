/** The dashboard: shows the feed's documents. Names come from devices, so they are only ever set as text. */
import { Curve, drawPasses } from "./chart.js";
import { follow } from "./feed.js";
import { AwayError, fetchWith, TokenError } from "./fetching.js";
import { keepToken, token, tryToken } from "./token.js";

const PASSES_S = 12;
const AGAIN_MS = 2000;
const WORDS = { device: "its device", edge: "the edge", nobody: "nobody" };

const element = (id) => document.getElementById(id);
let curves = null;

async function look() {
  try {
    const { address, picture } = await (await fetchWith(token(), "/dashboard/join")).json();
    keepToken();
    element("join").hidden = true;
    document.querySelector("main").hidden = false;
    element("phone").hidden = !picture;
    [element("code").src, element("address").textContent] = [picture, address];
    curves ??= [new Curve(element("rates"), "tokens/s"), new Curve(element("accepted"), "accepted", 1)];
    await follow(token(), show);
    element("state").textContent = "no connection to the edge; trying again …";
  } catch (error) {
    element("state").textContent = error instanceof AwayError ? `${error.message}; trying again …` : error.message;
    if (error instanceof TokenError) {
      element("join").hidden = false;
      return;
    }
  }
  setTimeout(look, AGAIN_MS);
}

function show(state) {
  element("state").textContent = "live";
  element("target").textContent = state.target;
  const now = Math.floor(state.now_s);
  const recent = (seconds) => state.seconds.filter(([second]) => second >= now - seconds && second < now);
  const sum = (rows, place) => rows.reduce((total, row) => total + row[place], 0);
  element("rate").textContent = (sum(recent(5), 1) / 5).toFixed(1);
  const [drafted, accepted] = [sum(recent(30), 2), sum(recent(30), 3)];
  element("acceptance").textContent = drafted ? `${((100 * accepted) / drafted).toFixed(0)} %` : "–";
  element("texts").textContent = `${state.all.writing} of ${state.all.sessions}`;
  const times = state.passes.map((each) => each.end_s - each.begin_s);
  const mean = times.reduce((total, each) => total + each, 0) / times.length;
  element("pass").textContent = times.length ? `${(1e3 * mean).toFixed(0)} ms` : "–";
  showSessions(state.sessions, state.all.bandwidth_hz);
  const hidden = state.all.sessions - state.sessions.length;
  element("hidden").textContent = hidden ? `and ${hidden} more` : "";
  const seconds = filled(state.seconds, now);
  curves[0].show(seconds.map(([at, tokens]) => [at, tokens]));
  curves[1].show(seconds.map(([at, , of, good]) => [at, of ? good / of : null]));
  drawPasses(element("line"), state.passes, state.now_s, PASSES_S);
  const texts = state.passes.reduce((total, { texts: { device, edge, nobody } }) => total + device + edge + nobody, 0);
  const span = times.length ? Math.min(PASSES_S, state.now_s - state.passes[0].begin_s) : 0; // of fast passes, shorter
  element("line-text").textContent = times.length
    ? `${times.length} passes in ${span.toFixed(span < 9.95 ? 1 : 0)} s, with ${(texts / times.length).toFixed(1)} texts each. ` +
      "Filled: drafted by devices; hatched: by the edge; outlined: by nobody."
    : `No pass in the last ${PASSES_S} s.`;
  element("line").setAttribute("aria-label", element("line-text").textContent);
}

/** Seconds counted back from now. The unfinished one is left out, and seconds without events up to now are zeros. */
function filled(seconds, now) {
  const rows = seconds.filter(([second]) => second < now).map(([second, ...rest]) => [second - now, ...rest]);
  for (let at = rows.length ? rows.at(-1)[0] + 1 : -1; at < 0; at += 1) rows.push([at, 0, 0, 0]);
  return rows;
}

function showSessions(sessions, band) {
  const list = element("sessions");
  element("none").hidden = sessions.length > 0;
  const longest = Math.max(8, ...sessions.map((each) => each.length));
  const kept = new Map([...list.children].map((item) => [Number(item.dataset.session), item]));
  for (const each of sessions) {
    const item = kept.get(each.session) ?? newItem(list, each.session);
    kept.delete(each.session);
    const by = each.writing ? each.by : "nobody";
    item.className = each.state === "away" ? "away" : each.writing ? "" : "idle";
    const [name, badge, about] = item.querySelectorAll(".name, .by, .about");
    name.textContent = name.title = each.name;
    badge.className = `by ${by in WORDS ? by : "nobody"}`;
    badge.textContent = each.state === "away" ? "away" : each.writing ? (WORDS[by] ?? by) : "idle";
    about.textContent = `drafter: ${each.drafter || "unknown"}`;
    const share = band ? each.bandwidth_hz / band : 0;
    const rate = each.acceptance_rate ?? 0;
    row(item, 0, each.length / longest, each.length === 1 ? "1 token" : `${each.length} tokens`);
    row(item, 1, share, `${(100 * share).toFixed(0)} %`);
    row(item, 2, rate, each.drafted ? `${(100 * rate).toFixed(0)} %` : "–");
    item.querySelector(".tokens").textContent = `${each.tokens} tokens, ${each.accepted} of ${each.drafted} drafted ones accepted`;
  }
  for (const item of kept.values()) item.remove();
}

function newItem(list, session) {
  const item = document.createElement("li");
  item.dataset.session = session;
  const part = (tag, name, text = "") => {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    return made;
  };
  const head = part("div", "head");
  head.append(part("span", "name"), part("span", "by"));
  item.append(head, part("p", "about"));
  for (const label of ["draft length", "band share", "acceptance"]) {
    const line = part("div", "row");
    const bar = part("span", "bar");
    bar.append(document.createElement("i"));
    line.append(part("span", "", label), bar, part("span", ""));
    item.append(line);
  }
  item.append(part("p", "tokens"));
  list.append(item);
  return item;
}

function row(item, place, share, text) {
  const line = item.querySelectorAll(".row")[place];
  line.querySelector("i").style.width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%`;
  line.lastChild.textContent = text;
}

element("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  tryToken(element("token").value.trim());
  look();
});
look();
