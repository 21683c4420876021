// The form: its fields and their defaults, what it sends, and errors beside the field they are about.

import { ServiceError } from "./api.js";
import { byId, setFieldError } from "./dom.js";
import { ANEW, EXTEND, Inputs } from "./inputs.js";
import { served } from "./served.js";
import { drawKey, requestOf, settingsOf } from "./video.js";
import { duration, sentence } from "./words.js";

const BASICS = ["size", "custom_size", "num_frames", "seed"];
const OTHER_SIZE = "other";
const OWN_SIZE = ""; // that of what the video is made from
const MAX_EXAMPLES = 4;
const ADVANCED = [
  "negative_prompt", "num_inference_steps", "guidance_scale", "guidance_scale_2", "flow_shift", "fps", "scheduler",
];

const isNarrow = matchMedia("(max-width: 56rem)");

/** What wan-tiny knows; used where the service offers no examples of its own. */
const TINY_EXAMPLES = [
  "a red circle moving right on a black background",
  "a yellow square moving down on a navy background",
  "a green triangle moving left on a black background",
  "a white circle moving up on a navy background",
];

export class Composer {
  #models = [];
  #examples = [];
  #create;
  #onError;
  #attempt = null; // what was sent and not answered: sent again, it makes no second job
  #inputs = new Inputs(() => this.#inputsChanged());

  /** `create(request, key)` sends a request; `onError(error)` shows what belongs to no field. */
  constructor(create, onError) {
    this.#create = create;
    this.#onError = onError;
    byId("form").addEventListener("submit", (event) => (event.preventDefault(), this.#submit()));
    byId("form").addEventListener("input", (event) => this.#edited(event.target));
    byId("form").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
    });
    // On a phone the videos matter more than settings that are seldom changed.
    const unfold = () => (byId("basics").open = !isNarrow.matches);
    isNarrow.addEventListener("change", unfold);
    unfold();
    byId("model").addEventListener("change", () => this.#useModel());
    byId("next-example").addEventListener("click", () => this.#useExample());
    byId("reset").addEventListener("click", () => this.#reset());
    byId("new-seed").addEventListener("click", () => {
      byId("seed").value = drawSeed();
      this.#edited(byId("seed"));
    });
  }

  /** Takes over the models of the service; what was written into the form stays. */
  load(models) {
    const isFirst = !this.#models.length;
    const chosen = byId("model").value;
    this.#models = models;
    byId("model").replaceChildren(...models.map(({ id }) => new Option(id)));
    byId("model-field").hidden = models.length < 2;
    if (models.some(({ id }) => id === chosen)) byId("model").value = chosen;
    if (isFirst || byId("model").value !== chosen) this.#useModel();
    byId("submit").disabled = false;
  }

  get model() {
    return this.#models.find(({ id }) => id === byId("model").value);
  }

  /** Fills the form with all that a video was made from; returns what brings back what was there. */
  async use(video) {
    const undo = this.#keep();
    this.#fill(settingsOf(video));
    await this.#inputs.useInputsOf(video);
    this.#setSize(video.size);
    byId("num_frames").value = settingsOf(video).num_frames;
    this.#changed();
    return undo;
  }

  /** Makes the form ready to make a video anew, or to continue it; returns what undoes that. */
  async makeFrom(video, use) {
    const undo = this.#keep();
    this.#fill(settingsOf(video));
    byId("strength").value = this.#default("strength");
    await this.#inputs.useVideo(video, use);
    this.#setSize(video.size);
    byId("prompt").select();
    return undo;
  }

  #keep() {
    const before = [...byId("form").elements].map((field) => [field, field.value]);
    const inputs = this.#inputs.keep();
    return () => {
      this.#inputs.restore(inputs);
      for (const [field, value] of before) field.value = value;
      byId("custom-size").hidden = byId("size").value !== OTHER_SIZE;
      this.#changed();
    };
  }

  #fill(settings) {
    if (this.#models.some(({ id }) => id === settings.model)) byId("model").value = settings.model;
    this.#useModel();
    byId("prompt").value = settings.prompt;
    this.#setSize(settings.size);
    for (const name of ["num_frames", "seed", "strength", ...ADVANCED]) {
      if (settings[name] != null) byId(name).value = settings[name];
    }
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
    const { defaults = {}, sizes = [], schedulers = [], example_prompts: examples } = this.model;
    served.model = this.model;
    const known = [...new Set([defaults.size, ...sizes].filter(Boolean))];
    byId("size").replaceChildren(
      ...known.map((size) => new Option(size.replace("x", " × "), size)),
      new Option("Other…", OTHER_SIZE),
    );
    byId("scheduler").replaceChildren(...schedulers.map((name) => new Option(name)));
    this.#setSize(known[0]);
    byId("num_frames").value = this.#default("num_frames");
    byId("strength").value = this.#default("strength");
    byId("guidance_scale_2-field").hidden = defaults.guidance_scale_2 == null;
    this.#inputs.useModel();
    this.#reset();
    this.#showExamples(examples ?? (this.model.id === "wan-tiny" ? TINY_EXAMPLES : []));
  }

  #reset() {
    for (const name of ADVANCED) byId(name).value = this.#default(name);
    ADVANCED.forEach((name) => setFieldError(name, null));
    this.#changed();
  }

  #setSize(size) {
    const isListed = [...byId("size").options].some((option) => option.value === size);
    byId("size").value = isListed ? size : OTHER_SIZE;
    byId("custom_size").value = isListed ? "" : size;
    byId("custom-size").hidden = isListed;
  }

  #showExamples(prompts) {
    this.#examples = prompts;
    const buttons = prompts.slice(0, MAX_EXAMPLES).map((prompt) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "example";
      button.textContent = prompt;
      button.dir = "auto";
      button.addEventListener("click", () => this.#useExample(prompt));
      return button;
    });
    byId("examples").replaceChildren(...buttons);
    this.#changed();
  }

