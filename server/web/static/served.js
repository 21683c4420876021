// What the model that is chosen takes, for every part of the page.

export const served = {
  model: {},
  models: [], // all that can be chosen

  /** The model that makes a video anew by another prompt; undefined for none. */
  remixer(video) {
    return this.makers(video).find(canRemix);
  },

  /** The model that continues a video; undefined for none. */
  extender(video) {
    return this.makers(video).find(canExtend);
  },

  /** Who may make something of a video: the one that made it before the chosen one, and that before others. */
  makers(video) {
    const own = this.models.filter(({ id }) => id === video.model);
    return [...own, this.model, ...this.models];
  },

  /** Lists of what a request may give beside its prompt: `image`, `last_image`, `video`. */
  get inputs() {
    return this.model.inputs ?? [[]];
  },

  /** [{name, summary, description, trigger, expert, fault}] */
  get adapters() {
    return this.model.adapters ?? [];
  },

  /** [{name, label, sigmas, adapters, own, needs_lora, ...}] */
  get presets() {
    return this.model.presets ?? [];
  },

  /** [{name, label}] */
  get stepCaches() {
    return this.model.step_caches ?? [];
  },

  get experts() {
    return this.model.experts ?? 1;
  },

  takes(role) {
    return this.inputs.some((roles) => roles.includes(role)) || (role === "video" && this.canExtend);
  },

  needs(role) {
    return this.inputs.every((roles) => roles.includes(role));
  },

  /** Whether words alone are not enough. */
  get needsFile() {
    return this.inputs.every((roles) => roles.length > 0);
  },

  get canRemix() {
    return canRemix(this.model);
  },

  get canExtend() {
    return canExtend(this.model);
  },

  /** Kinds of files that a video may begin with; a video is continued where an image is taken. */
  get firsts() {
    return ["image", "video"].filter((role) => this.takes(role));
  },
};

function canRemix({ inputs = [[]] }) {
  return inputs.some((roles) => roles.length === 1 && roles[0] === "video");
}

function canExtend({ inputs = [[]] }) {
  return inputs.some((roles) => roles.includes("image"));
}
