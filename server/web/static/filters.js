// What of the results to show: by words of the prompt, by how they ended, by their shape.

import { byId } from "./dom.js";
import { isPlayable } from "./video.js";

const SHAPES = {
  any: () => true,
  wide: (ratio) => ratio > 1,
  tall: (ratio) => ratio < 1,
  square: (ratio) => ratio === 1,
};

export class Filters {
  #kinds;

  /** `onChange()` runs when a person asks for something else. */
  constructor(pins, onChange) {
    this.#kinds = {
      all: () => true,
      running: (video) => video.status === "in_progress",
      completed: isPlayable,
      failed: (video) => video.status === "failed",
      pinned: (video) => pins.has(video.id),
    };
    byId("search").addEventListener("input", onChange);
    byId("kind").addEventListener("change", onChange);
    byId("shape-kind").addEventListener("change", onChange);
    byId("show-all").addEventListener("click", () => {
      this.#clear();
      onChange();
    });
  }

  /** Whether anything is left out. */
  get isOn() {
    return byId("search").value.trim() !== "" || byId("kind").value !== "all" || byId("shape-kind").value !== "any";
  }

  /** Those of the videos that are asked for. */
  of(videos) {
    if (!this.isOn) return videos;
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const isKind = this.#kinds[byId("kind").value];
    const isShape = SHAPES[byId("shape-kind").value];
    return videos.filter((video) => {
      const [width, height] = video.size.split("x").map(Number);
      const prompt = video.prompt.toLowerCase();
      return isKind(video) && isShape(width / height) && words.every((word) => prompt.includes(word));
    });
  }

  #clear() {
    byId("search").value = "";
    byId("kind").value = "all";
    byId("shape-kind").value = "any";
  }
}
