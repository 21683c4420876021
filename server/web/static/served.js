// What the model that is chosen takes, for every part of the page.

export const served = {
  model: {},

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
    return this.inputs.some((roles) => roles.length === 1 && roles[0] === "video");
  },

  get canExtend() {
    return this.inputs.some((roles) => roles.includes("image"));
  },

  /** Kinds of files that a video may begin with; a video is continued where an image is taken. */
  get firsts() {
    return ["image", "video"].filter((role) => this.takes(role));
  },
};
