// All videos that the page knows, newest first, kept up to date.
//
// The page holds one stream of events at a time, that of the job which runs or runs next: browsers
// allow six connections to a host, and every tab needs some to play. The list is asked for the rest.

import { api, ServiceError, Unreachable } from "./api.js";
import { retryDelay } from "./connection.js";
import { releaseMedia } from "./media.js";
import { isActive } from "./video.js";

const PAGE = 24;
const BUSY_POLL_MS = 3_000;
const IDLE_POLL_MS = 20_000;

/**
 * Tells "change" when anything in the list did, and "moved" ({video, from}) when a job went on to
 * another status or stage.
 */
export class Videos extends EventTarget {
  hasOlder = false;
  reconnecting = false; // what is shown may be out of date
  #videos = new Map();
  #order = []; // ids, newest first
  #hidden = new Set(); // deleted here, and not yet in the service: the reader may undo it
  #edits = 0; // counts changes made here; a list asked for before one of them is out of date
  #running = null; // AbortController of the loops
  #failures = 0; // of the stream, in a row

  /** What there is to see, newest first. */
  get shown() {
    return this.#order.filter((id) => !this.#hidden.has(id)).map((id) => this.#videos.get(id));
  }

  get(id) {
    return this.#videos.get(id);
  }

  /** Loads the list and follows it until `stop`. */
  async start() {
    this.stop();
    this.#running = new AbortController();
    const { signal } = this.#running;
    this.#poll(signal);
    this.#follow(signal);
    await this.refresh();
  }

  stop() {
    this.#running?.abort();
    this.#running = null;
  }

  async refresh() {
    let page;
    let edits;
    do {
      edits = this.#edits;
      page = await api.list({ limit: PAGE });
    } while (edits !== this.#edits);
    const last = this.#order.indexOf(page.last_id);
    const older = page.has_more && last >= 0 ? this.#order.slice(last + 1) : [];
    if (!older.length) this.hasOlder = page.has_more;
    this.#keep([...page.data.map((video) => video.id), ...older]);
    page.data.forEach((video) => this.#put(video));
    this.reconnecting = false;
    this.#changed();
  }

  async loadOlder() {
    const page = await api.list({ limit: PAGE, after: this.#order.at(-1) });
    this.hasOlder = page.has_more;
    for (const video of page.data) {
      if (!this.#videos.has(video.id)) this.#order.push(video.id);
      this.#put(video);
    }
    this.#changed();
  }

  async create(body, idempotencyKey) {
    const video = await api.create(body, idempotencyKey);
    this.#edits += 1;
    if (!this.#videos.has(video.id)) this.#order.unshift(video.id);
    this.#put(video);
    this.#changed();
    return video;
  }

  async cancel(id) {
    const video = await api.cancel(id);
    this.#edits += 1;
    this.#put(video);
    this.#changed();
  }

  /** Takes a video out of sight; `remove` or `unhide` follows. */
  hide(id) {
    this.#hidden.add(id);
    this.#changed();
  }

  unhide(id) {
    this.#hidden.delete(id);
    this.#changed();
  }

  async remove(id) {
    try {
      await api.remove(id);
    } catch (error) {
      if (!(error instanceof ServiceError && error.status === 404)) {
        this.unhide(id);
        throw error;
      }
    }
    this.#forget(id);
  }

  #forget(id) {
    this.#edits += 1;
    this.#keep(this.#order.filter((other) => other !== id));
    this.#changed();
  }

  /** Makes these ids the list; what is not among them is gone from the service. */
  #keep(ids) {
    for (const id of this.#order.filter((id) => !ids.includes(id))) {
      this.#videos.delete(id);
      this.#hidden.delete(id);
      releaseMedia(id);
    }
    this.#order = ids;
  }

  #put(video) {
    const known = this.#videos.get(video.id);
    this.#videos.set(video.id, video);
    if (known && (known.status !== video.status || known.stage !== video.stage)) {
      this.dispatchEvent(new CustomEvent("moved", { detail: { video, from: known.status } }));
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** The job whose events are worth the stream: the one that runs, else the next. */
  get #next() {
    const active = this.shown.filter(isActive).reverse();
    return active.find((video) => video.status === "in_progress") ?? active[0];
  }

  async #poll(signal) {
    while (!signal.aborted) {
      await pause(this.shown.some(isActive) ? BUSY_POLL_MS : IDLE_POLL_MS, signal);
      if (signal.aborted || document.hidden) continue;
      await this.refresh().catch(() => this.#reconnects(true));
    }
  }

  async #follow(signal) {
    while (!signal.aborted) {
      const video = document.hidden ? null : this.#next;
      if (!video) {
        await this.#wake(signal);
        continue;
      }
      try {
        await this.#listen(video.id, signal);
        await this.refresh();
      } catch {
        if (signal.aborted) return;
        this.#reconnects(true);
        await pause(retryDelay(this.#failures++), signal);
      }
    }
  }

  /** Applies a job's events until it ends or the page goes out of sight. */
  async #listen(id, signal) {
    const away = new AbortController();
    const leave = () => document.hidden && away.abort();
    document.addEventListener("visibilitychange", leave);
    try {
      for await (const video of api.events(id, AbortSignal.any([signal, away.signal]))) {
        this.#failures = 0;
        this.#reconnects(false);
        if (!video) return this.#forget(id);
        if (!this.#videos.has(id)) return undefined;
        this.#put(video);
        this.#changed();
        if (!isActive(video)) return undefined;
      }
      throw new Unreachable(`the stream of ${id} ended before the job`);
    } catch (error) {
      if (!away.signal.aborted) throw error;
    } finally {
      document.removeEventListener("visibilitychange", leave);
    }
    return undefined;
  }

  #reconnects(reconnecting) {
    if (this.reconnecting === reconnecting) return;
    this.reconnecting = reconnecting;
    this.#changed();
  }

  /** Waits until something changes here or the page is looked at. */
  #wake(signal) {
    return new Promise((resolve) => {
      const once = { once: true };
      this.addEventListener("change", resolve, once);
      document.addEventListener("visibilitychange", resolve, once);
      signal.addEventListener("abort", resolve, once);
    });
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
