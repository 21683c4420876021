// The grid of cards: what runs first, then the results, the latest first; and what of it to show.

import { Card } from "./card.js";
import { byId, setAttribute, setHidden, setText } from "./dom.js";
import { Filters } from "./filters.js";
import { served } from "./served.js";
import { isActive } from "./video.js";

const AGES_MS = 30_000;
const SHOWN = 24; // at once; more on demand
const WORTH_SEARCHING = 7; // fewer are seen at a glance

export class Gallery {
  #videos;
  #pins;
  #filters;
  #compared = null; // id of the video that waits for one to be compared with
  #act;
  #loadOlder;
  #limit = SHOWN;
  #isSearching = false;
  #cards = new Map();
  #seen = new IntersectionObserver((entries) => this.#see(entries), { rootMargin: "400px" });

  /** `act(action, id)` does what a button or key on a card asks for; `loadOlder()` lengthens the list. */
  constructor(videos, pins, { act, loadOlder }) {
    this.#videos = videos;
    this.#pins = pins;
    this.#filters = new Filters(pins, () => this.#filter());
    this.#act = act;
    this.#loadOlder = loadOlder;
    videos.addEventListener("change", () => this.render());
    pins.addEventListener("change", () => this.render());
    byId("grid").addEventListener("click", (event) => this.#click(event));
    byId("grid").addEventListener("keydown", (event) => this.#key(event));
    byId("older").addEventListener("click", () => this.#showMore());
    new ResizeObserver(() => this.#cards.forEach((card) => card.measure())).observe(byId("grid"));
    setInterval(() => this.#cards.forEach((card) => card.updateAge()), AGES_MS);
  }

  /** Gives all frames one shape, that of the model's usual size, so that the grid is even. */
  shape(size) {
    const [width, height] = size.split("x").map(Number);
    const ratio = Math.min(Math.max(width / height, 0.8), 16 / 9);
    byId("grid").style.setProperty("--frame", ratio);
    byId("grid").classList.toggle("narrow", ratio < 1.2);
  }

  /** Marks the video that waits for one to be compared with; null for none. */
  markCompared(id) {
    this.#compared = id;
    this.render();
  }

  /** The videos that the search leaves, in the order of the grid: what runs, what is pinned, the rest. */
  get matching() {
    const place = (video) => (isActive(video) ? 0 : this.#pins.has(video.id) ? 1 : 2);
    return this.#filters.of(this.#videos.results).toSorted((one, other) => place(one) - place(other));
  }

  render() {
    const { matching } = this;
    const shown = matching.slice(0, this.#limit);
    const grid = byId("grid");
    const isFirst = grid.getAttribute("aria-busy") === "true";
    if (isFirst) grid.replaceChildren();
    setAttribute(grid, "aria-busy", false);
    this.#drop(shown);
    shown.forEach((video, index) => {
      const card = this.#cards.get(video.id) ?? this.#add(video, !isFirst);
      if (grid.children[index] !== card.element) grid.insertBefore(card.element, grid.children[index]);
      card.update(video, {
        reconnecting: this.#videos.reconnecting,
        isPinned: this.#pins.has(video.id),
        isCompared: video.id === this.#compared,
        canRemix: Boolean(served.remixer(video)),
        canExtend: Boolean(served.extender(video)),
      });
    });
    setHidden(grid, shown.length === 0);
    setHidden(byId("older"), matching.length <= this.#limit && !this.#videos.hasOlder);
    this.#showHead(matching);
  }

  /** Shows what can be made of the videos by the models that are served now. */
  showMakers() {
    if (byId("grid").getAttribute("aria-busy") === "false") this.render();
  }

  card(id) {
    return this.#cards.get(id);
  }

  /** The id of the card beside this one: the next, else the one before. */
  neighbour(id) {
    const ids = this.matching.map((video) => video.id);
    const index = ids.indexOf(id);
    return ids[index + 1] ?? ids[index - 1];
  }

  #showHead(matching) {
    const { shown, results, hasOlder } = this.#videos;
    setHidden(byId("empty"), shown.length > 0);
    const { isOn } = this.#filters;
    setHidden(byId("tools"), !isOn && !hasOlder && results.length < WORTH_SEARCHING);
    setHidden(byId("no-match"), !isOn || matching.length > 0);
    const all = hasOlder ? `${results.length} and older ones` : String(results.length);
    const count = isOn ? `${matching.length} of ${all}` : all;
    setText(byId("gallery-count"), results.length ? count : "");
  }

  /** Applies the search; what it finds may be anywhere in the list. */
  async #filter() {
    this.#limit = SHOWN;
    this.render();
    if (this.#isSearching) return;
    this.#isSearching = true;
    while (this.#filters.isOn && this.#videos.hasOlder && (await this.#loadOlder()));
    this.#isSearching = false;
  }

  async #showMore() {
    this.#limit += SHOWN;
    this.render();
    byId("older").disabled = true;
    if (this.matching.length < this.#limit && this.#videos.hasOlder) await this.#loadOlder();
    byId("older").disabled = false;
  }

  #add(video, isNew) {
    const card = new Card(video);
    card.element.classList.toggle("new", isNew);
    this.#cards.set(video.id, card);
    this.#seen.observe(card.element);
    return card;
  }

  #drop(shown) {
    const ids = new Set(shown.map((video) => video.id));
    for (const [id, card] of this.#cards) {
      if (ids.has(id)) continue;
      this.#seen.unobserve(card.element);
      card.unsee();
      card.element.remove();
      this.#cards.delete(id);
    }
  }

  #see(entries) {
    for (const { isIntersecting, target } of entries) {
      const card = this.#cards.get(target.dataset.id);
      if (isIntersecting) card?.see();
      else card?.unsee();
    }
  }

  #click(event) {
    const id = event.target.closest(".card")?.dataset.id;
    if (!id) return;
    if (event.target.closest(".card-more")) return void this.#cards.get(id).toggleMore();
    const button = event.target.closest("[data-action], .frame-open");
    if (button) this.#act(button.dataset.action ?? "open", id, event);
  }

  #key(event) {
    const id = event.target.closest(".card")?.dataset.id;
    if (!id || event.key !== "Delete") return;
    this.#act(isActive(this.#videos.get(id)) ? "cancel" : "delete", id, event);
  }
}
