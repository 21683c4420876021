// One video in the gallery: a place that shows its progress, then plays it, and never moves.

import { apiKey, Unreachable } from "./api.js";
import { setText } from "./dom.js";
import { letGo, mediaUrl } from "./media.js";
import { fileName, isActive, isCancelled, isPlayable } from "./video.js";
import * as words from "./words.js";

const SMALL_PIXELS = 160;
const SOON_SECONDS = 3_600;
const PLAYS = 2; // of a video that has just been made; then it rests
const template = document.getElementById("card-template");
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** Whether a video is so small that its pixels are better seen than smoothed. */
export function isSmall(video) {
  return Math.min(...video.size.split("x").map(Number)) <= SMALL_PIXELS;
}

export class Card {
  #video = null;
  #marks = {}; // what is shown beside the video's own state
  #seen = false;
  #loaded = false;
  #plays = 0;

  constructor(video) {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.dataset.id = video.id;
    this.#part(".frame-open").addEventListener("pointermove", (event) => this.#scrub(event));
    this.#part(".frame-open").addEventListener("pointerleave", () => this.#endScrub());
    this.#part(".frame-video").addEventListener("ended", () => this.#ended());
    this.#name(video);
  }

  /** Shows the present state of the video. */
  update(video, marks) {
    const isSame = Object.entries(marks).every(([name, value]) => this.#marks[name] === value);
    if (video === this.#video && isSame) return;
    this.#marks = marks;
    const finishedNow = this.#video && isActive(this.#video) && isPlayable(video);
    this.#video = video;
    this.element.dataset.status = video.status;
    this.element.classList.toggle("cancelled", isCancelled(video));
    this.#part(".frame-progress").hidden = !isActive(video);
    this.#part(".frame-open").hidden = !isPlayable(video);
    this.#part(".frame-corner").hidden = !isPlayable(video);
    this.#mark("pin", marks.isPinned, marks.isPinned ? "Unpin" : "Pin");
    this.#mark("compare", marks.isCompared, "Compare");
    this.#part(".frame-failure").hidden = video.status !== "failed";
    if (isActive(video)) this.#showProgress(video, marks.reconnecting);
    if (video.status === "failed") this.#showFailure(video);
    this.#showActions(video);
    this.updateAge();
    this.#loadMedia({ play: finishedNow && !reducedMotion.matches });
  }

  updateAge() {
    const parts = [this.#video.size.replace("x", "×"), words.duration(Number(this.#video.seconds))];
    parts.push(words.relativeTime(this.#video.created_at));
    setText(this.#part(".card-facts"), parts.join(" · "));
    const kept = this.#part(".card-kept");
    const until = isPlayable(this.#video) ? this.#video.expires_at : null;
    kept.hidden = until === null;
    if (until === null) return;
    setText(kept, words.keptFor(until));
    kept.title = `Kept until ${words.dateTime(until)}`;
    kept.classList.toggle("soon", until - Date.now() / 1000 < SOON_SECONDS);
  }

  /** Says that the card came into sight, so that its picture is worth loading. */
  see() {
    this.#seen = true;
    this.measure();
    this.#loadMedia({ play: false });
  }

  /** Says that it went out of sight: what it holds in memory is given back. */
  unsee() {
    this.#seen = false;
    if (!apiKey.get()) return; // then the browser looks after it
    const player = this.#part(".frame-video");
    this.pause();
    player.removeAttribute("poster");
    player.removeAttribute("src");
    player.load();
    this.#part(".frame-sheet").style.backgroundImage = "";
    this.#loaded = false;
    letGo(this);
  }

  /** Offers the rest of the prompt where it is cut off. */
  measure() {
    const prompt = this.#part(".card-prompt");
    const isWhole = prompt.classList.contains("whole");
    this.#part(".card-more").hidden = !isWhole && prompt.scrollHeight <= prompt.clientHeight + 1;
  }

  /** Shows all of the prompt, or two lines of it. */
  toggleMore() {
    this.#showMore(this.#part(".card-prompt").classList.toggle("whole"));
  }

  /** Puts the keyboard on the card. */
  focus() {
    const parts = [".frame-open", '[data-action="cancel"]', '[data-action="delete"]'];
    parts.map((part) => this.#part(part)).find((part) => part.checkVisibility())?.focus();
  }

  pause() {
    this.#part(".frame-video").pause();
    this.#part(".frame-open").classList.remove("playing");
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }

  #name(video) {
    const prompt = words.plain(video.prompt);
    setText(this.#part(".card-prompt"), prompt);
    this.#part(".card-prompt").title = prompt;
    this.#showMore(false);
    this.#part(".frame-open").setAttribute("aria-label", `Play “${prompt}”`);
    this.#part("progress").setAttribute("aria-label", `Progress of “${prompt}”`);
    this.#part(".frame-video").classList.toggle("pixelated", isSmall(video));
    this.#part(".frame-sheet").classList.toggle("pixelated", isSmall(video));
    const labels = {
      cancel: "Cancel",
      retry: "Try again",
      download: "Download",
      remix: "Remix",
      extend: "Extend",
      reuse: "Use these settings",
      curl: "Copy as curl",
      delete: "Delete",
      compare: "Compare",
      pin: "Pin",
      id: "Copy the id",
    };
    for (const [action, label] of Object.entries(labels)) {
      this.#action(action).setAttribute("aria-label", `${label}: ${prompt}`);
      this.#action(action).title = label;
    }
    this.#action("download").download = fileName(video);
  }

  #mark(action, isPressed, label) {
    const button = this.#action(action);
    button.setAttribute("aria-pressed", isPressed);
    button.setAttribute("aria-label", `${label}: ${this.#part(".card-prompt").textContent}`);
    button.title = label;
  }

  #showMore(isWhole) {
    const button = this.#part(".card-more");
    const word = isWhole ? "Less" : "More";
    setText(button, word);
    button.setAttribute("aria-label", `${word} of the prompt: ${this.#part(".card-prompt").textContent}`);
    button.setAttribute("aria-expanded", isWhole);
  }

  #action(name) {
    return this.#part(`[data-action="${name}"]`);
  }

  #showProgress(video, reconnecting) {
    const bar = this.#part("progress");
    const [stage, detail] = [words.stage(video), words.stageDetail(video)];
    bar.value = video.progress;
    bar.setAttribute("aria-valuetext", `${video.progress} %, ${stage} ${detail}`);
    setText(this.#part(".frame-stage"), stage);
    setText(this.#part(".frame-detail"), detail);
    setText(this.#part(".frame-left"), reconnecting ? "Reconnecting…" : words.timeLeft(video.seconds_left));
  }

  #showFailure(video) {
    const { title, text } = words.failure(video.error);
    setText(this.#part(".failure-title"), title);
    setText(this.#part(".failure-text"), text);
    this.#action("id").hidden = isCancelled(video);
  }

  #showActions(video) {
    this.#action("cancel").hidden = !isActive(video);
    this.#action("retry").hidden = video.status !== "failed";
    this.#action("download").hidden = !isPlayable(video);
    this.#action("remix").hidden = !isPlayable(video) || !this.#marks.canRemix;
    this.#action("extend").hidden = !isPlayable(video) || !this.#marks.canExtend;
    this.#action("delete").hidden = isActive(video);
  }

  async #loadMedia({ play }) {
    if (!this.#seen || !isPlayable(this.#video) || this.#loaded) return;
    this.#loaded = true;
    const { id } = this.#video;
    const player = this.#part(".frame-video");
    try {
      const poster = await mediaUrl(id, "thumbnail", this);
      if (!this.#seen) return; // it has let go meanwhile
      player.poster = poster;
      // With a key it is fetched when it is asked for.
      this.#action("download").href = apiKey.get() ? "#" : await mediaUrl(id, "video", this);
      if (!play) return;
      player.src = await mediaUrl(id, "video", this);
      this.#part(".frame-open").classList.add("playing");
      await player.play();
    } catch (error) {
      // The viewer says what is wrong, and a browser may refuse to play by itself.
      this.#part(".frame-open").classList.remove("playing");
      this.#loaded = !(error instanceof Unreachable) && this.#seen;
    }
  }

  #ended() {
    this.#plays += 1;
    const player = this.#part(".frame-video");
    if (this.#plays < PLAYS) return player.play();
    this.pause();
    if (!apiKey.get()) return undefined;
    player.removeAttribute("src");
    player.load(); // rests at its poster
    return letGo(this, "video");
  }

  /** Shows the frame under the pointer: the left edge is the first, the right one the last. */
  async #scrub(event) {
    const sheet = this.#video.metadata?.spritesheet;
    if (!sheet || event.pointerType !== "mouse") return;
    const open = this.#part(".frame-open");
    const picture = this.#part(".frame-sheet");
    const place = Math.min(Math.max(event.offsetX / open.clientWidth, 0), 0.999);
    const index = Math.floor(place * sheet.frames);
    const [width, height] = this.#video.size.split("x").map(Number);
    const scale = Math.min(open.clientWidth / width, open.clientHeight / height);
    const [shownWidth, shownHeight] = [width * scale, height * scale];
    if (!picture.style.backgroundImage) {
      picture.style.backgroundImage = `url("${await mediaUrl(this.#video.id, "spritesheet", this)}")`;
    }
    picture.style.width = `${shownWidth}px`;
    picture.style.height = `${shownHeight}px`;
    picture.style.backgroundSize = `${sheet.columns * shownWidth}px ${sheet.rows * shownHeight}px`;
    const column = index % sheet.columns;
    const row = Math.floor(index / sheet.columns);
    picture.style.backgroundPosition = `${-column * shownWidth}px ${-row * shownHeight}px`;
    open.classList.add("scrubbing");
  }

  #endScrub() {
    this.#part(".frame-open").classList.remove("scrubbing");
  }
}
