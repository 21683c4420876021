// Asks for the API key where the service wants one, and keeps it for this tab or, asked to, longer.

import { api, apiKey, contact, ServiceError } from "./api.js";
import { byId, setFieldError } from "./dom.js";
import { hideNotice, showNotice } from "./notices.js";

/** `onKey` runs when the key has changed to one that the service takes. */
export function watchKey(onKey) {
  const dialog = byId("key-dialog");
  let isNeeded = false; // the service has refused to go on without another key

  const ask = () => {
    byId("key-text").textContent = isNeeded ? whatIsWrong() : whatIsKept();
    byId("key-cancel").textContent = isNeeded ? "Not now" : "Forget the key";
    byId("key-keep").checked = apiKey.isKept();
    setFieldError("key", null);
    dialog.showModal();
  };

  const leave = () => {
    if (isNeeded) return dialog.close();
    apiKey.forget();
    return location.reload();
  };

  const take = async () => {
    const key = byId("key").value.trim();
    const error = await tryKey(key);
    setFieldError("key", error);
    if (error) return byId("key").select();
    apiKey.set(key, { keep: byId("key-keep").checked });
    isNeeded = false;
    dialog.close();
    hideNotice("key");
    return onKey();
  };

  contact.addEventListener("unauthorised", () => {
    if (dialog.open) return;
    isNeeded = true;
    byId("open-key").hidden = false;
    ask();
  });
  dialog.addEventListener("close", () => {
    byId("key").value = ""; // not on opening: a password manager may have filled it in by then
    if (!isNeeded) return;
    showNotice("key", "This service needs an API key.", { kind: "warning", action: "Enter the key", onAction: ask });
  });
  byId("open-key").hidden = !apiKey.get();
  byId("open-key").addEventListener("click", ask);
  byId("key-cancel").addEventListener("click", leave);
  byId("key-form").addEventListener("submit", (event) => (event.preventDefault(), take()));
}

function whatIsWrong() {
  return apiKey.get() ? "The service no longer takes the key used here." : "This service asks for a key.";
}

function whatIsKept() {
  const kept = apiKey.isKept() ? "A key is kept on this device" : "A key is kept in this tab until you close it";
  return `${kept}; another one can take its place.`;
}

/** What is wrong with a key, or null when the service takes it. */
async function tryKey(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) return "Enter the key as you were given it: letters, digits and signs.";
  try {
    await api.models(key);
    return null;
  } catch (error) {
    if (error instanceof ServiceError && error.status === 401) return "The service does not know this key.";
    return `The key could not be tried: ${error.message}.`;
  }
}
