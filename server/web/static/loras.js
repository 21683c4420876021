// The adapters that the form asks for: any number of those that the model has, each with a strength.

import { byId, setText } from "./dom.js";
import { served } from "./served.js";
import { plain } from "./words.js";

const template = byId("lora-template");

export class Loras {
  #onChange;

  /** `onChange()` runs whenever an adapter is added, changed or taken away. */
  constructor(onChange) {
    this.#onChange = onChange;
    byId("lora").addEventListener("change", () => {
      const name = byId("lora").value;
      byId("lora").value = "";
      if (name) this.#add({ name }).querySelector(".lora-strength").focus();
      this.#show();
    });
  }

  /** Offers what the model has; what is chosen stays where the model has it, too. */
  useModel() {
    const names = served.adapters.map(({ name }) => name);
    for (const row of [...byId("loras").children]) if (!names.includes(row.dataset.name)) row.remove();
    const options = served.adapters.map(({ name, fault }) => {
      const option = new Option(fault ? `${plain(name)} (cannot be used)` : plain(name), name);
      option.disabled = fault !== null;
      option.title = fault ?? "";
      return option;
    });
    byId("lora").replaceChildren(new Option("Add an adapter…", ""), ...options);
    this.#show();
  }

  /** [{name, strength, expert}], as requests have them; `expert` only where one is chosen. */
  get value() {
    return [...byId("loras").children].map((row) => {
      const expert = row.querySelector(".lora-expert").value;
      const strength = row.querySelector(".lora-strength").valueAsNumber;
      return { name: row.dataset.name, strength: Number.isNaN(strength) ? 1 : strength, ...(expert && { expert }) };
    });
  }

  set value(loras) {
    byId("loras").replaceChildren();
    loras.forEach((lora) => this.#add(lora));
    this.#show();
  }

  #add({ name, strength = 1, expert = "" }) {
    const row = template.content.firstElementChild.cloneNode(true);
    const { description = null, trigger = null, expert: own = null } = served.adapters.find((each) => each.name === name) ?? {};
    const text = [description && plain(description), trigger && `Say “${plain(trigger)}” in the prompt.`].filter(Boolean).join("\n");
    row.dataset.name = name;
    setText(row.querySelector(".lora-name"), plain(name));
    setText(row.querySelector(".lora-text"), text);
    row.querySelector(".lora-text").hidden = !text;
    row.querySelector(".lora-strength").value = strength;
    row.querySelector(".lora-expert").value = expert;
    row.querySelector(".lora-which").hidden = served.experts < 2;
    if (own) setText(row.querySelector(".lora-expert").options[0], `${own} noise, as its file says`);
    const remove = row.querySelector(".lora-remove");
    remove.setAttribute("aria-label", `Take ${plain(name)} away`);
    remove.title = "Take it away";
    remove.addEventListener("click", () => {
      row.remove();
      this.#show();
      byId("lora").focus();
    });
    byId("loras").append(row);
    return row;
  }

  #show() {
    const isNone = !byId("loras").children.length;
    byId("loras").hidden = isNone;
    byId("lora-field").hidden = isNone && !served.adapters.length;
    this.#onChange();
  }
}
