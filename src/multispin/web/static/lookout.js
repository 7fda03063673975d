/** Looks for an edge that is away, less and less often, until it is found. */
import { pauseMs } from "/device/client/index.js";

/** Waits between two attempts. */
export const PAUSES = { firstDelayMs: 1000, longestDelayMs: 30_000 };
/** Time without an edge after which the page stops looking [ms], until the user does something. */
export const LOOK_FOR_MS = 12 * 3600e3;

export class Lookout {
  /** @param {() => Promise<void>} look one attempt; it calls `again` if the edge is away, and `end` if it is there */
  constructor(look) {
    this.look = look;
    this.looking = false;
    this.timer = null;
    this.end();
  }

  /** Look at once, and restart the count. */
  async now() {
    this.end();
    await this.attempt();
  }

  /** Look at once if the edge is being looked for; the count goes on. */
  hurry() {
    if (this.timer !== null) this.attempt();
  }

  /** Look again later, since the edge is away. Returns the wait [ms]; null when it is time to give up. */
  again() {
    this.since ??= Date.now();
    clearTimeout(this.timer);
    this.timer = null;
    if (Date.now() - this.since > LOOK_FOR_MS) return null;
    const delay = pauseMs((this.failures += 1), PAUSES);
    this.timer = setTimeout(() => this.attempt(), delay);
    return delay;
  }

  /** Stop looking: the edge is there, or is not needed. */
  end() {
    clearTimeout(this.timer);
    this.timer = this.since = null;
    this.failures = 0;
  }

  async attempt() {
    if (this.looking) return;
    clearTimeout(this.timer);
    this.timer = null;
    this.looking = true;
    try {
      await this.look();
    } finally {
      this.looking = false;
    }
  }
}
