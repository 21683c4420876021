// Asks for the API key where the service wants one, and keeps it for this tab.

import { api, apiKey, contact, ServiceError } from "./api.js";
import { byId, setFieldError } from "./dom.js";
import { hideBanner, showBanner } from "./notices.js";

const KEPT = "It is kept in this tab only and forgotten when you close it.";

/** `onKey` runs when the key has changed to one that the service takes. */
export function watchKey(onKey) {
  const dialog = byId("key-dialog");
  let isNeeded = false; // the service has refused to go on without another key

  const ask = () => {
    const [text, leave] = isNeeded
      ? [apiKey.get() ? "The service no longer takes the key of this tab." : "This service asks for a key.", "Not now"]
      : ["This tab uses a key; another one can take its place.", "Forget the key"];
    byId("key-text").textContent = `${text} ${KEPT}`;
    byId("key-cancel").textContent = leave;
    byId("key").value = "";
    setFieldError("key", null);
    dialog.showModal();
  };

  const leave = () => {
    if (isNeeded) return dialog.close();
    apiKey.forget();
    return location.reload();
  };

  const take = async () => {
    const error = await tryKey(byId("key").value.trim());
    setFieldError("key", error);
    if (error) return byId("key").select();
    isNeeded = false;
    dialog.close();
    hideBanner("key");
    return onKey();
  };

  contact.addEventListener("unauthorised", () => {
    if (dialog.open) return;
    isNeeded = true;
    byId("open-key").hidden = false;
    ask();
  });
  dialog.addEventListener("close", () => {
    if (!isNeeded) return;
    showBanner("key", "This service needs an API key.", { kind: "warning", action: "Enter the key", onAction: ask });
  });
  byId("open-key").hidden = !apiKey.get();
  byId("open-key").addEventListener("click", ask);
  byId("key-cancel").addEventListener("click", leave);
  byId("key-form").addEventListener("submit", (event) => (event.preventDefault(), take()));
}

/** Keeps a key that the service takes; else says what is wrong with it. */
async function tryKey(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) return "Enter the key as you were given it: letters, digits and signs.";
  const before = apiKey.get();
  apiKey.set(key);
  try {
    await api.models();
    return null;
  } catch (error) {
    if (before) apiKey.set(before);
    else apiKey.forget();
    if (error instanceof ServiceError && error.status === 401) return "The service does not know this key.";
    return `The key could not be tried: ${error.message}.`;
  }
}
