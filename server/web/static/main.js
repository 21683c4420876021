// Puts the page together: what a person does here, and which part answers.

import { Absence } from "./absence.js";
import { api, apiKey, ServiceError, Unreachable, urlOf } from "./api.js";
import { Compare } from "./compare.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { byId } from "./dom.js";
import { Fleet } from "./fleet.js";
import { Forecast } from "./forecast.js";
import { Gallery } from "./gallery.js";
import { ANEW, EXTEND, requestAgain } from "./inputs.js";
import { watchKey } from "./key.js";
import { download, videoFile } from "./media.js";
import { announce, ask, hideNotice, showNotice, toast } from "./notices.js";
import { Pins } from "./pins.js";
import { Queue } from "./queue.js";
import { served } from "./served.js";
import { Slices } from "./slices.js";
import { curlCommand, drawKey, fileName, isCancelled } from "./video.js";
import { Videos } from "./videos.js";
import { Viewer } from "./viewer.js";
import { advice, dateTime, failure, plain, stage } from "./words.js";

const NO_ANSWER = "The service does not answer. Nothing you wrote is lost, and nothing is made twice.";
const NO_MODEL = "No slice serves a model now. What waits is made when one does; this page goes on looking.";

const videos = new Videos();
const pins = new Pins();
const gallery = new Gallery(videos, pins, { act, loadOlder });
const queue = new Queue(videos, { act, cancelAll: askToCancelAll });
const compare = new Compare(videos, { onChange: () => gallery.markCompared(compare.first) });
const viewer = new Viewer(videos, pins, { act, inOrder: () => gallery.matching });
const composer = new Composer({ create: submitForm, onError: formRefused, onChange: () => forecast.show() });
const fleet = new Fleet();
const forecast = new Forecast(videos, () => composer.wanted, (model) => fleet.isIdle(model));
const connection = new Connection();
const retries = new Map(); // id -> idempotency key, until it is answered: asked twice, made once

const ACTIONS = {
  open: (id) => {
    gallery.card(id)?.pause();
    return viewer.open(id);
  },
  cancel: (id) => videos.cancel(id),
  retry: async (id) => {
    if (!retries.has(id)) retries.set(id, drawKey());
    await submit(await requestAgain(videos.get(id)), retries.get(id));
    retries.delete(id);
  },
  reuse: async (id) => {
    const undo = await composer.use(videos.get(id));
    toast(settingsAreThere(videos.get(id)), { action: "Undo", onAction: undo });
  },
  compare: (id) => {
    gallery.card(id)?.pause();
    return compare.take(id);
  },
  pin: (id) => pin(videos.get(id)),
  remix: (id) => makeFrom(id, ANEW),
  extend: (id) => makeFrom(id, EXTEND),
  download: (id, event) => {
    if (!apiKey.get()) return undefined; // the link itself does it
    event.preventDefault();
    return download(id, fileName(videos.get(id)));
  },
  share: (id) => share(videos.get(id)),
  curl: (id) => copyCurl(videos.get(id)),
  id: (id) => copy(id, { title: "Copy the id", said: "Copied: the id of this video." }),
  delete: (id) => deleteWithUndo(id),
};

/** That a model is gone, without which a video would be another one, is said. */
function settingsAreThere({ model }) {
  if (model === composer.model?.id) return "The settings are in the form.";
  return `What it shows is in the form; its model, ${plain(model)}, is not served now.`;
}

async function makeFrom(id, use) {
  const undo = await composer.makeFrom(videos.get(id), use);
  const what = use === EXTEND ? "Say what happens next, and how long." : "Say what the video shall show instead.";
  toast(what, { action: "Undo", onAction: undo });
}

async function act(action, id, event) {
  const owner = `${action} ${id}`;
  hideNotice(owner);
  try {
    await ACTIONS[action](id, event);
  } catch (error) {
    refuse(owner, error, () => act(action, id, event));
  }
}

