// All videos that the page knows, newest first, kept up to date.
//
// The page holds one stream of events at a time, that of the job which runs or runs next: browsers
// allow six connections to a host, and every tab needs some to play. The list is asked for the rest.

import { api, ServiceError, Unreachable } from "./api.js";
import { retryDelay } from "./connection.js";
import { endOf, isActive, isEnded, isExpired } from "./video.js";

const PAGE = 100;
const RESULTS = 24; // that are there at once, however many wait before them
const TRIES = 3;
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
  #views = {}; // lists that are asked for many times before anything changes
  #hidden = new Set(); // deleted here, and not yet in the service: the reader may undo it
  #edits = 0; // counts changes that the list may not have; one asked for before them is out of date
  #cursor = null; // id of the last one of the list as far as it is loaded
  #beyond = new Set(); // ids that were asked for by themselves, and may lie behind it
  #running = null; // AbortController of the loops
  #failures = 0; // of the stream, in a row
  #pages = 1; // that the newest part of the list took

  /** What there is to see, newest first. */
  get shown() {
    return (this.#views.shown ??= this.#order.filter((id) => !this.#hidden.has(id)).map((id) => this.#videos.get(id)));
  }

  /** What waits, the next one first. */
  get queue() {
    return (this.#views.queue ??= this.#inQueue());
  }

  #inQueue() {
    const place = (video) => video.queue_position ?? Infinity;
    const waiting = this.shown.filter((video) => video.status === "queued").reverse();
    return waiting.sort((one, other) => place(one) - place(other) || 0); // Infinity - Infinity is NaN
  }

  /** What runs, then what has ended, the latest first. */
  get results() {
    return (this.#views.results ??= this.#asResults());
  }

  #asResults() {
    const running = this.shown.filter((video) => video.status === "in_progress");
    const ended = this.shown.filter(isEnded).sort((one, other) => endOf(other) - endOf(one));
    return [...running, ...ended];
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
    let pages;
    let edits;
    let tries = 0;
    do {
      if (tries++ === TRIES) return; // much is being changed here, and the next poll is soon
      edits = this.#edits;
      pages = await this.#newest();
    } while (edits !== this.#edits);
    this.#pages = pages.length;
    const { last_id: lastId, has_more: hasMore } = pages.at(-1);
    const last = this.#order.indexOf(lastId);
    const behind = hasMore && last >= 0 ? this.#order.slice(last + 1) : [];
    const older = behind.filter((id) => !this.#beyond.has(id));
    if (!older.length) [this.hasOlder, this.#cursor] = [hasMore, lastId];
    const fresh = pages.flatMap((page) => page.data);
    for (const id of this.#beyond) if (isExpired(this.#videos.get(id))) this.#beyond.delete(id);
    this.#keep([...new Set([...fresh.map((video) => video.id), ...older, ...this.#beyond])]);
    fresh.forEach((video) => this.#put(video));
    this.reconnecting = false;
    this.#changed();
  }

  /** The newest pages of the list: all that waits or runs, and some results behind it. */
  async #newest() {
    const pages = [await api.list({ limit: PAGE })];
    while (pages.at(-1).has_more) {
      const { data, last_id: after } = pages.at(-1);
      const ended = pages.flatMap((page) => page.data).filter(isEnded).length;
      if (ended >= RESULTS && !data.some(isActive) && !this.#isActiveBehind(after)) break;
      pages.push(await api.list({ limit: PAGE, after }));
    }
    return pages;
  }

  #isActiveBehind(id) {
    const behind = this.#order.slice(this.#order.indexOf(id) + 1);
    return this.#order.includes(id) && behind.some((other) => isActive(this.#videos.get(other)));
  }

  async loadOlder() {
    const page = await api.list({ limit: PAGE, after: this.#cursor });
    [this.hasOlder, this.#cursor] = [page.has_more, page.last_id];
    for (const video of page.data) {
      this.#beyond.delete(video.id);
      if (!this.#videos.has(video.id)) this.#order.push(video.id);
      this.#put(video);
    }
    this.#changed();
  }

  /** Loads one by its id, wherever in the list it is; false where the service has it no more. */
  async loadOne(id) {
    if (this.#videos.has(id)) return true;
    try {
      const video = await api.get(id);
      this.#beyond.add(id);
      this.#order.push(id);
      this.#put(video);
    } catch (error) {
      if (error instanceof ServiceError && error.status === 404) return false;
      throw error;
    }
    this.#changed();
    return true;
  }

  async create(request, idempotencyKey) {
    const { videos, ...first } = await api.create(request, idempotencyKey);
    this.#edits += 1;
    for (const video of videos ?? [first]) {
      if (!this.#videos.has(video.id)) this.#order.unshift(video.id);
      this.#put(video);
    }
    this.#changed();
    return first;
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
    return true;
  }

  /** Makes these ids the list; what is not among them is gone from the service. */
  #keep(ids) {
    this.#views = {};
    const kept = new Set(ids);
    for (const id of this.#order.filter((id) => !kept.has(id))) {
      this.#beyond.delete(id);
      this.#videos.delete(id);
      this.#hidden.delete(id);
    }
    this.#order = ids;
  }

  #put(video) {
    const known = this.#videos.get(video.id);
    this.#videos.set(video.id, video);
    this.#views = {};
    if (known && (known.status !== video.status || known.stage !== video.stage)) {
      this.dispatchEvent(new CustomEvent("moved", { detail: { video, from: known.status } }));
    }
  }

  #changed() {
    this.#views = {};
    this.dispatchEvent(new Event("change"));
  }

  /** The job whose events are worth the stream: the one that runs, else the next. */
  get #next() {
    const active = this.shown.filter(isActive).reverse();
    return active.find((video) => video.status === "in_progress") ?? active[0];
  }

  async #poll(signal) {
    let idle = 0;
    while (!signal.aborted) {
      const wasLooked = await pause(BUSY_POLL_MS * this.#pages, signal);
      idle += BUSY_POLL_MS * this.#pages;
      const isBusy = this.shown.some(isActive);
      // Out of sight it goes on as long as there is something to wait for.
      const isDue = isBusy || wasLooked || (idle >= IDLE_POLL_MS && !document.hidden);
      if (signal.aborted || !isDue) continue;
      idle = 0;
      await this.refresh().catch(() => this.#reconnects(true));
    }
  }

  async #follow(signal) {
    while (!signal.aborted) {
      const video = this.#next;
      try {
        const isFollowed = video && (await inTurn(() => this.#listen(video.id, signal)));
        if (isFollowed) await this.refresh();
        else await this.#wake(signal);
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Unreachable) this.#reconnects(true);
        await pause(retryDelay(this.#failures++), signal);
      }
    }
  }

  /** Applies a job's events until it ends or the page goes out of sight; true. */
  async #listen(id, signal) {
    const away = new AbortController();
    const leave = () => document.hidden && away.abort();
    document.addEventListener("visibilitychange", leave);
    try {
      for await (const video of api.events(id, AbortSignal.any([signal, away.signal]))) {
        this.#failures = 0;
        this.#reconnects(false);
        if (!video) return this.#forget(id);
        if (!this.#videos.has(id)) return true;
        if (video.status !== this.#videos.get(id).status) this.#edits += 1;
        this.#put(video);
        this.#changed();
        if (!isActive(video)) return true;
      }
      throw new Unreachable(`the stream of ${id} ended before the job`);
    } catch (error) {
      if (!away.signal.aborted) throw error;
    } finally {
      document.removeEventListener("visibilitychange", leave);
    }
    return true;
  }

  #reconnects(reconnecting) {
    if (this.reconnecting === reconnecting) return;
    this.reconnecting = reconnecting;
    this.#changed();
  }

  /** Waits until something changes here or the page is looked at, or no longer. */
  #wake(signal) {
    return new Promise((resolve) => {
      const once = { once: true };
      this.addEventListener("change", resolve, once);
      document.addEventListener("visibilitychange", resolve, once);
      signal.addEventListener("abort", resolve, once);
    });
  }
}

/**
 * Runs `listen` if this page may have a stream: in sight always, out of sight one page of all.
 * Six forgotten tabs that each held a connection would leave none for the seventh; they poll.
 */
function inTurn(listen) {
  if (!document.hidden) return listen();
  return navigator.locks?.request("stream out of sight", { ifAvailable: true }, (lock) => lock && listen());
}

/** Waits, and no longer than until the page is looked at again: whether it was that. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const done = new AbortController();
    const end = (wasLooked) => (done.abort(), clearTimeout(timer), resolve(wasLooked));
    const timer = setTimeout(end, milliseconds, false);
    signal.addEventListener("abort", () => end(false), { signal: done.signal });
    const look = () => document.hidden || end(true);
    document.addEventListener("visibilitychange", look, { signal: done.signal });
  });
}
