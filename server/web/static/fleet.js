// The slices of a fleet, and the models that come and go with them; a server with its own slice has neither.

import { api, ServiceError, Unreachable } from "./api.js";
import { pause } from "./videos.js";

const LOOK_MS = 5_000;
const LOOKS_FOR_MODELS = 6; // so seldom where the slices say nothing new: the list of models is long

/** Tells "slices" after each look at them, and "models" ({detail: [model, ...]}) after each at those. */
export class Fleet extends EventTarget {
  slices = null; // [{id, model, state, words, since, layout}]; null while none are known of
  #isOne = false; // a server with its own slice, which is not asked again
  #running = null; // AbortController of the loop
  #known = ""; // what the slices served when the models were asked for
  #looks = 0; // since then

  /** Looks again and again while the page is in sight; the models were asked for just now. */
  start(models) {
    this.#running?.abort();
    if (this.#isOne) return;
    this.#running = new AbortController();
    [this.#known, this.#looks] = [namesOf(models.map(({ id }) => id)), 0];
    this.#follow(this.#running.signal);
  }

  /** Asks for the models now, where they can have changed. */
  async lookForModels() {
    if (this.#isOne) return;
    const { data } = await api.models();
    this.#looks = 0;
    this.dispatchEvent(new CustomEvent("models", { detail: data }));
  }

  /** Whether some slice of a model has nothing to do. */
  isIdle(model) {
    return this.slices?.some((slice) => slice.model === model && slice.state === "ready") ?? false;
  }

  async #follow(signal) {
    while (!signal.aborted) {
      try {
        await this.#look();
      } catch (error) {
        if (error.status === 401) return; // a new key starts it anew
        if (error.status === 404) return this.#isAlone();
        if (!(error instanceof ServiceError || error instanceof Unreachable)) throw error;
      }
      do await pause(LOOK_MS, signal);
      while (document.hidden && !signal.aborted);
    }
  }

  #isAlone() {
    this.#isOne = true;
    this.dispatchEvent(new Event("slices"));
  }

  async #look() {
    this.slices = (await api.slices()).data;
    this.dispatchEvent(new Event("slices"));
    const served = namesOf(this.slices.map(({ model }) => model));
    this.#looks += 1;
    if (served === this.#known && served !== "" && this.#looks < LOOKS_FOR_MODELS) return;
    await this.lookForModels();
    this.#known = served;
  }
}

function namesOf(names) {
  return [...new Set(names)].sort().join("\n");
}