function submitForm(request, key) {
  hideNotice("submit"); // what was refused before is being done now
  return submit(request, key);
}

function formRefused(error) {
  refuse("submit", error, () => composer.submit());
}

async function submit(request, key) {
  const video = await videos.create(request, key).catch((error) => {
    if (["no_model", "model_not_found"].includes(error.code)) lookForModels();
    throw error;
  });
  announce(`Queued: ${plain(video.prompt)}`);
  const row = queue.row(video.id);
  const isFar = row && byId("gallery").contains(row); // behind all videos: that it waits is said before them
  const place = isFar ? byId("gallery-title") : (row ?? gallery.card(video.id)?.element);
  place?.scrollIntoView({ block: "nearest" });
}

/**
 * Says that the service did not do what a person asked for. It stays until it is dismissed, or done
 * after all; `owner` names what was asked for, and `again` does it once more.
 */
function refuse(owner, error, again = null) {
  const isAway = error instanceof Unreachable;
  if (!isAway && !(error instanceof ServiceError)) throw error;
  if (error.status === 401) return; // the dialog for the key is open
  const text = isAway ? NO_ANSWER : advice(error);
  const isForLater = again && (isAway || [429, 503].includes(error.status));
  showNotice(owner, text, { action: isForLater ? "Try again" : null, onAction: again });
  if (document.querySelector("dialog[open]")) toast(text); // the notice lies behind it
}

/** Deletes at the service when the time to undo it is over, or the page is left. */
function deleteWithUndo(id) {
  const neighbour = gallery.neighbour(id);
  const hadFocus = gallery.card(id)?.element.contains(document.activeElement);
  videos.hide(id);
  if (hadFocus) (gallery.card(neighbour) ?? byId("prompt")).focus();
  const remove = () => {
    hideNotice(`delete ${id}`);
    return videos.remove(id).then(() => pins.forget(id)).catch((error) => refuse(`delete ${id}`, error, remove));
  };
  toast("Video deleted.", {
    action: "Undo",
    onAction: () => {
      videos.unhide(id);
      gallery.card(id)?.focus();
    },
    onEnd: remove,
  });
}

function pin(video) {
  if (!pins.toggle(video.id)) return;
  const until = video.expires_at ? ` The service keeps it until ${dateTime(video.expires_at)}: download what you want for longer.` : "";
  toast(`Pinned on this device.${until}`);
}

async function loadPinned() {
  for (const id of pins.ids) if (!(await videos.loadOne(id))) pins.forget(id);
}

async function askToCancelAll() {
  const number = videos.queue.length;
  const isSure = await ask({
    title: `Cancel all ${number} waiting videos?`,
    text: "What is being made goes on. What is brought back afterwards stands at the end of the line.",
    yes: "Cancel all",
    no: "Keep them",
  });
  if (isSure) await cancelAll();
}

/** Takes all that waits off the queue; what was asked for can be asked for again. */
async function cancelAll() {
  hideNotice("cancel all");
  const waiting = videos.queue;
  const taken = [];
  const requests = new Map(); // made first: what they were made from goes with them
  waiting.forEach(({ id }) => videos.hide(id));
  try {
    for (const video of waiting.toReversed()) {
      requests.set(video, await requestAgain(video));
      await videos.remove(video.id);
      taken.unshift(video);
    }
  } catch (error) {
    waiting.forEach(({ id }) => videos.unhide(id));
    refuse("cancel all", error, cancelAll);
  }
  if (!taken.length) return;
  const text = taken.length === 1 ? "One waiting video cancelled." : `${taken.length} waiting videos cancelled.`;
  toast(text, { action: "Undo", onAction: () => askAgain(taken.map((video) => [requests.get(video), drawKey()])) });
}

