/** The page that drafts: it joins its edge, loads the drafter, and holds a conversation. */
import { DeviceClient, InputError, PROTOCOL_VERSION, TokenTable } from "/device/client/index.js";
import { element, Figures, say, write } from "./chat.js";
import { Edge, TokenError } from "./edge.js";
import { keepToken, token } from "./token.js";

// What a reload must not lose; each tab has its own.
const MESSAGES = "multispin.messages";
const UNDER_WAY = "multispin.text";
const RELOADED = "multispin.reloaded";
const SPECTRAL_EFFICIENCY = 5; // bit/s/Hz; only a first guess, the edge measures the link
/** Drafts once the drafter is loaded; a text that a reload interrupted goes on before that. */
const whoeverIsThere = {
  prepare: async (committed) => drafter?.prepare(committed),
  draft: async (...asked) => (drafter && element("helping").checked ? drafter.draft(...asked) : []),
};

const figures = new Figures();
let edge, about, table, client;
let drafter = null;
let unasked = false; // whether this device could have helped with the newest text, and was never asked
let messages = JSON.parse(sessionStorage.getItem(MESSAGES) ?? "[]");

async function join() {
  edge = new Edge(token());
  try {
    about = await edge.about();
  } catch (error) {
    element("state").textContent = error.message;
    if (!(error instanceof TokenError)) return void setTimeout(join, 3000); // the edge may be starting
    element("join").hidden = false;
    return;
  }
  if (about.version !== PROTOCOL_VERSION) return newerPage();
  table = TokenTable.unpack(await edge.tokens());
  element("join").hidden = true;
  for (const id of ["help", "chat", "ask"]) element(id).hidden = false;
  element("state").textContent = `joined: ${about.target}`;
  messages.forEach(({ role, content }) => say(role, content));
  goOn();
  await loadDrafter();
}

/** The edge was updated while this page was open: load the page that belongs to it, but not for ever. */
function newerPage() {
  if (sessionStorage.getItem(RELOADED) === String(about.version)) {
    element("state").textContent = `the edge speaks protocol ${about.version} and this page ${PROTOCOL_VERSION}: clear the browser's cache`;
    return;
  }
  sessionStorage.setItem(RELOADED, String(about.version));
  location.reload();
}

async function loadDrafter() {
  const { drafter: file } = about;
  const bar = element("drafter-progress");
  const state = element("drafter-state");
  const million = (bytes) => (bytes / 1e6).toFixed(0);
  try {
    state.textContent = `loading ${file.name} …`;
    bar.hidden = false;
    const blob = await edge.drafter(file, (done) => {
      bar.value = done / file.bytes;
      state.textContent = `loading ${file.name}: ${million(done)} of ${million(file.bytes)} MB`;
    });
    state.textContent = `starting ${file.name} …`;
    const { WllamaDrafter } = await import("./drafter.js");
    drafter = await WllamaDrafter.load(blob, about.max_length, table);
    showSpeed();
  } catch (error) {
    state.textContent = `no drafter here (${error.message}); the edge writes alone`;
  } finally {
    bar.hidden = true;
  }
}

function showSpeed() {
  const { name } = about.drafter;
  const threads = drafter.threads === 1 ? "1 thread" : `${drafter.threads} threads`;
  const alone = unasked ? "; the edge did not ask for its drafts: it is faster without" : "";
  element("drafter-state").textContent = `ready: ${name}, ${(drafter.secondsPerToken * 1e3).toFixed(0)} ms a token, ${threads}${alone}`;
}

/** Whether this device drafts for the text that begins now. */
const helps = () => drafter !== null && element("helping").checked;

/** Most of this device's drafted tokens that may be wasted in a stream, 0 … 1; an empty field bounds nothing. */
function maxWastedShare() {
  const percent = element("wasted").valueAsNumber;
  return Number.isNaN(percent) ? 1 : percent / 100;
}

