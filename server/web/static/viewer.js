// The dialog that plays one video large and tells everything about it.

import { apiKey } from "./api.js";
import { isSmall } from "./card.js";
import { byId, make } from "./dom.js";
import { canShare, letGo, mediaUrl } from "./media.js";
import { served } from "./served.js";
import { fileName, framesOf, isPlayable, settingsOf } from "./video.js";
import * as words from "./words.js";

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

const STAGES = { image: "image", encode: "encoding", text: "text", denoise: "denoising", decode: "decoding" };

export class Viewer {
  #videos;
  #pins;
  #inOrder;
  #id = null;

  /** `act(action, id)` does what a button asks for; `inOrder()` are the videos to go through. */
  constructor(videos, pins, { act, inOrder }) {
    this.#videos = videos;
    this.#pins = pins;
    this.#inOrder = inOrder;
    const dialog = byId("viewer");
    byId("viewer-close").addEventListener("click", () => dialog.close());
    byId("viewer-previous").addEventListener("click", () => this.#step(-1));
    byId("viewer-next").addEventListener("click", () => this.#step(1));
    dialog.addEventListener("close", () => this.#closed());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => this.#key(event));
    byId("viewer-share").hidden = !canShare;
    for (const action of ["download", "share", "remix", "extend", "reuse", "compare", "pin", "curl", "id", "delete"]) {
      byId(`viewer-${action}`).addEventListener("click", (event) => {
        const id = this.#id;
        if (["remix", "extend", "reuse", "compare", "delete"].includes(action)) dialog.close();
        act(action, id, event);
      });
    }
    byId("viewer-video").addEventListener("error", () => this.#showError());
    videos.addEventListener("change", () => this.#listChanged());
    pins.addEventListener("change", () => this.#showPin());
  }

  async open(id) {
    this.#id = id;
    const video = this.#videos.get(id);
    this.#describe(video);
    if (!byId("viewer").open) byId("viewer").showModal();
    byId("viewer").scrollTo(0, 0);
    await this.#play(video);
  }

  #describe(video) {
    byId("viewer-prompt").textContent = words.plain(video.prompt);
    byId("viewer-facts").replaceChildren(
      ...factsOf(video).flatMap(([name, value]) => [make("dt", name), make("dd", value)]),
    );
    byId("viewer-download").download = fileName(video);
    byId("viewer-remix").hidden = !served.remixer(video);
    byId("viewer-extend").hidden = !served.extender(video);
    byId("viewer-error").hidden = true;
    this.#showPin();
    this.#showSteps();
  }

  async #play(video) {
    const player = byId("viewer-video");
    player.removeAttribute("src"); // what was there is given back before the next one is held
    letGo(this);
    player.classList.toggle("pixelated", isSmall(video));
    player.setAttribute("aria-label", words.plain(video.prompt));
    player.style.setProperty("--ratio", video.size.replace("x", " / "));
    try {
      const [poster, source] = await Promise.all([
        mediaUrl(video.id, "thumbnail", this),
        mediaUrl(video.id, "video", this),
      ]);
      if (this.#id !== video.id) return; // the reader has gone on meanwhile
      player.poster = poster;
      player.src = source;
      byId("viewer-download").href = apiKey.get() ? "#" : source;
      if (!reducedMotion.matches) await player.play();
    } catch (error) {
      if (error.name !== "AbortError") this.#showError(); // another video took its place
    }
  }

  #showPin() {
    const isPinned = this.#pins.has(this.#id);
    byId("viewer-pin").setAttribute("aria-pressed", isPinned);
    byId("viewer-pin").textContent = isPinned ? "Unpin" : "Pin";
  }

  #showError() {
    if (!this.#id) return;
    byId("viewer-error").textContent = "This video could not be loaded. It may have expired, or the service is away.";
    byId("viewer-error").hidden = false;
  }

  get #playable() {
    return this.#inOrder().filter(isPlayable).map((video) => video.id);
  }

  #showSteps() {
    const index = this.#playable.indexOf(this.#id);
    byId("viewer-previous").disabled = index <= 0;
    byId("viewer-next").disabled = index < 0 || index === this.#playable.length - 1;
  }

  #step(direction) {
    const id = this.#playable[this.#playable.indexOf(this.#id) + direction];
    if (id) this.open(id);
  }

  #key(event) {
    if (event.target === byId("viewer-video") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") this.#step(-1);
    if (event.key === "ArrowRight") this.#step(1);
  }

  #listChanged() {
    if (!this.#id) return;
    if (this.#videos.get(this.#id)) this.#showSteps();
    else byId("viewer").close();
  }

  #closed() {
    this.#id = null;
    const player = byId("viewer-video");
    player.pause();
    player.removeAttribute("src");
    player.removeAttribute("poster");
    player.load();
    letGo(this);
  }
}

/** Everything worth knowing about a finished video, as [name, value]. */
function factsOf(video) {
  const settings = settingsOf(video);
  const { seconds, layout, attention } = video.metadata ?? {};
  const frames = framesOf(video);
  const length = settings.fps && `${frames} frames, ${words.duration(frames / settings.fps)} at ${settings.fps} fps`;
  const took = seconds && Object.values(seconds).reduce((sum, each) => sum + each, 0);
  return [
    ["Size", video.size.replace("x", " × ")],
    ["Length", length],
    ["Made from", sourceOf(video)],
    ["Strength", settings.strength],
    ["Seed", settings.seed],
    ["Adapters", words.adapters(settings.lora)],
    ["Few steps", settings.fast && words.preset(settings.fast, video.metadata)],
    ["Steps", settings.num_inference_steps],
    ["Noise levels", settings.sigmas?.map((sigma) => Number(sigma.toPrecision(4))).join(", ")],
    ["Step cache", settings.step_cache && words.stepCache(settings.step_cache, video.metadata)],
    ["Guidance", [settings.guidance_scale, settings.guidance_scale_2].filter((each) => each != null).join(", then ")],
    ["Flow shift", settings.flow_shift],
    ["Scheduler", settings.scheduler],
    ["Not shown", settings.negative_prompt && words.plain(settings.negative_prompt)],
    ["Model", video.model],
    ["Kept until", video.expires_at && words.dateTime(video.expires_at)],
    ["Made", words.dateTime(video.completed_at ?? video.created_at)],
    ["Took", took && `${words.duration(took)}: ${stagesOf(seconds)}`],
    ["Layout", layout],
    ["Attention", attention],
    ["Id", video.id],
  ].filter(([, value]) => value != null && value !== "" && value !== 0);
}

/** What a video was made from, besides words. */
function sourceOf(video) {
  const { request = {}, extended } = video.metadata ?? {};
  const last = request.last_image ? " and a last image" : "";
  if (extended) return `a video of ${extended.num_frames} frames, continued${last}`;
  if (request.video) return "a video";
  return request.image ? `an image${last}` : last.replace(" and ", "");
}

function stagesOf(seconds) {
  return Object.entries(seconds)
    .map(([stage, each]) => `${STAGES[stage] ?? stage} ${words.duration(each)}`)
    .join(", ");
}
