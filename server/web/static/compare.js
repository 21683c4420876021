// Two videos beside each other, which play, stop and are sought as one.

import { isSmall } from "./card.js";
import { byId, make, setText } from "./dom.js";
import { letGo, mediaUrl } from "./media.js";
import { settingsOf } from "./video.js";
import * as words from "./words.js";

const DRIFT_SECONDS = 0.06; // about a frame: what is further apart is set right
const SIDES = ["left", "right"];
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

export class Compare {
  #videos;
  #first = null; // id of the one that waits for a second
  #shown = []; // ids
  #onChange;
  #frame = null; // of the animation that keeps the two together

  /** `onChange()` runs when another video is the first to be compared, or none. */
  constructor(videos, { onChange }) {
    this.#videos = videos;
    this.#onChange = onChange;
    const dialog = byId("compare");
    videos.addEventListener("change", () => this.#listChanged());
    byId("compare-stop").addEventListener("click", () => this.#choose(null));
    byId("compare-close").addEventListener("click", () => dialog.close());
    byId("compare-play").addEventListener("click", () => this.#toggle());
    byId("compare-seek").addEventListener("input", () => this.#seek(byId("compare-seek").valueAsNumber));
    byId("compare-back").addEventListener("click", () => this.#step(-1));
    byId("compare-on").addEventListener("click", () => this.#step(1));
    dialog.addEventListener("close", () => this.#closed());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => this.#key(event));
    for (const side of SIDES) {
      byId(`compare-${side}`).addEventListener("loadedmetadata", () => this.#measured());
      byId(`compare-${side}`).addEventListener("error", () => this.#failed(side));
    }
  }

  /** The id of the video that waits for another one to be compared with. */
  get first() {
    return this.#first;
  }

  /** Takes a video as the first; as the second, shows both; the first one again is let go. */
  take(id) {
    if (this.#first === null) return this.#choose(id);
    const pair = [this.#first, id];
    this.#choose(null);
    return pair[0] === id ? undefined : this.#open(pair);
  }

  #choose(id) {
    const hadFocus = byId("compare-bar").contains(document.activeElement);
    this.#first = id;
    byId("compare-bar").hidden = id === null;
    if (id !== null) setText(byId("compare-name"), words.plain(this.#videos.get(id).prompt));
    else if (hadFocus) byId("gallery-title").focus();
    this.#onChange();
  }

  async #open(ids) {
    this.#shown = ids;
    const [left, right] = ids.map((id) => this.#videos.get(id));
    byId("compare-facts").replaceChildren(...differences(left, right));
    for (const side of SIDES) byId(`compare-${side}-error`).hidden = true;
    byId("compare-seek").value = 0;
    byId("compare").showModal();
    await Promise.all([this.#load("left", left), this.#load("right", right)]);
  }

  async #load(side, video) {
    const player = byId(`compare-${side}`);
    player.classList.toggle("pixelated", isSmall(video));
    player.setAttribute("aria-label", words.plain(video.prompt));
    setText(byId(`compare-${side}-prompt`), words.plain(video.prompt));
    try {
      const source = await mediaUrl(video.id, "video", this);
      if (this.#shown.includes(video.id)) player.src = source;
    } catch {
      this.#failed(side);
    }
  }

  #failed(side) {
    if (this.#shown.length) byId(`compare-${side}-error`).hidden = false;
  }

  get #players() {
    return SIDES.map((side) => byId(`compare-${side}`));
  }

  /** The longer one: it leads, and the other waits at its end. */
  get #leader() {
    const [left, right] = this.#players;
    return right.duration > left.duration ? right : left;
  }

  /** Goes on when both are there, so that they start together. */
  #measured() {
    if (this.#players.some((player) => player.readyState < HTMLMediaElement.HAVE_METADATA)) return;
    byId("compare-seek").max = this.#leader.duration;
    byId("compare-seek").step = this.#frameSeconds;
    this.#show();
    if (!reducedMotion.matches) this.#play();
  }

  /** A step of one frame, of the video that has more of them. */
  get #frameSeconds() {
    return 1 / Math.max(...this.#shown.map((id) => settingsOf(this.#videos.get(id)).fps ?? 1));
  }

  get #isPlaying() {
    return this.#frame !== null;
  }

  #toggle() {
    if (this.#isPlaying) this.#pause();
    else this.#play();
  }

  #play() {
    if (this.#leader.ended) this.#seek(0);
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#follow());
    for (const player of this.#players) {
      if (!player.ended) player.play().catch(() => {}); // closed, or sought, before it began
    }
    this.#show();
  }

  #pause() {
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
    for (const player of this.#players) player.pause();
    this.#show();
  }

  /** Sets both to one moment. */
  #seek(seconds) {
    for (const player of this.#players) {
      const last = Math.max(0, player.duration - this.#frameSeconds / 2); // the last frame is still to be seen
      if (Number.isFinite(last)) player.currentTime = Math.min(seconds, last);
      if (this.#isPlaying && (player.paused || player.ended)) player.play().catch(() => {});
    }
    this.#show();
  }

  #step(frames) {
    this.#pause();
    const seconds = this.#leader.currentTime + frames * this.#frameSeconds;
    this.#seek(Math.min(Math.max(seconds, 0), this.#leader.duration));
  }

  /** At every picture of the screen: the other follows the leader, and after the end both begin anew. */
  #follow() {
    const leader = this.#leader;
    const other = this.#players.find((player) => player !== leader);
    if (leader.ended) this.#seek(0);
    else if (!other.ended && !other.seeking && !leader.seeking && leader.currentTime < other.duration) {
      if (Math.abs(other.currentTime - leader.currentTime) > DRIFT_SECONDS) other.currentTime = leader.currentTime;
    }
    this.#show();
    this.#frame = requestAnimationFrame(() => this.#follow());
  }

  #show() {
    const { currentTime, duration } = this.#leader;
    const name = this.#isPlaying ? "Pause" : "Play";
    setText(byId("compare-play"), name);
    if (!Number.isFinite(duration)) return;
    if (document.activeElement !== byId("compare-seek") || this.#isPlaying) byId("compare-seek").value = currentTime;
    const text = `${currentTime.toFixed(2)} of ${duration.toFixed(2)} s`;
    setText(byId("compare-time"), text);
    byId("compare-seek").setAttribute("aria-valuetext", text);
  }

  #key(event) {
    const { target, key } = event;
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (target.matches(key === " " ? "button" : "input")) return; // which does something of its own
    if (key === "ArrowLeft") this.#step(-1);
    else if (key === "ArrowRight") this.#step(1);
    else if (key === " ") this.#toggle();
    else return;
    event.preventDefault();
  }

  #listChanged() {
    if (this.#first !== null && !this.#videos.get(this.#first)) this.#choose(null);
    if (this.#shown.some((id) => !this.#videos.get(id))) byId("compare").close();
  }

  #closed() {
    this.#shown = [];
    this.#pause();
    for (const player of this.#players) {
      player.removeAttribute("src");
      player.load();
    }
    letGo(this);
  }
}

const NAMES = {
  size: "Size",
  num_frames: "Frames",
  fps: "Frames per second",
  seed: "Seed",
  num_inference_steps: "Steps",
  guidance_scale: "Guidance",
  guidance_scale_2: "Second guidance",
  flow_shift: "Flow shift",
  scheduler: "Scheduler",
  fast: "Few steps",
  sigmas: "Noise levels",
  step_cache: "Step cache",
  lora: "Adapters",
  strength: "Strength",
  negative_prompt: "Not shown",
  model: "Model",
};

/** What the two were asked for and is not the same, as rows: name, left, right. */
function differences(left, right) {
  const [one, other] = [left, right].map(settingsOf).map((each) => ({ ...each, lora: words.adapters(each.lora) || undefined }));
  const rows = Object.entries(NAMES).filter(([field]) => String(one[field] ?? "") !== String(other[field] ?? ""));
  if (!rows.length) return [row("Settings", "the same", "the same")];
  const shown = (field, value = "–") => (field === "size" ? value.replace("x", " × ") : value);
  return rows.map(([field, name]) => row(name, shown(field, one[field]), shown(field, other[field])));
}

function row(name, left, right) {
  const line = document.createElement("tr");
  const head = make("th", name);
  head.scope = "row";
  line.append(make("td", words.plain(String(left))), head, make("td", words.plain(String(right))));
  return line;
}
