// Which videos a person wants to have at hand: they stand before the others, on this device.

const NAME = "pinned";

/** Tells "change" when one is pinned or no longer, here or in another tab. */
export class Pins extends EventTarget {
  #ids = read();

  constructor() {
    super();
    addEventListener("storage", ({ key }) => {
      if (key !== NAME) return;
      this.#ids = read();
      this.dispatchEvent(new Event("change"));
    });
  }

  get ids() {
    return [...this.#ids];
  }

  has(id) {
    return this.#ids.has(id);
  }

  /** Pins a video, or no longer; whether it is pinned now. */
  toggle(id) {
    if (!this.#ids.delete(id)) this.#ids.add(id);
    this.#write();
    return this.has(id);
  }

  /** Forgets a video that is gone from the service. */
  forget(id) {
    if (this.#ids.delete(id)) this.#write();
  }

  #write() {
    try {
      localStorage.setItem(NAME, JSON.stringify([...this.#ids]));
    } catch {
      // Storage is blocked: they are pinned until the page is closed.
    }
    this.dispatchEvent(new Event("change"));
  }
}

function read() {
  try {
    const ids = JSON.parse(localStorage.getItem(NAME));
    return new Set(Array.isArray(ids) ? ids.filter((id) => typeof id === "string") : []);
  } catch {
    return new Set(); // storage is blocked, or a hand wrote it
  }
}
