// What the page says to a person: one banner, short toasts, and words for screen readers.

import { byId } from "./dom.js";

const TOAST_MS = 7_000;

let bannerOwner = null;

/**
 * Shows the banner: a sentence, at most one thing to do, and, for an error, a way to dismiss it.
 * `owner` names who shows it, so that only the same one, or the reader, takes it away.
 */
export function showBanner(owner, text, { kind = "error", action = null, onAction = null } = {}) {
  bannerOwner = owner;
  byId("banner").dataset.kind = kind;
  byId("banner-text").textContent = text;
  byId("banner-action").hidden = !action;
  byId("banner-action").textContent = action ?? "";
  byId("banner-action").onclick = onAction;
  byId("banner-close").hidden = kind !== "error";
  byId("banner").hidden = false;
}

export function hideBanner(owner) {
  if (bannerOwner !== owner) return;
  bannerOwner = null;
  byId("banner").hidden = true;
}

byId("banner-close").addEventListener("click", () => hideBanner(bannerOwner));

/** Says something to screen readers only. */
export function announce(text) {
  byId("live").textContent = text;
}

/** Shows a sentence for a while, with at most one thing to do; `onEnd` runs unless it was done. */
export function toast(text, { action = null, onAction = null, onEnd = () => {} } = {}) {
  const element = document.createElement("div");
  element.className = "toast";
  const words = document.createElement("p");
  words.textContent = text;
  element.append(words);
  let timer = null;
  let ended = false;
  const end = (callback) => {
    if (ended) return;
    ended = true;
    clearTimeout(timer);
    removeEventListener("pagehide", leave);
    element.remove();
    callback();
  };
  const leave = () => end(onEnd);
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(leave, TOAST_MS);
  };
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action;
    button.addEventListener("click", () => end(onAction));
    element.append(button);
  }
  // Whoever points at it or stands on it with the keyboard has all the time there is.
  for (const stay of ["pointerenter", "focusin"]) element.addEventListener(stay, () => clearTimeout(timer));
  for (const go of ["pointerleave", "focusout"]) element.addEventListener(go, wait);
  addEventListener("pagehide", leave);
  byId("toasts").append(element);
  wait();
}
