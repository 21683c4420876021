// Puts the page together: what a person does here, and which part answers.

import { api, apiKey, ServiceError, Unreachable, urlOf } from "./api.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { byId } from "./dom.js";
import { Gallery } from "./gallery.js";
import { watchKey } from "./key.js";
import { download } from "./media.js";
import { announce, hideBanner, showBanner, toast } from "./notices.js";
import { curlCommand, drawKey, fileName, isCancelled, requestBody, settingsOf } from "./video.js";
import { Videos } from "./videos.js";
import { Viewer } from "./viewer.js";
import { advice, failureTitle, stage } from "./words.js";

const videos = new Videos();
const gallery = new Gallery(videos, act);
const viewer = new Viewer(videos, act);
const composer = new Composer(submit, (error) => showError(error, () => composer.submit()));
const connection = new Connection();

const ACTIONS = {
  open: (id) => {
    gallery.card(id)?.pause();
    return viewer.open(id);
  },
  cancel: (id) => videos.cancel(id),
  retry: (id) => submit(requestBody(settingsOf(videos.get(id))), drawKey()),
  reuse: (id) => {
    const undo = composer.use(settingsOf(videos.get(id)));
    toast("The settings are in the form.", { action: "Undo", onAction: undo });
  },
  download: (id, event) => {
    if (!apiKey.get()) return undefined; // the link itself does it
    event.preventDefault();
    return download(id, fileName(videos.get(id)));
  },
  curl: (id) => copyCurl(videos.get(id)),
  delete: (id) => deleteWithUndo(id),
};

async function act(action, id, event) {
  try {
    await ACTIONS[action](id, event);
  } catch (error) {
    showError(error, () => act(action, id, event));
  }
}

async function submit(body, key) {
  const video = await videos.create(body, key);
  hideBanner("error");
  announce(`Queued: ${video.prompt}`);
  gallery.card(video.id)?.element.scrollIntoView({ block: "nearest" });
}

/** Shows an error that belongs to no field; `again` does once more what failed. */
function showError(error, again = null) {
  if (error instanceof Unreachable) return toast("The service does not answer. Try again when it is back; nothing is made twice.");
  if (!(error instanceof ServiceError)) throw error;
  if (error.status === 401) return undefined; // the dialog for the key is open
  const isForLater = again && [429, 503].includes(error.status);
  return showBanner("error", advice(error), {
    action: isForLater ? "Try again" : null,
    onAction: () => (hideBanner("error"), again()),
  });
}

/** Deletes at the service when the time to undo it is over, or the page is left. */
function deleteWithUndo(id) {
  const neighbour = gallery.neighbour(id);
  const hadFocus = gallery.card(id)?.element.contains(document.activeElement);
  videos.hide(id);
  if (hadFocus) (gallery.card(neighbour) ?? byId("prompt")).focus();
  toast("Video deleted.", {
    action: "Undo",
    onAction: () => {
      videos.unhide(id);
      gallery.card(id)?.focus();
    },
    onEnd: () => videos.remove(id).catch(showError),
  });
}

async function copyCurl(video) {
  const command = curlCommand(settingsOf(video), urlOf("v1/videos"), Boolean(apiKey.get()));
  try {
    await navigator.clipboard.writeText(command);
    toast("Copied: a curl command that makes this video.");
  } catch {
    // Browsers give the clipboard to pages over HTTPS and from this machine only.
    byId("copy-text").value = command;
    byId("copy-dialog").showModal();
    byId("copy-text").select();
  }
}

function tellProgress({ detail: { video, from } }) {
  if (video.status === "completed") announce(`Finished: ${video.prompt}`);
  else if (isCancelled(video)) announce(`Cancelled: ${video.prompt}`);
  else if (video.status === "failed") {
    announce(`${failureTitle(video.error?.code)}: ${video.prompt}. ${video.error?.message ?? ""}`);
  } else if (from === "in_progress" || video.status === "in_progress") announce(stage(video));
}

function showTitle() {
  const running = videos.shown.find((video) => video.status === "in_progress");
  document.title = running ? `${running.progress} % · wan-tpu` : "wan-tpu";
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

async function showOlder() {
  byId("older").disabled = true;
  await videos.loadOlder().catch(showError);
  byId("older").disabled = false;
}

/** Loads everything; runs again when the service is back or the key has changed. */
async function start() {
  try {
    composer.load((await api.models()).data);
    gallery.shape(composer.model.defaults?.size ?? "832x480");
    await videos.start();
  } catch (error) {
    showError(error);
  }
}

videos.addEventListener("change", showTitle);
videos.addEventListener("moved", tellProgress);
connection.addEventListener("back", start);
byId("older").addEventListener("click", showOlder);
byId("open-help").addEventListener("click", () => byId("help").showModal());
byId("help-close").addEventListener("click", () => byId("help").close());
byId("copy-close").addEventListener("click", () => byId("copy-dialog").close());
addEventListener("keydown", shortcuts);

watchKey(start);
connection.start();
start();
