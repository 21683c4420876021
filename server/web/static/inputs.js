// What a video is made from, besides words: images and a video, dropped, pasted or chosen.

import { api } from "./api.js";
import { byId, setFieldError, setText } from "./dom.js";
import { letGo, mediaUrl } from "./media.js";
import { served } from "./served.js";
import { requestOf, settingsOf } from "./video.js";
import { fileSize, plain } from "./words.js";

const FIRST = "input_reference";
const LAST = "last_image";
const WAYS = matchMedia("(pointer: coarse)").matches ? "Choose" : "Drop, paste or choose";
const NAMES = { image: "an image", video: "a video" };

/** How a video is used: made anew by another prompt, or continued from its last frame. */
export const ANEW = "anew";
export const EXTEND = "extend";

/** A file as it goes to the service, or a video that the service has. */
class Given {
  constructor({ kind, blob = null, name = "", id = null }) {
    Object.assign(this, { kind, blob, name, id });
    this.url = blob && URL.createObjectURL(blob);
  }

  free() {
    if (this.url) URL.revokeObjectURL(this.url);
    letGo(this);
  }
}

export class Inputs {
  #given = { [FIRST]: null, [LAST]: null };
  #onChange;

  /** `onChange()` runs whenever something is given or taken away. */
  constructor(onChange) {
    this.#onChange = onChange;
    for (const name of [FIRST, LAST]) {
      byId(name).addEventListener("change", () => {
        const [file] = byId(name).files;
        byId(name).value = ""; // the same file can be chosen again
        if (file) this.take(file, name);
      });
      byId(`${name}-remove`).addEventListener("click", () => {
        this.set(name, null);
        byId(name).focus();
      });
    }
    byId("video-use").addEventListener("change", () => this.#changed());
    addEventListener("paste", (event) => this.#pasted(event));
    addEventListener("dragover", (event) => this.#dragged(event, true));
    addEventListener("dragleave", (event) => event.relatedTarget || this.#dragged(event, false));
    addEventListener("drop", (event) => this.#dropped(event));
  }

  /** Shows the fields for what the model takes; what it does not take is given up. */
  useModel() {
    const first = this.#given[FIRST];
    if (first && !served.takes(first.kind)) this.set(FIRST, null);
    if (!served.takes(LAST)) this.set(LAST, null);
    this.#offerUses(byId("video-use").value);
    this.#changed();
  }

  /** The first image or the video, and how it is used: {kind, blob, id, use}; null for none. */
  get first() {
    const given = this.#given[FIRST];
    return given && { ...given, use: given.kind === "video" ? byId("video-use").value : null };
  }

  get last() {
    return this.#given[LAST];
  }

  /** Takes a file of the reader's, if it can be one of those that the model takes. */
  take(file, name = this.#place(file)) {
    const kind = file.type.split("/")[0];
    const wanted = name === LAST ? ["image"] : served.firsts;
    const most = served.model.limits?.max_upload_bytes ?? Infinity;
    setFieldError(name, null);
    if (!wanted.includes(kind)) {
      setFieldError(name, `This model takes ${inWords(wanted)} here.`);
    } else if (file.size > most) {
      setFieldError(name, `The file has ${fileSize(file.size)}; at most ${fileSize(most)} are taken.`);
    } else {
      this.set(name, { kind, blob: file, name: file.name });
    }
  }

  /** Uses a video of the service as ANEW or EXTEND says. */
  async useVideo(video, use) {
    this.set(LAST, null);
    this.set(FIRST, { kind: "video", id: video.id, name: plain(video.prompt) }, use);
    const given = this.#given[FIRST];
    const url = await mediaUrl(video.id, "video", given);
    if (given === this.#given[FIRST]) byId(`${FIRST}-video`).src = url;
    else letGo(given); // another one has taken its place meanwhile
  }

  /** Fetches and uses what another video was made from. */
  async useInputsOf(video) {
    const files = await inputsOf(video);
    this.set(LAST, files.last_image ?? null);
    const first = files.extended ?? files.video ?? files.image ?? null;
    this.set(FIRST, first, files.extended ? EXTEND : ANEW);
  }

  /** Puts something in its place, or nothing; `given` is what `Given` takes. */
  set(name, given, use = null) {
    this.#given[name]?.free();
    this.#given[name] = given && new Given(given);
    if (given) setFieldError(name, null);
    if (name === FIRST) this.#offerUses(use);
    this.#changed();
  }

  /** What is given now, so that `restore` can bring it back. */
  keep() {
    const copy = (given) => given && { ...given, url: null };
    return { first: copy(this.#given[FIRST]), last: copy(this.last), use: byId("video-use").value };
  }

  restore({ first, last, use }) {
    this.set(LAST, last);
    this.set(FIRST, first, use);
  }

  /** A first place that is free and takes this kind of file. */
  #place(file) {
    const isImage = file.type.startsWith("image/");
    return isImage && this.#given[FIRST]?.kind === "image" && served.takes(LAST) ? LAST : FIRST;
  }

  /** Video to video, or the next part of it: as far as the model does both. */
  #offerUses(use) {
    const uses = [
      [ANEW, "Remix it", served.canRemix],
      [EXTEND, "Extend it", served.canExtend],
    ].filter(([, , can]) => can);
    byId("video-use").replaceChildren(...uses.map(([value, text]) => new Option(text, value)));
    if (use && uses.some(([value]) => value === use)) byId("video-use").value = use;
  }

  #changed() {
    this.#show();
    this.#onChange();
  }

  #show() {
    const { first } = this;
    byId(`${FIRST}-field`).hidden = !served.firsts.length;
    byId(`${LAST}-field`).hidden = !served.takes(LAST) || (first?.kind === "video" && first.use === ANEW);
    byId("video-use").hidden = first?.kind !== "video" || byId("video-use").options.length < 2;
    byId("strength-field").hidden = first?.kind !== "video" || first.use !== ANEW;
    const otherwise = served.needsFile ? "or end with an image" : "optional";
    setText(byId(`${FIRST}-unit`), served.needs("image") ? "needed" : otherwise);
    setText(byId(`${LAST}-unit`), served.needs(LAST) ? "needed" : "optional");
    setText(byId(`${FIRST}-hint`), `${WAYS} ${inWords(served.firsts)}`);
    setText(byId(`${LAST}-hint`), `${WAYS} ${inWords(["image"])}`);
    byId(FIRST).accept = served.firsts.map((kind) => ACCEPTED[kind]).join(",");
    for (const name of [FIRST, LAST]) this.#preview(name, this.#given[name]);
  }

  #preview(name, given) {
    const [image, video] = [byId(`${name}-image`), byId(`${name}-video`)];
    byId(`${name}-drop`).hidden = Boolean(given);
    byId(`${name}-given`).hidden = !given;
    image.hidden = given?.kind !== "image";
    setSource(image, given?.kind === "image" ? given.url : null);
    if (video) {
      video.hidden = given?.kind !== "video";
      if (!given?.id) setSource(video, given?.kind === "video" ? given.url : null);
    }
    if (!given) return;
    setText(byId(`${name}-name`), given.name || `The ${given.kind}`);
    const alt = given.kind === "image" ? image : video;
    alt.setAttribute(given.kind === "image" ? "alt" : "aria-label", given.name);
  }

  #pasted(event) {
    const [file] = event.clipboardData?.files ?? [];
    if (!file || !served.firsts.length || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    this.take(file);
  }

  #dragged(event, isOver) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault(); // else the browser would leave the page for the file
    byId("form").classList.toggle("dragged", isOver && served.firsts.length > 0);
  }

  #dropped(event) {
    this.#dragged(event, false);
    const [file] = event.dataTransfer?.files ?? [];
    if (!file || !served.firsts.length) return;
    const name = event.target.closest?.("[data-field]")?.dataset.field;
    this.take(file, name === LAST ? LAST : this.#place(file));
  }
}

const ACCEPTED = { image: "image/png,image/jpeg,image/webp", video: "video/mp4,video/webm,video/quicktime,.mkv" };

/** The files that a video was made from, by role; empty for words alone. */
export async function inputsOf(video) {
  const { request = {}, extended } = video.metadata ?? {};
  const roles = ["image", LAST, "video"].filter((role) => request[role]);
  if (extended) roles.push("extended");
  const files = {};
  for (const role of roles) {
    const blob = await api.input(video.id, role);
    files[role] = { kind: blob.type.split("/")[0], blob, name: "" };
  }
  return files;
}

/** The request that makes a video once more, with the files that it was made from. */
export async function requestAgain(video) {
  const { image, last_image: last = null, video: clip, extended } = await inputsOf(video);
  const given = extended ?? clip ?? image ?? null;
  return requestOf(settingsOf(video), { first: given && { ...given, use: extended ? EXTEND : ANEW }, last });
}

function inWords(kinds) {
  return kinds.map((kind) => NAMES[kind]).join(" or ");
}

function setSource(element, url) {
  if (url) {
    if (element.src !== url) element.src = url;
  } else {
    element.removeAttribute("src");
    element.load?.(); // a video lets go of what it had
  }
}
