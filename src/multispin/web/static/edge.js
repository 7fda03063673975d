/** What the page asks its edge for over HTTP, and what it keeps in the browser. */
import { pauseMs } from "/device/client/index.js";
import { AwayError, fetchWith } from "./fetching.js";
import { PAUSES } from "./lookout.js";

const STORE = "files";
const MOST_FAILURES = 20; // of a download, one after the other

export class Edge {
  /** @param {string} token credential of this device; may be empty */
  constructor(token) {
    this.token = token;
  }

  /** @returns {string} address of the session endpoint */
  get sessionUrl() {
    return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/session`;
  }

  fetch(path, options) {
    return fetchWith(this.token, path, options);
  }

  /** @returns {Promise<object>} the target, its fingerprint and the drafter's file */
  async about() {
    return (await this.fetch("/device/about")).json();
  }

  /** @returns {Promise<Uint8Array>} the bytes of the target's tokens */
  async tokens() {
    return new Uint8Array(await (await this.fetch("/device/tokens")).arrayBuffer());
  }

  /** @returns {Promise<number[]>} ids of a conversation, up to where the answer begins */
  async prompt(messages) {
    const body = JSON.stringify({ messages });
    return (await (await this.fetch("/device/prompt", { method: "POST", body })).json()).ids;
  }

  /**
   * The drafter's file, kept in the browser by its SHA-256. An interrupted download goes on where it stopped.
   *
   * @param {{url: string, bytes: number, sha256: string}} file
   * @param {(done: number) => void} onProgress called with the number of bytes so far
   * @returns {Promise<Blob>}
   */
  async drafter(file, onProgress) {
    const kept = await keep("readonly", (store) => store.get(file.sha256)).catch(() => undefined);
    if (kept?.size === file.bytes) return kept;
    let parts = [];
    let done = 0;
    for (let failures = 0; done < file.bytes; ) {
      try {
        const answer = await this.fetch(file.url, { headers: done ? { Range: `bytes=${done}-` } : {} });
        if (done && answer.status !== 206) [parts, done] = [[], 0]; // a proxy sent the whole file
        for await (const part of chunks(answer.body)) {
          parts.push(part);
          onProgress((done += part.length));
          failures = 0;
        }
        if (done < file.bytes) throw new AwayError("the download ended early");
      } catch (error) {
        if (!(error instanceof AwayError) || (failures += 1) > MOST_FAILURES) throw error;
        await new Promise((resolve) => setTimeout(resolve, pauseMs(failures, PAUSES)));
      }
    }
    const blob = new Blob(parts);
    if (blob.size !== file.bytes) throw new Error(`the drafter's file has ${blob.size} bytes, not ${file.bytes}`);
    await keep("readwrite", (store) => {
      store.clear(); // of drafters before this one
      return store.put(blob, file.sha256);
    }).catch(() => {}); // in a private window, or without room, it is fetched again next time
    return blob;
  }
}

async function* chunks(body) {
  const reader = body.getReader();
  const read = () =>
    reader.read().catch(() => {
      throw new AwayError("the edge cannot be reached");
    });
  for (let next = await read(); !next.done; next = await read()) yield next.value;
}

/** One transaction with the browser's database; it works on pages without TLS too. */
function keep(mode, use) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("multispin", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      try {
        const transaction = opening.result.transaction(STORE, mode);
        const request = use(transaction.objectStore(STORE));
        transaction.oncomplete = () => resolve(request.result);
        transaction.onerror = transaction.onabort = () => reject(transaction.error);
      } catch (error) {
        reject(error); // a browser may refuse at once
      }
    };
  });
}
