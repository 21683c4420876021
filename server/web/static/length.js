// How long a video is: people say it in seconds, the model makes 4n + 1 frames. Each follows the other.

import { byId, setText } from "./dom.js";
import { duration } from "./words.js";

export class Length {
  #model = {};
  #written = "seconds"; // which of the two fields a person wrote last
  #isMore = false;

  /** Takes over the model's usual length. */
  useModel(model) {
    this.#model = model;
    this.frames = this.usual;
  }

  get usual() {
    return String(this.#model.defaults?.num_frames ?? "");
  }

  /** As they are sent: text, "" for as many as what is given has. */
  get frames() {
    return byId("num_frames").value.trim();
  }

  set frames(frames) {
    byId("num_frames").value = frames;
    this.#tellSeconds();
  }

  /** From the first frame to the last; null where it is not known. */
  get seconds() {
    return this.frames && this.#fps > 0 ? (this.frames - 1) / this.#fps : null;
  }

  /** The field that an error about the length belongs to. */
  get field() {
    return this.#written;
  }

  /** Says what is asked for: the whole length, or how much is added; "" is the clip's own, if it has one. */
  ask({ isMore, hasOwn }) {
    this.#isMore = isMore;
    for (const name of ["seconds", "num_frames"]) byId(name).placeholder = hasOwn ? "as the video" : "";
    this.show();
  }

  /** Brings both fields in line after a person wrote into one of them, or into the frames per second. */
  edited(name) {
    if (name === "num_frames" || name === "seconds") this.#written = name;
    if (name === "num_frames" || (name === "fps" && this.#written === "num_frames")) this.#tellSeconds();
    else if (name === "seconds" || name === "fps") this.#tellFrames();
  }

  show() {
    const { seconds } = this;
    setText(byId("length-unit"), this.#isMore ? "seconds more" : "seconds");
    const isNear = seconds === null || Math.abs(seconds - byId("seconds").value) < 0.005;
    const text = seconds > 0 ? `${this.frames} frames${isNear ? "" : `, ${duration(seconds)}`}` : "";
    setText(byId("length"), text);
  }

  get #fps() {
    return Number(byId("fps").value || this.#model.defaults?.fps);
  }

  #tellSeconds() {
    byId("seconds").value = this.seconds === null ? "" : Number(this.seconds.toFixed(3));
    this.show();
  }

  /** The frames that come nearest, as the service reckons them. */
  #tellFrames() {
    const seconds = byId("seconds").value;
    const step = this.#model.limits?.frame_multiple ?? 4;
    const frames = seconds === "" || !(this.#fps > 0) ? "" : step * Math.round((seconds * this.#fps) / step) + 1;
    byId("num_frames").value = frames;
    this.show();
  }
}
