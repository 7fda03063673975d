/** The page that drafts: it joins its edge, loads the drafter, and shows a conversation. */
import { DeviceClient, InputError, PROTOCOL_VERSION, TokenTable } from "/device/client/index.js";
import { element, Figures, say, write } from "./chat.js";
import { Conversation } from "./conversation.js";
import { Edge } from "./edge.js";
import { AwayError, TokenError } from "./fetching.js";
import { keep, kept } from "./kept.js";
import { LOOK_FOR_MS, Lookout } from "./lookout.js";
import { keepToken, token, tryToken } from "./token.js";

const RELOADED = "multispin.reloaded";
const SLEPT_MS = 20_000;
const SPECTRAL_EFFICIENCY = 5; // bit/s/Hz; only a first guess, the edge measures the link
const PATIENCE = { onceKnownMs: LOOK_FOR_MS }; // the user sees that the edge is away, and can stop
/** Drafts once the drafter is loaded; a text that a reload interrupted goes on before that. */
const whoeverIsThere = {
  get maxLength() {
    return drafter?.maxLength;
  },
  prepare: async (committed) => drafter?.prepare(committed).catch(withoutDrafter),
  draft: async (...asked) => (drafter && element("helping").checked ? drafter.draft(...asked).catch(withoutDrafter) : []),
};
/** If the drafter fails, for example out of memory, the text goes on without it. */
function withoutDrafter({ message }) {
  drafter = null;
  element("drafter-state").textContent = `the drafter failed (${message}); the edge writes alone`;
  element("help").classList.add("alone"); // there is nothing to switch off
  return [];
}

const figures = new Figures();
const conversation = new Conversation();
const lookout = new Lookout(join);
let edge, about, table;
let drafter = null;
let loading = null; // ends when the drafter is loaded, or cannot be
let client = null; // of the text that is being written
let busy = null; // ends when the question has been sent and its text has ended
let hiddenAt = 0;

/** Join the edge, or check that it is still there. */
async function join() {
  edge = new Edge(token());
  try {
    const found = await edge.about();
    keepToken();
    if (isAnother(found)) return startedAnew(element("question").value);
    about = found;
    if (about.version !== PROTOCOL_VERSION) return newerPage();
    table ??= TokenTable.unpack(await edge.tokens());
  } catch (error) {
    if (error instanceof TokenError) return askForToken(error);
    return notConnected(error);
  }
  lookout.end();
  element("join").hidden = true;
  for (const id of ["help", "chat", "ask"]) element(id).hidden = false;
  tellJoined();
  if (!element("chat").children.length) {
    conversation.messages.forEach(({ role, content }) => say(role, content));
    alone(goOn);
  }
  const question = conversation.takeQuestion();
  if (question) {
    say("note", "The edge has restarted, so this page was reloaded. Your message was not sent yet.");
    element("question").value = question;
  }
  // Not waited for: this attempt is over.
  if (!drafter) loading ??= loadDrafter().finally(() => (loading = null));
}

const tell = (text) => (element("state").textContent = text);
const tellWaiting = () => tell("waiting for the edge …");
const tellJoined = () => tell(`joined; large model: ${about.target}`);

/** Whether the edge has restarted with another model or drafter. */
const isAnother = (found) => about !== undefined && JSON.stringify(found) !== JSON.stringify(about);

/** Reload the page for the restarted edge; a message that was not sent stays in its box. */
function startedAnew(question) {
  conversation.keepQuestion(question.trim());
  location.reload();
}

/** Show that the edge is away, and look for it. */
function notConnected({ message }) {
  const delayMs = lookout.again();
  const next = delayMs === null ? "send a message to try again" : `trying again in ${(delayMs / 1e3).toFixed(1)} s`;
  tell(`not connected: ${message}; ${next}${about ? "" : ". Check that this device is in the edge’s network"}`);
}

function askForToken(error) {
  lookout.end();
  tell(edge.token ? "not joined" : error.message);
  element("join-problem").textContent = edge.token ? `${error.message}: check it for a typing error, or ask for a new one` : "";
  element("join").hidden = false;
  element("ask").hidden = true;
}

