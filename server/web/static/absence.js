// Tells who is not looking: the title says what goes on and what is done, and a notification that a
// video has ended, where a person asked for it.

import { urlOf } from "./api.js";
import { byId } from "./dom.js";
import { toast } from "./notices.js";
import { isActive, isCancelled, isPlayable } from "./video.js";
import { failure, plain } from "./words.js";

const NAME = "wan-tpu";
const WANTED = "notify";

export class Absence {
  #videos;
  #open;
  #ended = []; // while nobody looked

  /** `open(id)` shows the video that a notification is about. */
  constructor(videos, open) {
    this.#videos = videos;
    this.#open = open;
    videos.addEventListener("change", () => this.#showTitle());
    videos.addEventListener("moved", ({ detail: { video } }) => this.#moved(video));
    document.addEventListener("visibilitychange", () => this.#looked());
    addEventListener("focus", () => this.#looked());
    byId("notify").hidden = !canNotify();
    byId("notify").addEventListener("click", () => this.#toggle());
    this.#showButton();
  }

  #moved(video) {
    if (isActive(video) || isCancelled(video) || !isAway()) return;
    this.#ended.push(video);
    this.#showTitle();
    if (isWanted()) this.#notify(video);
  }

  #looked() {
    if (isAway()) return;
    this.#ended = [];
    this.#showTitle();
  }

  #showTitle() {
    const running = this.#videos.shown.find((video) => video.status === "in_progress");
    const done = this.#ended.filter(isPlayable).length;
    const parts = [counted(done, "Done"), counted(this.#ended.length - done, "Failed")];
    if (running) parts.push(`${running.progress} %`);
    document.title = [...parts.filter(Boolean), NAME].join(" · ");
  }

  #notify(video) {
    const title = isPlayable(video) ? "Your video is done" : failure(video.error).title;
    const options = { body: plain(video.prompt), tag: video.id, icon: urlOf("web/icon.svg") };
    const notification = new Notification(title, options); // the tag: of several tabs, one speaks
    notification.addEventListener("click", () => {
      focus();
      notification.close();
      this.#open(video.id);
    });
  }

  async #toggle() {
    const permission = isWanted() ? "granted" : await Notification.requestPermission();
    if (permission !== "granted") {
      return toast("The browser does not let this page notify you; its settings for this page can change that.");
    }
    const wanted = !isWanted();
    remember(wanted);
    this.#showButton();
    return toast(wanted ? "You are notified when a video ends while you look elsewhere." : "No more notifications.");
  }

  #showButton() {
    byId("notify").setAttribute("aria-pressed", isWanted());
    byId("notify").title = isWanted() ? "Stop notifying me" : "Notify me when a video is done";
  }
}

/** Whether nobody looks, as far as a page can know: another tab, or another window before it. */
function isAway() {
  return document.hidden || !document.hasFocus();
}

/** "Done", "3 done", or "" for none. */
function counted(number, word) {
  if (number === 0) return "";
  return number === 1 ? word : `${number} ${word.toLowerCase()}`;
}

/** Pages may notify on computers; phones let only installed programs do so. */
function canNotify() {
  return "Notification" in globalThis && isSecureContext && !matchMedia("(pointer: coarse) and (hover: none)").matches;
}

function isWanted() {
  try {
    return canNotify() && Notification.permission === "granted" && localStorage.getItem(WANTED) === "yes";
  } catch {
    return false; // storage is blocked
  }
}

function remember(wanted) {
  try {
    if (wanted) localStorage.setItem(WANTED, "yes");
    else localStorage.removeItem(WANTED);
  } catch {
    // Storage is blocked, and with it what needs to be remembered.
  }
}
