// Asks for the API key where the service wants one, and keeps it for this tab.

import { api, apiKey, contact, ServiceError } from "./api.js";
import { hideBanner, showBanner } from "./notices.js";

const byId = (id) => document.getElementById(id);

/** `onKey` runs when the key has changed to one that the service takes. */
export function watchKey(onKey) {
  const dialog = byId("key-dialog");
  const ask = () => {
    byId("open-key").hidden = false;
    if (dialog.open) return;
    byId("key").value = "";
    showError(apiKey.get() ? "The service no longer takes the key of this tab." : null);
    dialog.showModal();
  };

  contact.addEventListener("unauthorised", ask);
  byId("open-key").addEventListener("click", ask);
  byId("open-key").hidden = !apiKey.get();
  byId("key-cancel").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    if (!dialog.returnValue) {
      showBanner("key", "This service needs an API key.", { kind: "warning", action: "Enter the key", onAction: ask });
    }
    dialog.returnValue = "";
  });
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const error = await tryKey(byId("key").value.trim());
    showError(error);
    if (error) return byId("key").select();
    dialog.close("taken");
    hideBanner("key");
    return onKey();
  });
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

function showError(message) {
  byId("key-error").textContent = message ?? "";
  byId("key-error").hidden = !message;
  if (message) byId("key").setAttribute("aria-invalid", "true");
  else byId("key").removeAttribute("aria-invalid");
}
