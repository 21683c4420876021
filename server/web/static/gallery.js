// The grid of cards: one per video, in the order of the list, each kept where it is.

import { Card } from "./card.js";
import { byId } from "./dom.js";
import { isActive } from "./video.js";

const AGES_MS = 30_000;

export class Gallery {
  #videos;
  #act;
  #cards = new Map();
  #seen = new IntersectionObserver((entries) => this.#see(entries), { rootMargin: "200px" });

  /** `act(action, id)` does what a button or key on a card asks for. */
  constructor(videos, act) {
    this.#videos = videos;
    this.#act = act;
    videos.addEventListener("change", () => this.render());
    byId("grid").addEventListener("click", (event) => this.#click(event));
    byId("grid").addEventListener("keydown", (event) => this.#key(event));
    setInterval(() => this.#cards.forEach((card) => card.updateAge()), AGES_MS);
  }

  /** Gives all frames one shape, that of the model's usual size, so that the grid is even. */
  shape(size) {
    const [width, height] = size.split("x").map(Number);
    const ratio = Math.min(Math.max(width / height, 0.8), 16 / 9);
    byId("grid").style.setProperty("--frame", ratio);
    byId("grid").classList.toggle("narrow", ratio < 1.2);
  }

  render() {
    const shown = this.#videos.shown;
    const grid = byId("grid");
    const isFirst = grid.getAttribute("aria-busy") === "true";
    if (isFirst) grid.replaceChildren();
    grid.setAttribute("aria-busy", "false");
    this.#drop(shown);
    shown.forEach((video, index) => {
      const card = this.#cards.get(video.id) ?? this.#add(video, !isFirst);
      if (grid.children[index] !== card.element) grid.insertBefore(card.element, grid.children[index]);
    });
    this.#updateCards();
    byId("empty").hidden = shown.length > 0;
    grid.hidden = shown.length === 0;
    byId("older").hidden = !this.#videos.hasOlder;
    byId("gallery-count").textContent = count(shown, this.#videos.hasOlder);
  }

  card(id) {
    return this.#cards.get(id);
  }

  /** The id of the card beside this one: the next, else the one before. */
  neighbour(id) {
    const ids = this.#videos.shown.map((video) => video.id);
    const index = ids.indexOf(id);
    return ids[index + 1] ?? ids[index - 1];
  }

  #updateCards() {
    for (const video of this.#videos.shown) this.#cards.get(video.id)?.update(video, this.#videos);
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
      card.element.remove();
      this.#cards.delete(id);
    }
  }

  #see(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.#cards.get(target.dataset.id)?.see();
      this.#seen.unobserve(target);
    }
  }

  #click(event) {
    const id = event.target.closest(".card")?.dataset.id;
    const button = event.target.closest("[data-action], .frame-open");
    if (id && button) this.#act(button.dataset.action ?? "open", id, event);
  }

  #key(event) {
    const id = event.target.closest(".card")?.dataset.id;
    if (!id || event.key !== "Delete") return;
    this.#act(isActive(this.#videos.get(id)) ? "cancel" : "delete", id, event);
  }
}

function count(videos, hasOlder) {
  const waiting = videos.filter((video) => video.status === "queued").length;
  const running = videos.some((video) => video.status === "in_progress");
  const parts = [];
  if (running) parts.push("1 running");
  if (waiting) parts.push(`${waiting} queued`);
  if (parts.length || !videos.length) return parts.join(", ");
  return hasOlder ? `the newest ${videos.length}` : String(videos.length);
}