function newClient(box) {
  const helping = helps();
  return new DeviceClient({
    url: edge.sessionUrl,
    hello: {
      type: "Hello",
      version: PROTOCOL_VERSION,
      fingerprint: about.fingerprint,
      name: deviceName(),
      drafter: helping ? `${about.drafter.name} (page)`.slice(0, 80) : "none",
      drafts: helping,
      profile: [drafter?.secondsPerToken || 0.05, SPECTRAL_EFFICIENCY],
      credential: edge.token,
    },
    drafter: whoeverIsThere,
    table,
    maxWastedShare: maxWastedShare(),
    onProgress: (progress) => {
      write(box, progress);
      figures.count(progress);
      if (drafter) showSpeed();
      save();
      element("state").textContent = `joined: ${about.target}`;
    },
    onOutage: (why, delayMs) => {
      element("state").textContent = `${why}; trying again in ${(delayMs / 1e3).toFixed(1)} s`;
    },
  });
}

function deviceName() {
  const known = /iPhone|iPad|Android|Windows|Macintosh|Linux/.exec(navigator.userAgent);
  return `page on ${known ? known[0] : "a browser"}`;
}

function save() {
  const saved = client.session.save();
  if (saved) sessionStorage.setItem(UNDER_WAY, JSON.stringify(saved));
  else sessionStorage.removeItem(UNDER_WAY);
}

/** Have one answer written, from a request or from what a page before this one has kept. */
async function answer(request, saved = null) {
  const box = say("assistant");
  client = newClient(box);
  element("send").textContent = "Stop";
  try {
    if (saved) {
      client.session.restore(saved);
      box.append(client.session.text);
    }
    await client.generate(request);
  } catch (error) {
    say("note", error instanceof InputError ? error.message : `something went wrong: ${error.message}`);
  }
  unasked = client.session.hello.drafts && figures.text.drafted === 0 && figures.text.tokens > 0;
  figures.end();
  if (drafter) showSpeed();
  messages.push({ role: "assistant", content: client.session.text });
  const { session } = client;
  document.dispatchEvent(new CustomEvent("answered", { detail: { ids: session.generated, text: session.text, finish: session.finish, seed: String(session.params.seed) } }));
  client = null;
  sessionStorage.setItem(MESSAGES, JSON.stringify(messages));
  sessionStorage.removeItem(UNDER_WAY);
  element("send").textContent = "Send";
}

/** Go on with the text that was under way when the page was loaded anew. */
function goOn() {
  const kept = sessionStorage.getItem(UNDER_WAY);
  if (kept) answer(null, JSON.parse(kept));
}

async function ask(question) {
  messages.push({ role: "user", content: question });
  sessionStorage.setItem(MESSAGES, JSON.stringify(messages));
  say("user", question);
  try {
    const prompt = await edge.prompt(messages);
    const room = about.max_length - prompt.length;
    if (room < 1) throw new Error("the conversation is too long for this edge: begin a new one");
    await answer({
      prompt,
      maxTokens: Math.min(Number(element("most").value) || 128, room),
      stopIds: about.stop_ids,
      temperature: Number(element("temperature").value) || 0,
      seed: null,
    });
  } catch (error) {
    say("note", error.message);
  }
}

element("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(element("token").value.trim());
  join();
});
element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (client) return client.stop();
  const question = element("question").value.trim();
  element("question").value = "";
  if (question) ask(question);
});
// The browser points at a setting that cannot be: it must be seen.
element("ask").addEventListener("invalid", ({ target }) => (target.closest("details").open = true), true);
element("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !client) {
    event.preventDefault();
    element("ask").requestSubmit();
  }
});
element("marking").addEventListener("change", ({ target }) => element("chat").classList.toggle("plain", !target.checked));
element("forget").addEventListener("click", () => {
  client?.stop();
  messages = [];
  for (const key of [MESSAGES, UNDER_WAY]) sessionStorage.removeItem(key);
  element("chat").replaceChildren();
});
join();
