// The form: its fields and their defaults, what it sends, and errors beside the field they are about.

import { ServiceError } from "./api.js";
import { byId, setFieldError, setHidden, setText } from "./dom.js";
import { Examples } from "./examples.js";
import { ANEW, EXTEND, Inputs } from "./inputs.js";
import { Length } from "./length.js";
import { Loras } from "./loras.js";
import { Models } from "./models.js";
import { served } from "./served.js";
import { Shapes } from "./shapes.js";
import { DECIDED, Shortcuts } from "./shortcuts.js";
import { drawKey, requestOf, settingsOf } from "./video.js";
import { duration, sentence } from "./words.js";

const BASICS = ["size", "custom_size", "seconds", "seed", "variations", "fast", "lora"];
const ADVANCED = [
  "negative_prompt", "num_inference_steps", "guidance_scale", "guidance_scale_2", "flow_shift", "fps", "scheduler",
  "sigmas", "step_cache",
];

const isNarrow = matchMedia("(max-width: 56rem)");

export class Composer {
  #models = new Models(() => this.#useModel());
  #isSending = false;
  #create;
  #onError;
  #onChange;
  #attempt = null; // what was sent and not answered: sent again, it makes no second job
  #examples = new Examples(() => this.#edited(byId("prompt")));
  #shapes = new Shapes(() => this.#changed());
  #length = new Length();
  #inputs = new Inputs(() => this.#inputsChanged());
  #loras = new Loras(() => this.#changed());
  #shortcuts = new Shortcuts();

  /**
   * `create(request, key)` sends a request; `onError(error)` shows what belongs to no field;
   * `onChange()` runs when the form asks for something else.
   */
  constructor({ create, onError, onChange }) {
    this.#create = create;
    this.#onError = onError;
    this.#onChange = onChange;
    byId("form").addEventListener("submit", (event) => (event.preventDefault(), this.#submit()));
    byId("form").addEventListener("input", (event) => this.#edited(event.target));
    byId("form").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
    });
    // On a phone the videos matter more than settings that are seldom changed.
    const unfold = () => (byId("basics").open = !isNarrow.matches);
    isNarrow.addEventListener("change", unfold);
    unfold();
    byId("reset").addEventListener("click", () => this.#reset());
    byId("new-seed").addEventListener("click", () => {
      byId("seed").value = drawSeed();
      this.#edited(byId("seed"));
    });
  }

  /** Takes over the models of the service; what was written into the form stays. */
  load(models) {
    const before = this.model;
    const restore = this.#keepFields();
    const isOther = this.#models.load(models);
    if (isOther || !this.model) this.#useModel();
    if (isOther && before?.id === this.model.id) restore(); // of the same model only what it is has changed
    for (const id of ["basics", "advanced"]) setHidden(byId(id), !this.model);
    this.#showSubmit();
  }

  /** The one that is chosen; undefined as long as none was ever served. */
  get model() {
    return this.#models.chosen;
  }

  /** Fills the form with all that a video was made from; returns what brings back what was there. */
  async use(video) {
    const undo = this.#keep();
    this.#fill(settingsOf(video));
    await this.#inputs.useInputsOf(video);
    this.#shapes.value = video.size;
    this.#length.frames = settingsOf(video).num_frames;
    this.#changed();
    return undo;
  }

  /** Makes the form ready to make a video anew, or to continue it; returns what undoes that. */
  async makeFrom(video, use) {
    const undo = this.#keep();
    const maker = use === EXTEND ? served.extender(video) : served.remixer(video);
    this.#fill(settingsOf(video), maker?.id);
    byId("strength").value = this.#default("strength");
    await this.#inputs.useVideo(video, use);
    this.#shapes.value = video.size;
    byId("prompt").select();
    this.#changed();
    return undo;
  }

  #keep() {
    const [{ model }, loras, inputs, restore] = [this, this.#loras.value, this.#inputs.keep(), this.#keepFields()];
    return () => {
      if (this.model !== model && this.#models.choose(model?.id)) this.#useModel();
      this.#inputs.restore(inputs);
      this.#loras.value = loras;
      restore();
    };
  }

  #keepFields() {
    const isKept = ({ name, type }) => name && !["radio", "file"].includes(type) && !["size", "model"].includes(name);
    const before = [...byId("form").elements].filter(isKept).map((field) => [field, field.value]);
    const size = this.#shapes.value;
    return () => {
      for (const [field, value] of before) {
        field.value = value;
        if (field.selectedIndex === -1) field.selectedIndex = 0; // of a list that has it no more
      }
      this.#shapes.value = size;
      this.#changed();
    };
  }

  /** Fills in settings, for a model if it is served: of those of another model, what is seen of them holds. */
  #fill(settings, model = settings.model) {
    this.#models.choose(model);
    this.#useModel();
    if (settings.model !== this.model?.id) settings = visible(settings);
    byId("prompt").value = settings.prompt;
    this.#shapes.value = settings.size;
    const isSaid = (name) => settings[name] != null && !(settings.fast && DECIDED.includes(name));
    for (const name of ["seed", "strength", ...ADVANCED]) if (isSaid(name)) byId(name).value = settings[name];
    this.#shortcuts.use(settings);
    this.#loras.value = settings.lora ?? [];
    byId("variations").value = 1;
    this.#length.frames = settings.num_frames ?? this.#length.usual;
    byId("advanced").open ||= ADVANCED.some((name) => byId(name).value !== this.#default(name));
    this.#clearErrors();
    this.#changed();
    byId("prompt").focus();
  }

  submit() {
    byId("form").requestSubmit();
  }

  #default(name) {
    return String(this.model?.defaults?.[name] ?? "");
  }

  #useModel() {
    served.model = this.model ?? {};
    const { defaults = {}, schedulers = [], example_prompts: examples = [] } = served.model;
    byId("scheduler").replaceChildren(...schedulers.map((name) => new Option(name)));
    this.#shapes.useModel(served.model);
    for (const name of ["strength", ...ADVANCED]) byId(name).value = this.#default(name);
    this.#length.useModel(served.model);
    byId("guidance_scale_2-field").hidden = defaults.guidance_scale_2 == null;
    byId("variations").max = this.#mostVariations;
    this.#shortcuts.useModel();
    this.#loras.useModel();
    this.#inputs.useModel();
    this.#examples.show(examples);
    this.#reset();
  }

