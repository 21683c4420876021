// What the page says to a person: notices that stay, short toasts, and words for screen readers.

import { byId } from "./dom.js";

const TOAST_MS = 7_000;

const rows = new Map(); // owner -> its row
const template = byId("notice-template");

/**
 * Shows a notice: a sentence and at most one thing to do. Each owner has a row of its own, so that
 * the state of the service never overwrites what a person was refused. A warning goes when its
 * owner hides it; an error also when the reader dismisses it.
 */
export function showNotice(owner, text, { kind = "error", action = null, onAction = null } = {}) {
  const row = rows.get(owner) ?? addRow(owner);
  const words = row.querySelector(".notice-text");
  if (words.textContent !== text) words.textContent = text; // said once, not at every poll
  row.dataset.kind = kind;
  const button = row.querySelector(".notice-action");
  button.hidden = !action;
  button.textContent = action ?? "";
  button.onclick = onAction;
  row.querySelector(".notice-close").hidden = kind !== "error";
}

export function hideNotice(owner) {
  const hadFocus = rows.get(owner)?.contains(document.activeElement);
  rows.get(owner)?.remove();
  rows.delete(owner);
  if (hadFocus) byId("notices").focus(); // the keyboard goes on from there
}

function addRow(owner) {
  const row = template.content.firstElementChild.cloneNode(true);
  row.dataset.owner = owner;
  row.querySelector(".notice-close").addEventListener("click", () => hideNotice(owner));
  rows.set(owner, row);
  byId("notices").append(row);
  return row;
}

/** Says something to screen readers only. */
export function announce(text) {
  byId("live").textContent = text;
}

/** Asks something that cannot be undone in full; whether the answer is `yes`. */
export function ask({ title, text, yes, no }) {
  const dialog = byId("ask");
  for (const [name, words] of Object.entries({ title, text, yes, no })) byId(`ask-${name}`).textContent = words;
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = (isYes) => () => (resolve(isYes), dialog.close());
    byId("ask-yes").onclick = answer(true);
    byId("ask-no").onclick = answer(false);
    dialog.onclose = answer(false); // by Escape; after an answer it changes nothing
  });
}

document.addEventListener("close", () => document.body.append(byId("toasts")), true);

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
  // What lies behind an open dialog can be neither read nor pressed.
  (document.querySelector("dialog[open]") ?? document.body).append(byId("toasts"));
  byId("toasts").append(element);
  wait();
}