  /** Writes an example into the prompt: the one given, or the one after the present. */
  #useExample(prompt = this.#examples[(this.#examples.indexOf(byId("prompt").value) + 1) % this.#examples.length]) {
    byId("prompt").value = prompt;
    this.#edited(byId("prompt"));
    byId("prompt").focus();
  }

  #edited(field) {
    setFieldError(field.name, null);
    if (field.name === "size") {
      byId("custom-size").hidden = field.value !== OTHER_SIZE;
      if (field.value === OTHER_SIZE) byId("custom_size").focus();
    }
    this.#changed();
  }

  /** What is given says its own size and length, where the reader wants no others. */
  #inputsChanged() {
    const { first } = this.#inputs;
    const own = [...byId("size").options].find((option) => option.value === OWN_SIZE);
    const isUsual = byId("size").value === this.#default("size");
    own?.remove();
    if (first && !first.id) {
      byId("size").prepend(new Option(`As the ${first.kind}`, OWN_SIZE));
      if (own || isUsual) byId("size").value = OWN_SIZE;
    } else if (own) this.#setSize(this.#default("size"));
    const length = byId("num_frames");
    const hasOwn = first?.use === ANEW;
    length.placeholder = hasOwn ? "as the video" : "";
    if (hasOwn && (first.id || length.value === this.#default("num_frames"))) length.value = "";
    if (!hasOwn && !length.value) length.value = this.#default("num_frames");
    this.#changed();
  }

  /** Says how long the video plays, and offers examples where they overwrite nothing. */
  #changed() {
    const prompt = byId("prompt").value;
    byId("next-example").hidden = !this.#examples.length || (prompt !== "" && !this.#examples.includes(prompt));
    const isMore = this.#inputs?.first?.use === EXTEND; // whose first frame is there already
    const seconds = (byId("num_frames").value - isMore) / (byId("fps").value || this.#default("fps"));
    const known = Number.isFinite(seconds) && seconds > 0;
    const unit = isMore ? "more" : "frames";
    byId("length").textContent = known ? `${unit}, ${duration(seconds)}` : unit;
    const size = byId("size").value === OTHER_SIZE ? byId("custom_size").value : byId("size").value;
    const seed = byId("seed").value.trim();
    const basics = [size.replace("x", " × ") || byId("size").selectedOptions[0]?.text, known && duration(seconds), seed && `seed ${seed}`];
    byId("basics-text").textContent = basics.filter(Boolean).join(" · ");
  }

  /** The request that the form describes; what equals the model's default is left to the model. */
  #settings() {
    const value = (name) => byId(name).value.trim();
    const size = value("size") === OTHER_SIZE ? value("custom_size") : value("size");
    const settings = {
      prompt: value("prompt"),
      model: value("model"),
      size: size.replace(/\s*[×X]\s*/, "x"),
      num_frames: value("num_frames"),
    };
    const { first } = this.#inputs;
    for (const name of ADVANCED) {
      // Of a video that the service has, its own settings hold where none are sent.
      if (first?.id || value(name) !== this.#default(name)) settings[name] = value(name);
    }
    if (first?.use === ANEW) settings.strength = value("strength");
    return settings;
  }

  async #submit() {
    if (byId("submit").disabled || !this.#check()) return;
    this.#showSending(true);
    const settings = this.#settings();
    const { first, last } = this.#inputs;
    const fields = JSON.stringify([settings, byId("seed").value, first?.use, first?.id, first?.url, last?.url]);
    if (this.#attempt?.fields !== fields) {
      const seed = byId("seed").value.trim() || drawSeed();
      this.#attempt = { fields, request: requestOf({ ...settings, seed }, { first, last }), key: drawKey() };
    }
    try {
      await this.#create(this.#attempt.request, this.#attempt.key);
      this.#attempt = null;
    } catch (error) {
      this.#refused(error);
    } finally {
      this.#showSending(false);
    }
  }

  /** What the browser alone knows: an empty prompt, and text that is no number. */
  #check() {
    this.#clearErrors();
    const wrong = [...byId("form").elements].find((field) => field.validity?.badInput);
    if (wrong) this.#point(wrong.name, "This is not a number.");
    else if (!byId("prompt").value.trim()) this.#point("prompt", "Say what the video shall show.");
    else if (served.needs("image") && !this.#inputs.first) this.#point("input_reference", "This model needs an image to begin with.");
    else return true;
    return false;
  }

  #refused(error) {
    const names = { seconds: "num_frames", width: "size", height: "size", video: "input_reference", video_id: "input_reference" };
    let name = names[error.param] ?? error.param;
    if (name === "size" && byId("size").value === OTHER_SIZE) name = "custom_size";
    const isField = error instanceof ServiceError && error.status < 500 && document.querySelector(`[data-field="${CSS.escape(name)}"]`);
    if (isField) this.#point(name, inWordsOfTheForm(error, labelOf(name)));
    else this.#onError(error);
  }

  /** Writes an error beside its field and goes there. */
  #point(name, message) {
    setFieldError(name, sentence(message));
    if (ADVANCED.includes(name)) byId("advanced").open = true;
    if (BASICS.includes(name)) byId("basics").open = true;
    byId(name).focus();
  }

  #clearErrors() {
    for (const { name } of byId("form").elements) if (name) setFieldError(name, null);
  }

  #showSending(isSending) {
    byId("submit").disabled = isSending;
    byId("submit-text").textContent = isSending ? "Sending…" : "Generate";
  }
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