  #reset() {
    for (const name of ADVANCED) byId(name).value = this.#default(name);
    ADVANCED.forEach((name) => setFieldError(name, null));
    this.#length.edited("fps");
    this.#changed();
  }

  #edited(field) {
    const { field: name } = field.closest("[data-field]")?.dataset ?? {};
    if (name) setFieldError(name, null);
    this.#length.edited(name);
    this.#changed();
  }

  /** What is given says its own size and length, where the reader wants no others. */
  #inputsChanged() {
    const { first } = this.#inputs;
    this.#shapes.offerOwn(first && !first.id ? first.kind : null);
    const hasOwn = first?.use === ANEW;
    if (hasOwn && (first.id || this.#length.frames === this.#length.usual)) this.#length.frames = "";
    if (!hasOwn && !this.#length.frames) this.#length.frames = this.#length.usual;
    this.#length.ask({ isMore: first?.use === EXTEND, hasOwn }); // whose first frame is there already
    this.#changed();
  }

  /** Says in short what the form asks for, and offers examples where they overwrite nothing. */
  #changed() {
    this.#examples.offer();
    this.#length.show();
    const { seconds } = this.#length;
    const seed = byId("seed").value.trim();
    const number = this.#variations;
    this.#shortcuts.show();
    const loras = this.#loras.value.length;
    const basics = [
      this.#shapes.text, seconds && duration(seconds), seed && `seed ${seed}`, number > 1 && `${number} variations`,
      this.#shortcuts.preset && `${this.#shortcuts.preset.sigmas.length} steps`, loras && (loras > 1 ? `${loras} adapters` : "an adapter"),
    ];
    setText(byId("basics-text"), basics.filter(Boolean).join(" · "));
    setText(byId("seeds"), number > 1 ? "the next ones follow it" : "same seed, same video");
    this.#showSubmit();
    this.#onChange();
  }

  /** How many videos are asked for; 1 where that is not said rightly. */
  get #variations() {
    const number = byId("variations").valueAsNumber;
    return Number.isInteger(number) && number >= 1 && number <= this.#mostVariations ? number : 1;
  }

  get #mostVariations() {
    return this.model?.limits?.max_n ?? 1;
  }

  /** What a forecast needs to know: {settings, number, isCompiled}. */
  get wanted() {
    const said = Object.entries(this.#settings()).filter(([, value]) => value !== "");
    const settings = { size: "", ...this.model?.defaults, strength: null, ...Object.fromEntries(said) };
    const { preset } = this.#shortcuts;
    const levels = preset ? preset.sigmas.length : settings.sigmas?.split(",").length;
    if (levels) settings.num_inference_steps = levels;
    if (preset) settings.guidance_scale = 1;
    const isUsual = this.#length.frames === this.#length.usual;
    return { settings, number: this.#variations, isCompiled: this.#shapes.isCompiled && isUsual };
  }

  /** The request that the form describes; what equals the model's default is left to the model. */
  #settings() {
    const value = (name) => byId(name).value.trim();
    const settings = {
      prompt: value("prompt"),
      model: value("model"),
      size: this.#shapes.value.replace(/\s*[×X]\s*/, "x"),
      num_frames: this.#length.frames,
    };
    const { first } = this.#inputs;
    const hasLevels = value("sigmas") !== "";
    for (const name of ADVANCED) {
      if (byId(name).disabled) continue; // the preset decides
      if (hasLevels && ["num_inference_steps", "flow_shift"].includes(name)) continue; // the levels do
      // Of a video that the service has, its own settings hold where none are sent.
      if (first?.id || value(name) !== this.#default(name)) settings[name] = value(name);
    }
    settings.fast = value("fast");
    settings.lora = this.#loras.value;
    if (this.#variations > 1) settings.n = this.#variations;
    if (first?.use === ANEW) settings.strength = value("strength");
    return settings;
  }

  async #submit() {
    if (byId("submit").disabled || !this.#check()) return;
    const { request, key } = this.#attempted();
    this.#isSending = true;
    this.#showSubmit();
    try {
      await this.#create(request, key);
      this.#attempt = null;
    } catch (error) {
      this.#refused(error);
    } finally {
      this.#isSending = false;
      this.#showSubmit();
    }
  }

  #showSubmit() {
    byId("submit").disabled = this.#isSending || !this.#models.isServed;
    setText(byId("submit-text"), this.#isSending ? "Sending…" : generate(this.#variations));
  }

  /** What is to be sent: what was sent before and not answered, where the form still asks for it. */
  #attempted() {
    const settings = this.#settings();
    const { first, last } = this.#inputs;
    const given = byId("seed").value.trim();
    const fields = JSON.stringify([settings, given, first?.use, first?.id, first?.url, last?.url]);
    if (this.#attempt?.fields === fields) return this.#attempt;
    const seed = given === "" || given === "-1" ? drawSeed() : given;
    this.#attempt = { fields, request: requestOf({ ...settings, seed }, { first, last }), key: drawKey() };
    return this.#attempt;
  }

  /** What the browser alone knows: an empty prompt, and text that is no number. */
  #check() {
    this.#clearErrors();
    const wrong = [...byId("form").elements].find((field) => field.validity?.badInput);
    if (wrong) this.#point(wrong.name || "lora", "This is not a number.");
    else if (!byId("prompt").value.trim()) this.#point("prompt", "Say what the video shall show.");
    else if (served.needs("image") && !this.#inputs.first) this.#point("input_reference", "This model needs an image to begin with.");
    else if (byId("variations").valueAsNumber !== this.#variations) this.#point("variations", `Write a number from 1 to ${this.#mostVariations}.`);
    else return true;
    return false;
  }

  #refused(error) {
    const { field: size } = this.#shapes;
    const { field: length } = this.#length;
    const names = { seconds: length, num_frames: length, size, width: size, height: size, video: "input_reference", video_id: "input_reference", n: "variations" };
    const name = names[error.param] ?? error.param;
    const isField = error instanceof ServiceError && error.status < 500 && document.querySelector(`[data-field="${CSS.escape(name)}"]:not([hidden])`);
    if (isField) this.#point(name, inWordsOfTheForm(error, labelOf(name)));
    else this.#onError(error);
  }

  /** Writes an error beside its field and goes there. */
  #point(name, message) {
    setFieldError(name, sentence(message));
    if (ADVANCED.includes(name) || name === "num_frames") byId("advanced").open = true;
    if (BASICS.includes(name)) byId("basics").open = true;
    byId(name).focus();
  }

  #clearErrors() {
    for (const { dataset } of byId("form").querySelectorAll("[data-field]")) setFieldError(dataset.field, null);
  }

}

/** What of a video's settings means the same to every model. */
function visible({ prompt, negative_prompt, size, seed, num_frames, fps }) {
  return { prompt, negative_prompt, size, seed, num_frames, fps };
}

function generate(number) {
  return number > 1 ? `Generate ${number} variations` : "Generate";
}

/** What a person knows a field by: the label without its unit. */
function labelOf(name) {
  return byId(name).labels[0].firstChild.textContent.trim();
}

/** "num_frames must be 4n + 1" with the field's label for its name. */
function inWordsOfTheForm({ message, param }, label) {
  return message.startsWith(`${param} `) ? label + message.slice(param.length) : message;
}

function drawSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}
