// The size of a video, by its shape first: "16:9" is what people want, pixels are what it costs.

import { byId } from "./dom.js";

const SHAPES = [["16:9", 16 / 9], ["9:16", 9 / 16], ["1:1", 1], ["4:3", 4 / 3], ["3:4", 3 / 4]];
const SAME = 1.06; // 832x480 counts as 16:9: sizes are multiples of 16, and ratios only near
const OWN = "own"; // that of the picture or clip which is given
const OTHER = "other";

export class Shapes {
  #model = {};
  #ownKind = null; // of what is given, where it has a size
  #onChange;

  /** `onChange()` runs when a person has chosen another size. */
  constructor(onChange) {
    this.#onChange = onChange;
    byId("shapes").addEventListener("change", ({ target }) => {
      this.#list(target.value);
      if (target.value === OTHER) byId("custom_size").focus();
      onChange();
    });
  }

  /** Offers what the model can make; the size is then its usual one. */
  useModel(model) {
    this.#model = model;
    this.#offer();
    this.value = this.usual;
  }

  /** The size that the model makes where none is asked for. */
  get usual() {
    return this.#model.defaults?.size ?? this.#known[0] ?? "";
  }

  /** "832x480", or "" for that of what is given. */
  get value() {
    if (this.#shape === OWN) return "";
    return this.#shape === OTHER ? byId("custom_size").value.trim() : byId("size").value;
  }

  set value(size) {
    const listed = SHAPES.find(([name]) => this.#sizesOf(name).includes(size))?.[0];
    const shape = size === "" && this.#ownKind ? OWN : (listed ?? OTHER);
    this.#choose(shape);
    byId(shape === OTHER ? "custom_size" : "size").value = size;
  }

  /** What the size is called: "832 × 480", "As the image". */
  get text() {
    return this.value.replace("x", " × ") || (this.#shape === OWN ? byId("size").selectedOptions[0].text : "");
  }

  /** The field that an error about the size belongs to. */
  get field() {
    return this.#shape === OTHER ? "custom_size" : "size";
  }

  /** Whether programs for the size are there; else they are compiled first. */
  get isCompiled() {
    return this.value === "" || this.#known.includes(this.value);
  }

  /** Offers the size of a picture or clip ("image", "video"), or no longer, with null. */
  offerOwn(kind) {
    const { value } = this;
    const isUsual = this.#shape === OWN || value === this.usual;
    this.#ownKind = kind;
    this.#offer();
    if (kind) this.value = isUsual ? "" : value;
    else this.value = value || this.usual;
  }

  get #known() {
    return [...new Set([this.#model.defaults?.size, ...(this.#model.sizes ?? [])].filter(Boolean))];
  }

  get #shape() {
    return byId("shapes").querySelector(":checked")?.value;
  }

  #choose(shape) {
    byId("shapes").querySelector(`[value="${shape}"]`).checked = true;
    this.#list(shape);
  }

  /** The sizes of a shape: one for each area that the model is known to make. */
  #sizesOf(shape) {
    const ratio = SHAPES.find(([name]) => name === shape)?.[1];
    if (!ratio) return [];
    const known = this.#known.filter((size) => shapeOf(size) === shape);
    const turned = this.#known.map((size) => size.split("x").reverse().join("x"));
    const areas = this.#known.map(areaOf).filter((area) => !known.some((size) => near(areaOf(size), area)));
    const made = areas.map((area) => {
      const asKnown = turned.find((size) => shapeOf(size) === shape && near(areaOf(size), area));
      return asKnown ?? this.#near(ratio, area);
    });
    return [...new Set([...known, ...made])].sort((one, other) => areaOf(one) - areaOf(other));
  }

  /** The size of this ratio and about this area that the model can make. */
  #near(ratio, area) {
    const [across, down] = this.#model.limits?.size_multiple ?? [16, 16];
    const height = Math.max(1, Math.round(Math.sqrt(area / ratio) / down)) * down;
    const width = Math.max(1, Math.round((height * ratio) / across)) * across;
    return `${width}x${height}`;
  }

  /** Draws the choices anew. */
  #offer() {
    const choices = SHAPES.map(([name]) => choice(name, name));
    if (this.#ownKind) choices.unshift(choice(OWN, `As the ${this.#ownKind}`));
    byId("shapes").replaceChildren(...choices, choice(OTHER, "Other"));
  }

  #list(shape) {
    const sizes = shape === OWN ? [["", `As the ${this.#ownKind}`]] : this.#sizesOf(shape).map((size) => [size, size.replace("x", " × ")]);
    const options = sizes.map(([size, text]) => new Option(text, size));
    const usual = sizes.findIndex(([size]) => near(areaOf(size), areaOf(this.usual)));
    byId("size").replaceChildren(...options);
    byId("size").selectedIndex = Math.max(usual, 0);
    byId("size-field").hidden = shape === OTHER;
    byId("custom-size").hidden = shape !== OTHER;
  }
}

/** The name of the shape that a size has, about; undefined for none. */
export function shapeOf(size) {
  const [width, height] = size.split("x").map(Number);
  return SHAPES.find(([, ratio]) => near(width / height, ratio))?.[0];
}

function areaOf(size) {
  const [width, height] = size.split("x").map(Number);
  return width * height;
}

function near(one, other) {
  return one / other < SAME && other / one < SAME;
}

/** A radio button with a small picture of the shape. */
function choice(value, text) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "shape", value });
  label.className = "shape";
  const picture = document.createElement("span");
  picture.className = "shape-picture";
  label.append(input, picture, text);
  return label;
}
