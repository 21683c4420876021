// Which model the form is for: one of those that are served, as they come and go.

import { byId, setHidden, setText } from "./dom.js";
import { announce } from "./notices.js";
import { served } from "./served.js";
import { plain } from "./words.js";

const NAME = "model";

export class Models {
  #all = []; // those that were served last: while none is, the form stays as it is
  #gone = null; // the id of the one that was chosen and is served no more
  isServed = false; // whether any is, now

  /** `onChoose()` runs when a person has chosen another one. */
  constructor(onChoose) {
    byId("model").addEventListener("change", () => {
      this.#gone = null;
      remember(byId("model").value);
      this.#show();
      onChoose();
    });
  }

  /** The one that is chosen; undefined as long as none was ever served. */
  get chosen() {
    return this.#all.find(({ id }) => id === byId("model").value);
  }

  /** Takes over what is served; whether the chosen one is now another one, or is not what it was. */
  load(models) {
    this.isServed = models.length > 0;
    if (!this.isServed) return false;
    const { chosen } = this;
    const wanted = chosen?.id ?? remembered();
    this.#all = served.models = models;
    offer(models);
    const ids = models.map(({ id }) => id);
    byId("model").value = ids.includes(wanted) ? wanted : ids[0];
    if (ids.includes(this.#gone)) this.#gone = null;
    if (wanted && !ids.includes(wanted)) this.#fallBack(wanted);
    this.#show();
    return !isSame(chosen, this.chosen);
  }

  /** Chooses the one that is called so, if it is served: whether it is. */
  choose(id) {
    const isThere = this.#all.some((model) => model.id === id);
    if (!isThere) return false;
    byId("model").value = id;
    this.#gone = null;
    this.#show();
    return true;
  }

  #fallBack(id) {
    this.#gone = id;
    forget(); // it is said once
    announce(`${this.#words} ${byId("model").value} is chosen.`);
  }

  get #words() {
    return this.#gone ? `${plain(this.#gone)} is not served now.` : "";
  }

  #show() {
    setHidden(byId("model-field"), this.#all.length < 2 && !this.#gone);
    setText(byId("model-hint"), this.#words);
    setHidden(byId("model-hint"), !this.#gone);
  }
}

/** Lists the models; a list that is as it was stays, for it may be open. */
function offer(models) {
  const list = byId("model");
  const isAsBefore = list.options.length === models.length && models.every(({ id }, index) => list.options[index].value === id);
  if (!isAsBefore) list.replaceChildren(...models.map(({ id }) => new Option(id)));
}

/** Whether a model is what it was; when it was first served, servers of one fleet do not agree on. */
function isSame(one, other) {
  const text = (model) => JSON.stringify({ ...model, created: null });
  return one !== undefined && text(one) === text(other);
}

function remember(id) {
  try {
    localStorage.setItem(NAME, id);
  } catch {
    // Storage is blocked: it is chosen until the page is closed.
  }
}

function forget() {
  try {
    localStorage.removeItem(NAME);
  } catch {
    // Storage is blocked, and remembers nothing.
  }
}

function remembered() {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null; // storage is blocked
  }
}
