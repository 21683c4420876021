// Prompts to begin with: all of them in the empty gallery, one after the other above the prompt.

import { byId } from "./dom.js";

const MAX_SHOWN = 4;

export class Examples {
  #prompts = [];
  #onUse;

  /** `onUse()` runs when one was written into the prompt. */
  constructor(onUse) {
    this.#onUse = onUse;
    byId("next-example").addEventListener("click", () => this.#useNext());
  }

  show(prompts) {
    this.#prompts = prompts;
    byId("examples").replaceChildren(...prompts.slice(0, MAX_SHOWN).map((prompt) => this.#button(prompt)));
    this.offer();
  }

  /** Offers them above the prompt where they overwrite nothing. */
  offer() {
    const prompt = byId("prompt").value;
    byId("next-example").hidden = !this.#prompts.length || (prompt !== "" && !this.#prompts.includes(prompt));
  }

  #button(prompt) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "example";
    button.textContent = prompt;
    button.dir = "auto";
    button.addEventListener("click", () => this.#use(prompt));
    return button;
  }

  #useNext() {
    this.#use(this.#prompts[(this.#prompts.indexOf(byId("prompt").value) + 1) % this.#prompts.length]);
  }

  #use(prompt) {
    byId("prompt").value = prompt;
    this.#onUse();
    byId("prompt").focus();
  }
}
