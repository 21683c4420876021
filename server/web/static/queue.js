// What waits, as a short list that stands in no result's way: below the form, and on narrow screens,
// where there is one column, below the videos.

import { byId, setAttribute, setHidden, setText } from "./dom.js";
import * as words from "./words.js";

const SHOWN = 3; // lines, until all are asked for
const template = byId("queue-template");
const isNarrow = matchMedia("(max-width: 56rem)");

export class Queue {
  #videos;
  #rows = new Map();
  #isWhole = false;

  /** `act(action, id)` does what a button of a line asks for; `cancelAll()` that of all. */
  constructor(videos, { act, cancelAll }) {
    this.#videos = videos;
    videos.addEventListener("change", () => this.render());
    isNarrow.addEventListener("change", put);
    put();
    byId("queue-cancel").addEventListener("click", cancelAll);
    byId("queue-more").addEventListener("click", () => {
      this.#isWhole = !this.#isWhole;
      this.render();
    });
    byId("queue-rows").addEventListener("click", (event) => {
      const prompt = event.target.closest(".row-prompt");
      if (prompt) prompt.setAttribute("aria-expanded", prompt.classList.toggle("whole"));
      const button = event.target.closest("[data-action]");
      if (button) act(button.dataset.action, button.closest("[data-id]").dataset.id, event);
    });
    byId("queue-rows").addEventListener("keydown", (event) => {
      if (event.key === "Delete") act("cancel", event.target.closest("[data-id]").dataset.id, event);
    });
  }

  render() {
    const waiting = this.#videos.queue;
    const shown = this.#isWhole ? waiting : waiting.slice(0, SHOWN);
    if (!waiting.length && byId("queue").contains(document.activeElement)) byId("gallery-title").focus();
    setHidden(byId("queue"), waiting.length === 0);
    setHidden(byId("queue-cancel"), waiting.length < 2);
    setText(byId("queue-count"), String(waiting.length));
    setHidden(byId("waiting"), waiting.length === 0);
    setText(byId("waiting"), `${waiting.length} waiting`);
    setHidden(byId("queue-more"), waiting.length <= SHOWN);
    setAttribute(byId("queue-more"), "aria-expanded", this.#isWhole);
    setText(byId("queue-more"), this.#isWhole ? "Show fewer" : `Show all ${waiting.length}`);
    this.#drop(new Set(shown.map((video) => video.id)));
    shown.forEach((video, index) => this.#place(video, index));
  }

  /** The line of a video that waits, if it is shown. */
  row(id) {
    return this.#rows.get(id);
  }

  #place(video, index) {
    const row = this.#rows.get(video.id) ?? this.#add(video);
    const rows = byId("queue-rows");
    if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index]);
    setText(row.querySelector(".row-place"), String(index + 1));
    const left = this.#videos.reconnecting ? "Reconnecting…" : words.doneIn(video.seconds_left);
    const facts = [video.size.replace("x", "×"), words.duration(Number(video.seconds)), left];
    setText(row.querySelector(".row-facts"), facts.filter(Boolean).join(" · "));
  }

  #add(video) {
    const row = template.content.firstElementChild.cloneNode(true);
    const prompt = words.plain(video.prompt);
    row.dataset.id = video.id;
    setText(row.querySelector(".row-prompt"), prompt);
    row.querySelector(".row-prompt").title = prompt;
    const labels = { reuse: "Use these settings", cancel: "Cancel" };
    for (const [action, label] of Object.entries(labels)) {
      const button = row.querySelector(`[data-action="${action}"]`);
      button.setAttribute("aria-label", `${label}: ${prompt}`);
      button.title = label;
    }
    this.#rows.set(video.id, row);
    return row;
  }

  /** Takes away the lines of others; the keyboard goes on to the next line. */
  #drop(ids) {
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      const next = row.nextElementSibling ?? row.previousElementSibling;
      const hadFocus = row.contains(document.activeElement);
      row.remove();
      this.#rows.delete(id);
      if (hadFocus) (next?.querySelector('[data-action="cancel"]') ?? byId("gallery-title")).focus();
    }
  }
}

function put() {
  byId(isNarrow.matches ? "gallery" : "side").append(byId("queue"));
}
