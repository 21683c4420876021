// The grid of cards: what runs first, then the results, the latest first; and what of it to show.

import { Card } from "./card.js";
import { byId } from "./dom.js";
import { isActive, isPlayable } from "./video.js";

const AGES_MS = 30_000;
const SHOWN = 24; // at once; more on demand
const WORTH_SEARCHING = 7; // fewer are seen at a glance

const KINDS = {
  all: () => true,
  completed: isPlayable,
  failed: (video) => video.status === "failed",
};

export class Gallery {
  #videos;
  #act;
  #loadOlder;
  #limit = SHOWN;
  #isSearching = false;
  #cards = new Map();
  #seen = new IntersectionObserver((entries) => this.#see(entries), { rootMargin: "400px" });

  /** `act(action, id)` does what a button or key on a card asks for; `loadOlder()` lengthens the list. */
  constructor(videos, { act, loadOlder }) {
    this.#videos = videos;
    this.#act = act;
    this.#loadOlder = loadOlder;
    videos.addEventListener("change", () => this.render());
    byId("grid").addEventListener("click", (event) => this.#click(event));
    byId("grid").addEventListener("keydown", (event) => this.#key(event));
    byId("older").addEventListener("click", () => this.#showMore());
    byId("search").addEventListener("input", () => this.#filter());
    byId("kind").addEventListener("change", () => this.#filter());
    byId("show-all").addEventListener("click", () => this.#showAll());
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

  /** The videos that the search and the kind leave, in the order of the grid. */
  get matching() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const isKind = KINDS[byId("kind").value];
    return this.#videos.results.filter((video) => {
      const prompt = video.prompt.toLowerCase();
      return isKind(video) && words.every((word) => prompt.includes(word));
    });
  }

  render() {
    const { matching } = this;
    const shown = matching.slice(0, this.#limit);
    const grid = byId("grid");
    const isFirst = grid.getAttribute("aria-busy") === "true";
    if (isFirst) grid.replaceChildren();
    grid.setAttribute("aria-busy", "false");
    this.#drop(shown);
    shown.forEach((video, index) => {
      const card = this.#cards.get(video.id) ?? this.#add(video, !isFirst);
      if (grid.children[index] !== card.element) grid.insertBefore(card.element, grid.children[index]);
      card.update(video, this.#videos);
    });
    grid.hidden = shown.length === 0;
    byId("older").hidden = matching.length <= this.#limit && !this.#videos.hasOlder;
    this.#showHead(matching);
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

  get #isFiltered() {
    return byId("search").value.trim() !== "" || byId("kind").value !== "all";
  }

  #showHead(matching) {
    const { shown, results, hasOlder } = this.#videos;
    byId("empty").hidden = shown.length > 0;
    byId("tools").hidden = !this.#isFiltered && !hasOlder && results.length < WORTH_SEARCHING;
    byId("no-match").hidden = !this.#isFiltered || matching.length > 0;
    const all = hasOlder ? `${results.length} and older ones` : String(results.length);
    const count = this.#isFiltered ? `${matching.length} of ${all}` : all;
    byId("gallery-count").textContent = results.length ? count : "";
  }

  /** Applies the search; what it finds may be anywhere in the list. */
  async #filter() {
    this.#limit = SHOWN;
    this.render();
    if (this.#isSearching) return;
    this.#isSearching = true;
    while (this.#isFiltered && this.#videos.hasOlder && (await this.#loadOlder()));
    this.#isSearching = false;
  }

  #showAll() {
    byId("search").value = "";
    byId("kind").value = "all";
    this.render();
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
