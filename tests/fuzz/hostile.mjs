/** One text from each of several edges, the JavaScript client's words for how it ended, a line for each. */
import { DeviceClient, PROTOCOL_VERSION } from "../../clients/js/src/index.js";

const [, , url, ...names] = process.argv;
const hello = { type: "Hello", version: PROTOCOL_VERSION, fingerprint: "f", name: "n", drafter: "d", drafts: true, profile: [0.1, 3] };
for (const name of names) {
  const client = new DeviceClient({
    url: `${url}/${name}`,
    hello,
    drafter: { prepare: async () => {}, draft: async (committed, length) => Array(length).fill(3) },
    patience: { firstDelayMs: 1, longestDelayMs: 20, atFirstMs: 100, onceKnownMs: 100, silenceMs: 5_000 },
  });
  const ids = await client.generate({ prompt: [1, 2], maxTokens: 6 }).catch((error) => `${error.constructor.name}: ${error.message}`);
  console.log(JSON.stringify(ids));
}
process.exit(0);