/** The edge was updated while this page was open: reload the page once. */
function newerPage() {
  if (kept("sessionStorage", RELOADED) === String(about.version)) {
    return tell(`the edge speaks protocol ${about.version} and this page ${PROTOCOL_VERSION}: clear the browser's cache`);
  }
  keep("sessionStorage", RELOADED, String(about.version));
  location.reload();
}

async function loadDrafter() {
  const { drafter: file } = about;
  const bar = element("drafter-progress");
  const state = element("drafter-state");
  const million = (bytes) => (bytes / 1e6).toFixed(0);
  state.textContent = `loading ${file.name} …`;
  bar.hidden = false;
  try {
    const { WllamaDrafter } = await import("./drafter.js"); // this also takes time over a slow link
    WllamaDrafter.check();
    const blob = await edge.drafter(file, (done) => {
      bar.value = done / file.bytes;
      state.textContent = `loading ${file.name}: ${million(done)} of ${million(file.bytes)} MB`;
    });
    state.textContent = `starting ${file.name} …`;
    bar.removeAttribute("value"); // the time that this takes is unknown
    drafter = await WllamaDrafter.load(blob, about.max_length, table);
    element("help").classList.remove("alone"); // an earlier drafter may have failed
    showSpeed();
  } catch (error) {
    state.textContent = `this device cannot draft (${error.message}); the edge writes alone`;
    element("help").classList.add("alone"); // there is nothing to switch off
  } finally {
    bar.hidden = true;
  }
}

function showSpeed() {
  const { name } = about.drafter;
  const bound = !globalThis.crossOriginIsolated && navigator.hardwareConcurrency >= 4;
  const one = bound ? "1 thread (more if the page is opened over https)" : "1 thread";
  const threads = drafter.threads === 1 ? one : `${drafter.threads} threads`;
  element("drafter-state").textContent = `ready: ${name}, ${(drafter.secondsPerToken * 1e3).toFixed(0)} ms a token, ${threads}`;
}

/** Show why this device drafted nothing, or nothing for long, for the text that has just ended. */
function tellSilence({ session, silence }, wanted, loaded) {
  const { drafted } = figures.text;
  let why = silence.sentence(drafted, session.generated.length, { resting: "Settings, Most wasted drafts" });
  if (why && !loaded && !drafted) why = "the text began before this device’s drafter was loaded";
  element("silence").textContent = wanted && (drafter || loading) ? why : "";
}

/** Whether this device drafts for a text that begins now. */
const helps = () => drafter !== null && element("helping").checked;

/** Largest share of this device's drafted tokens that may be wasted in a stream, 0 … 1; an empty field means 1. */
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
    patience: PATIENCE,
    onProgress: (progress) => {
      write(box, progress);
      figures.count(progress);
      if (drafter) showSpeed();
      keepText();
      tellJoined();
    },
    onOutage: (why, delayMs) => tell(`${why}; trying again in ${(delayMs / 1e3).toFixed(1)} s`),
  });
}

function deviceName() {
  const known = /iPhone|iPad|Android|Windows|Macintosh|Linux/.exec(navigator.userAgent);
  return `page on ${known ? known[0] : "a browser"}`;
}

const keepText = () => conversation.keepText(client.session.save(), about.fingerprint, client.session.text);

/**
 * Generate one answer.
 *
 * @param {DeviceClient} made the answer's own client
 * @param {HTMLElement} box element that gets the text
 * @param {object|null} request null to go on with the text that the client's session has restored
 * @returns {Promise<Error|null>} why nothing at all was written, if so; a text that breaks off later gets a note
 */
