// Whether the service is there and ready: asks /readyz, backs off while it is away, and says so.

import { api, contact } from "./api.js";
import { byId } from "./dom.js";
import { hideNotice, showNotice } from "./notices.js";

const FIRST_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 15_000;
const STARTING_MS = 2_000;
const READY_MS = 10_000;

const NOT_READY = "The service is not ready. What you ask for now waits in line and is made as soon as it can be.";
const AWAY = "The service cannot be reached. Reconnecting by itself; nothing you wrote is lost.";
const WORDS = { connecting: "Connecting", ready: "Ready", waiting: "Not ready", offline: "Reconnecting" };

/** Back-off with jitter: 1, 2, 4, 8, 15, 15 ... seconds, each between one half and all of it. */
export function retryDelay(attempt) {
  const delay = Math.min(FIRST_RETRY_MS * 2 ** attempt, LONGEST_RETRY_MS);
  return delay * (0.5 + Math.random() / 2);
}

/** Tells "back" when the service answers again after it was away. */
export class Connection extends EventTarget {
  #state = "connecting";
  #attempt = 0;
  #timer = null;
  #asking = false;

  start() {
    contact.addEventListener("unreachable", () => this.#lost());
    contact.addEventListener("reachable", () => {
      if (this.#state === "offline") this.check();
    });
    addEventListener("online", () => this.check());
    document.addEventListener("visibilitychange", () => document.hidden || this.check());
    this.check();
  }

  /** Asks now. */
  async check() {
    if (this.#asking) return;
    this.#asking = true;
    clearTimeout(this.#timer);
    try {
      this.#found(await api.isReady());
    } catch {
      this.#lost(); // `isReady` throws only when nothing answers
    } finally {
      this.#asking = false;
      this.#schedule();
    }
  }

  #found(ready) {
    const wasAway = this.#state === "offline";
    this.#attempt = 0;
    this.#show(ready ? "ready" : "waiting");
    if (ready) hideNotice("connection");
    else showNotice("connection", NOT_READY, { kind: "warning" });
    if (wasAway) this.dispatchEvent(new Event("back"));
  }

  #lost() {
    if (this.#state === "offline") return;
    this.#show("offline");
    showNotice("connection", AWAY, {
      kind: "warning",
      action: "Try now",
      onAction: () => this.check(),
    });
    if (!this.#asking) this.#schedule();
  }

  #schedule() {
    clearTimeout(this.#timer);
    if (document.hidden && this.#state === "ready") return;
    const delay = { ready: READY_MS, waiting: STARTING_MS }[this.#state] ?? retryDelay(this.#attempt++);
    this.#timer = setTimeout(() => this.check(), delay);
  }

  #show(state) {
    this.#state = state;
    byId("service").dataset.state = state;
    byId("service-text").textContent = WORDS[state];
  }
}
