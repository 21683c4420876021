// How long what the form asks for will take, before it is asked for: from what finished videos took.

import { byId, setText } from "./dom.js";
import { served } from "./served.js";
import { isActive, isPlayable, settingsOf } from "./video.js";
import { forecast } from "./words.js";

const LEARNT_FROM = 8; // finished videos, the latest: layouts and loads change

/** Shows it below the button; `wanted()` is what the form asks for: see `Composer.wanted`. */
export class Forecast {
  #videos;
  #wanted;
  #isIdle;

  /** `isIdle(model)` says whether a slice of a fleet waits for work. */
  constructor(videos, wanted, isIdle) {
    this.#isIdle = isIdle;
    this.#videos = videos;
    this.#wanted = wanted;
    videos.addEventListener("change", () => this.show());
  }

  show() {
    const { settings, number, isCompiled } = this.#wanted();
    const done = this.#videos.results.filter((video) => isPlayable(video) && video.model === settings.model && workOf(settingsOf(video)));
    const ahead = this.#ahead(settings.model);
    const ends = ahead.map((video) => video.seconds_left);
    const text = forecast({
      each: secondsOf(settings, done),
      number,
      ahead: ahead.length,
      wait: ends.includes(null) ? null : Math.max(0, ...ends),
      isCompiled: isCompiled || done.some((video) => isAlike(settingsOf(video), settings)),
    });
    setText(byId("estimate"), text);
  }

  /** What is made before it: in a fleet nothing where a slice is idle, else what needs the same slices. */
  #ahead(model) {
    const active = this.#videos.shown.filter((video) => isActive(video) && isBefore(video, model));
    const isNext = this.#isIdle(model) && active.every(({ status }) => status === "in_progress");
    return isNext ? [] : active;
  }
}

/** Seconds of one video by these settings; null where nothing like it has been made. */
function secondsOf(settings, done) {
  const withCache = (name) => done.filter((video) => (settingsOf(video).step_cache ?? "") === name);
  const same = withCache(settings.step_cache ?? "");
  const alike = (same.length ? same : withCache("")).slice(0, LEARNT_FROM); // without a cache it takes no less
  const wanted = workOf(settings);
  if (!alike.length || !wanted) return null;
  const each = alike.map((video) => {
    const { seconds = {} } = video.metadata;
    const { denoise = 0, decode = 0, ...rest } = seconds;
    const work = workOf(settingsOf(video));
    const others = Object.entries(rest).filter(([stage]) => !stage.startsWith("compile"));
    const fixed = others.reduce((sum, [, took]) => sum + took, 0);
    return (denoise / work.steps) * wanted.steps + (decode / work.pixels) * wanted.pixels + fixed;
  });
  return each.reduce((sum, one) => sum + one, 0) / each.length;
}

/** Pixels of all frames, and as many for each evaluation of the model, two a step with guidance; null where they are not known. */
function workOf({ size, num_frames: frames, num_inference_steps: steps, guidance_scale: guidance, strength }) {
  const [width, height] = size.split("x").map(Number);
  const pixels = width * height * frames;
  const share = strength == null ? 1 : Number(strength);
  const work = { pixels, steps: pixels * Math.floor(steps * share) * (guidance > 1 ? 2 : 1) };
  return work.steps > 0 ? work : null;
}

/** Whether a video waits for the same slices; one whose model is gone may be made by any. */
function isBefore(video, model) {
  return video.model === model || !served.models.some(({ id }) => id === video.model);
}

function isAlike(one, other) {
  return one.size === other.size && Number(one.num_frames) === Number(other.num_frames);
}