async function answer(made, box, request) {
  client = made;
  lookout.end(); // it looks for the edge itself
  element("send").textContent = "Stop";
  element("silence").textContent = "";
  tellWaiting();
  const [wanted, loaded] = [element("helping").checked, drafter !== null];
  let problem = null;
  try {
    await client.generate(request);
  } catch (error) {
    problem = error instanceof InputError ? error : new Error(`something went wrong: ${error.message}`);
  }
  const { session } = client;
  tellSilence(made, wanted && element("helping").checked, loaded);
  figures.end();
  if (drafter) showSpeed();
  if (problem || made.failures) {
    tell("not connected");
    lookout.now();
  } else tellJoined();
  const answered = session.text !== "" || session.finish !== "";
  if (answered) conversation.add("assistant", session.text);
  else box.remove();
  if (answered && problem) say("note", `The text broke off: ${problem.message}.`);
  conversation.keepText(null);
  client = null;
  element("send").textContent = "Send";
  document.dispatchEvent(new CustomEvent("answered", { detail: { ids: session.generated, text: session.text, finish: session.finish, seed: String(session.params.seed) } }));
  return answered ? null : (problem ?? new Error("it was stopped before its first word"));
}

/** Go on with the text that was being written when the page was reloaded. */
async function goOn() {
  const { underWay } = conversation;
  if (!underWay) return;
  const box = say("assistant", "");
  const made = newClient(box);
  try {
    if (underWay.fingerprint !== about.fingerprint) throw new Error("the edge runs another model now");
    made.session.restore(underWay.saved);
  } catch (error) {
    conversation.keepText(null);
    conversation.add("assistant", underWay.text);
    box.append(underWay.text);
    return void say("note", `This text cannot go on: ${error.message}.`);
  }
  box.append(made.session.text);
  const problem = await answer(made, box, null);
  if (problem) say("note", `This text cannot go on: ${problem.message}.`);
}

async function ask(question) {
  conversation.add("user", question);
  const box = say("user", question);
  let open = false;
  tellWaiting();
  try {
    const [now, prompt] = await Promise.all([edge.about(), edge.prompt(conversation.messages)]);
    if (isAnother(now)) {
      conversation.takeBack();
      return startedAnew(question);
    }
    const room = about.max_length - prompt.length;
    if (room < 1) throw new Error("the conversation is too long for this edge: begin a new one");
    const answerBox = say("assistant");
    open = true;
    const problem = await answer(newClient(answerBox), answerBox, {
      prompt,
      maxTokens: Math.min(Number(element("most").value) || 128, room),
      stopIds: about.stop_ids,
      temperature: Number(element("temperature").value) || 0,
      seed: null,
    });
    if (problem) throw problem;
  } catch (error) {
    conversation.takeBack();
    box.remove();
    element("question").value ||= question;
    const away = error instanceof AwayError ? " Check that the edge runs and that this device is in its network, then send again." : "";
    say("note", `Not answered: ${error.message}.${away}`);
    if (error instanceof TokenError) askForToken(error);
    else if (error instanceof AwayError) notConnected(error);
    else if (!open) tellJoined();
  }
}

/** Run `work`, which writes a text; only one runs at a time. */
async function alone(work) {
  busy = work();
  try {
    await busy;
  } finally {
    busy = null;
  }
}

element("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  tryToken(element("token").value.trim());
  lookout.now();
});
element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (client) return client.stop();
  const question = element("question").value.trim();
  if (busy || !question) return;
  element("question").value = "";
  alone(() => ask(question));
});
// The browser points at a wrong setting, so the settings must be open.
element("ask").addEventListener("invalid", ({ target }) => (target.closest("details").open = true), true);
element("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !client) {
    event.preventDefault();
    element("ask").requestSubmit();
  }
});
element("marking").addEventListener("change", ({ target }) => element("chat").classList.toggle("plain", !target.checked));
element("forget").addEventListener("click", async () => {
  client?.stop();
  await busy;
  conversation.clear();
  element("silence").textContent = "";
  element("chat").replaceChildren();
});
// A phone that slept or changed its network may have a dead connection without knowing it.
const lookAgain = () => (client ? client.reconnect() : lookout.now());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now();
  else if (performance.now() - hiddenAt > SLEPT_MS) lookAgain();
  else if (client) client.hurry();
  else lookout.hurry();
});
window.addEventListener("online", lookAgain);
window.addEventListener("offline", () => {
  if (client) tell("this device has no network; the text goes on when the network is back");
});
lookout.now();
