/** The two dialogs: settings, and what to take along (a link, curl, Python). */

import { $, copy } from "./dom.js";
import { NUMBERS, apiKey, checked, toFragment } from "./settings.js";
import { asCurl, asPython } from "./snippets.js";

/** Bind the fields of the settings to the store. */
export function settingsDialog(info, store, { onKey }) {
  const dialog = $("settings");
  for (const name of ["temperature", "topP", "maxTokens", "seed"]) {
    const field = $(`set-${name}`);
    const { low, high } = NUMBERS[name];
    Object.assign(field, { min: low, max: high });
    field.addEventListener("input", () => {
      const value = field.validity.badInput ? undefined : checked(name, field.value);
      field.setAttribute("aria-invalid", String(value === undefined));
      if (value !== undefined) store.set({ [name]: value });
    });
  }
  $("set-system").addEventListener("input", (event) => store.set({ system: event.target.value }));
  $("set-scores").addEventListener("change", (event) => store.set({ scores: event.target.checked }));
  $("set-scores").disabled = info.guides.length === 0;
  const show = () => {
    const { settings } = store;
    for (const name of ["temperature", "topP", "maxTokens", "seed"]) $(`set-${name}`).value = settings[name] ?? "";
    for (const name of ["temperature", "topP", "maxTokens", "seed"]) $(`set-${name}`).setAttribute("aria-invalid", "false");
    $("set-system").value = settings.system;
    $("set-scores").checked = settings.scores;
  };
  $("open-settings").addEventListener("click", () => {
    show();
    dialog.showModal();
  });
  keyField(onKey);
}

/** Bind the field of the API key; it works before anything else is known of the server. */
function keyField(onKey) {
  const field = $("set-key");
  field.value = apiKey.get();
  field.onchange = () => {
    apiKey.set(field.value.trim());
    onKey();
  };
}

/** Open the settings at the field for the key. */
export function askForKey(onKey, message) {
  keyField(onKey);
  $("key-problem").textContent = message;
  const dialog = $("settings");
  if (!dialog.open) dialog.showModal();
  $("set-key").focus();
}

/** Bind the dialog that shows the present settings as a link, as curl and as Python. */
export function shareDialog(info, store, { messages, prompt }) {
  const dialog = $("share");
  const show = () => {
    const asked = $("link-prompt").checked ? prompt() : "";
    $("share-link").value = new URL(toFragment(info, store.settings, asked), location.href).href;
    $("share-curl").textContent = asCurl(info, store.settings, messages());
    $("share-python").textContent = asPython(info, store.settings, messages());
  };
  $("link-prompt").addEventListener("change", show);
  $("share-link").addEventListener("focus", (event) => event.target.select());
  $("copy-link").addEventListener("click", (event) => copy($("share-link").value, event.currentTarget));
  $("copy-curl").addEventListener("click", (event) => copy($("share-curl").textContent, event.currentTarget));
  $("copy-python").addEventListener("click", (event) => copy($("share-python").textContent, event.currentTarget));
  $("open-share").addEventListener("click", () => {
    show();
    dialog.showModal();
  });
}

/** Let the buttons that close a dialog, and a click beside it, do so. */
export function closable() {
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
}
