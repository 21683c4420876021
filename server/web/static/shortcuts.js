// Fewer steps, or steps that reuse what others left: what is offered, and what that decides.

import { byId, setText } from "./dom.js";
import { served } from "./served.js";

/** Fields that a preset of few steps decides, so that the form says nothing of them. */
export const DECIDED = [
  "num_inference_steps", "guidance_scale", "guidance_scale_2", "flow_shift", "scheduler", "sigmas", "step_cache",
];

export class Shortcuts {
  /** Offers what the model has. */
  useModel() {
    const steps = served.model.defaults?.num_inference_steps;
    const presets = served.presets.filter(({ own }) => own).map(({ name, label }) => new Option(label, name));
    byId("fast").replaceChildren(new Option(steps ? `All ${steps} steps` : "All steps", ""), ...presets);
    const caches = served.stepCaches.map(({ name, label }) => new Option(label, name));
    byId("step_cache").replaceChildren(new Option("Every step is computed", ""), ...caches);
    this.show();
  }

  /** Takes the settings of a video, also what is offered no more. */
  use({ fast = "", step_cache: cache = "" }) {
    choose("fast", fast);
    choose("step_cache", cache);
    this.show();
  }

  /** The preset that is chosen: {name, label, sigmas, adapters, ...}; undefined for none. */
  get preset() {
    const name = byId("fast").value;
    return name ? (served.presets.find((preset) => preset.name === name) ?? { name, sigmas: [], adapters: [] }) : undefined;
  }

  /** Shows what can be chosen, and takes the fields away that a preset decides. */
  show() {
    const { preset } = this;
    byId("fast-field").hidden = byId("fast").options.length < 2;
    byId("step_cache-field").hidden = byId("step_cache").options.length < 2;
    for (const name of DECIDED) byId(name).disabled = Boolean(preset);
    byId("fast-hint").hidden = !preset;
    if (!preset) return;
    const needs = preset.needs_lora ? `, with ${preset.adapters.join(" and ")}` : "";
    setText(byId("fast-hint"), `${preset.sigmas.length} steps without guidance${needs}`);
  }
}

/** Sets a list to a value that it may not have yet. */
function choose(name, value) {
  const list = byId(name);
  if (![...list.options].some((option) => option.value === value)) list.append(new Option(value));
  list.value = value;
}
