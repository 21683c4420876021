// The panel of a fleet: what each slice serves and what it is at. It opens from the header, and stays open.

import { byId, make, setAttribute, setHidden, setText } from "./dom.js";
import { slicesInShort, stateOfSlice } from "./words.js";

const NAME = "slices";
const OPEN = "open";

export class Slices {
  #rows = new Map();

  constructor(fleet) {
    const [panel, button] = [byId("slices"), byId("open-slices")];
    button.addEventListener("click", () => {
      this.#open(panel.hidden);
      remember(!panel.hidden);
    });
    if (isRemembered()) this.#open(true); // before they are known, so that nothing moves when they are
    fleet.addEventListener("slices", () => (fleet.slices ? this.#render(fleet.slices) : this.#open(false)));
    new ResizeObserver(makeReachable).observe(byId("slice-rows"));
  }

  #open(isOpen) {
    setHidden(byId("slices"), !isOpen);
    setAttribute(byId("open-slices"), "aria-expanded", isOpen);
  }

  #render(slices) {
    setHidden(byId("open-slices"), false);
    setText(byId("open-slices"), slicesInShort(slices));
    byId("open-slices").dataset.broken = slices.some(({ state }) => state === "broken");
    setHidden(byId("no-slices"), slices.length > 0);
    setHidden(byId("slice-rows"), slices.length === 0);
    this.#drop(new Set(slices.map(({ id }) => id)));
    slices.forEach((slice, index) => this.#place(slice, index));
    makeReachable();
  }

  #place(slice, index) {
    const row = this.#rows.get(slice.id) ?? this.#add(slice);
    const rows = byId("slice-rows");
    if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index]);
    const { state, since } = stateOfSlice(slice);
    row.dataset.state = slice.state;
    setText(row.querySelector(".slice-state"), state);
    setText(row.querySelector(".slice-since"), since);
    setText(row.querySelector(".slice-facts"), [slice.model, slice.layout].filter(Boolean).join(" · "));
    setText(row.querySelector(".slice-words"), slice.words);
    row.querySelector(".slice-words").title = slice.words;
  }

  #add({ id }) {
    const row = document.createElement("li");
    const part = (name, text = "") => Object.assign(make("p", text), { className: `slice-${name}` });
    row.className = "slice";
    row.append(part("name", id), part("state"), part("since"), part("facts"), part("words"));
    this.#rows.set(id, row);
    return row;
  }

  #drop(ids) {
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
  }
}

/** Lets the keyboard scroll the rows where there are more than are in sight. */
function makeReachable() {
  const rows = byId("slice-rows");
  rows.tabIndex = rows.scrollHeight > rows.clientHeight + 1 ? 0 : -1;
}

function remember(isOpen) {
  try {
    if (isOpen) localStorage.setItem(NAME, OPEN);
    else localStorage.removeItem(NAME);
  } catch {
    // Storage is blocked: it is as the page begins, the next time.
  }
}

function isRemembered() {
  try {
    return localStorage.getItem(NAME) === OPEN;
  } catch {
    return false; // storage is blocked
  }
}