/** Sends requests one after the other; those that are left are tried again together. */
async function askAgain(requests) {
  const owner = `ask again ${requests[0][1]}`;
  const left = requests.slice();
  hideNotice(owner);
  try {
    for (; left.length; left.shift()) await videos.create(...left[0]);
  } catch (error) {
    refuse(owner, error, () => (hideNotice(owner), askAgain(left)));
  }
}

/** Passes a video on to another program of the device. */
async function share(video) {
  const file = await videoFile(video.id, fileName(video));
  const pass = () =>
    navigator.share({ files: [file] }).catch((error) => {
      if (error.name === "AbortError") return; // the reader thought better of it
      // Loading it took longer than a browser lets a click count: another one is needed.
      if (error.name === "NotAllowedError") toast("The video is ready.", { action: "Share", onAction: pass });
      else toast("This device did not take the video. Download it instead.");
    });
  return pass();
}

function copyCurl(video) {
  const command = curlCommand(video, urlOf, Boolean(apiKey.get()));
  return copy(command, { title: "Copy as curl", said: "Copied: a curl command that makes this video." });
}

async function copy(text, { title, said }) {
  try {
    await navigator.clipboard.writeText(text);
    toast(said);
  } catch {
    // Browsers give the clipboard to pages over HTTPS and from this machine only.
    byId("copy-title").textContent = title;
    byId("copy-text").value = text;
    byId("copy-dialog").showModal();
    byId("copy-text").select();
  }
}

function tellProgress({ detail: { video, from } }) {
  const prompt = plain(video.prompt);
  if (video.status === "completed") announce(`Finished: ${prompt}`);
  else if (isCancelled(video)) announce(`Cancelled: ${prompt}`);
  else if (video.status === "failed") {
    const { title, text } = failure(video.error);
    announce(`${title}: ${prompt}. ${text}`);
  } else if (from === "in_progress" || video.status === "in_progress") announce(stage(video));
}

/** Shows the video of a notification: plays it, or goes to where it says why there is none. */
function show(id) {
  if (videos.get(id)?.status === "completed") act("open", id);
  else gallery.card(id)?.element.scrollIntoView({ block: "center" });
}

function shortcuts(event) {
  const isTyping = event.target.matches("input, textarea, select");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("prompt").focus();
  }
  if (event.key === "?") byId("help").showModal();
}

/** Lengthens the list; whether it could. */
async function loadOlder() {
  hideNotice("older");
  try {
    await videos.loadOlder();
    return true;
  } catch (error) {
    refuse("older", error, loadOlder);
    return false;
  }
}

/** Takes over what is served; whatever it is, the videos stay. */
function useModels(models) {
  composer.load(models);
  if (models.length) hideNotice("models");
  else showNotice("models", NO_MODEL, { kind: "warning" });
  gallery.showMakers();
}

/** Asks for the models before it is time to: a slice must have gone or come. */
function lookForModels() {
  fleet.lookForModels().catch((error) => {
    if (!(error instanceof Unreachable || error instanceof ServiceError)) throw error; // else it is asked again
  });
}

/** Loads everything; runs again when the service is back or the key has changed. */
async function start() {
  hideNotice("start");
  try {
    const { data: models } = await api.models();
    useModels(models);
    gallery.shape(served.model.defaults?.size ?? "832x480");
    fleet.start(models);
    await videos.start();
    await loadPinned();
  } catch (error) {
    // That nobody answers is said already, with what is done about it.
    if (!(error instanceof Unreachable)) refuse("start", error, start);
  }
}

videos.addEventListener("moved", tellProgress);
fleet.addEventListener("models", ({ detail: models }) => useModels(models));
fleet.addEventListener("slices", () => forecast.show());
connection.addEventListener("back", start);
byId("open-help").addEventListener("click", () => byId("help").showModal());
byId("help-close").addEventListener("click", () => byId("help").close());
byId("copy-close").addEventListener("click", () => byId("copy-dialog").close());
addEventListener("keydown", shortcuts);

new Absence(videos, show);
new Slices(fleet);
watchKey(start);
connection.start();
start();
