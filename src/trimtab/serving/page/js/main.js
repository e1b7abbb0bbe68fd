/** Starts the page: asks the server what there is, restores the settings, and binds everything. */

import * as api from "./api.js";
import { Chat } from "./chat.js";
import { askForKey, closable, settingsDialog, shareDialog } from "./dialogs.js";
import { $, el } from "./dom.js";
import { measures } from "./guides.js";
import { Helm, summary } from "./helm.js";
import { Plot } from "./plot.js";
import { Popover } from "./popover.js";
import { Store, fromFragment, toFragment } from "./settings.js";
import { BOUNDS } from "./tokens.js";

const TRIES = [
  "My train is late and I will miss my sister's wedding rehearsal. What should I do?",
  "Explain to a ten-year-old why the sea is salty.",
  "Write a short note to a neighbour whose dog barks all night.",
];

/** Ask for the guides; until they are known there is a notice that says what is missing. */
async function start() {
  notice(null);
  try {
    const info = await api.guides();
    ready(info);
  } catch (problem) {
    notice(problem.message ?? String(problem), [["Try again", start]]);
    if (problem.kind === "key") askForKey(start, problem.message);
  }
}

/** Show a notice above the conversation, or none. */
function notice(text, actions = []) {
  const box = $("notice");
  box.hidden = text === null;
  box.replaceChildren(el("p", { text: text ?? "" }), ...actions.map(([label, act]) => el("button", { type: "button", class: "small", text: label, on: { click: act } })));
}

function ready(info) {
  if ($("settings").open) $("settings").close();
  $("model").textContent = info.model;
  $("model").title = `Base: ${info.base}`;
  const { settings, prompt, problems } = fromFragment(info, location.hash);
  const store = new Store(settings);
  if (problems.length) notice(problems.join(" "), [["Dismiss", () => notice(null)]]);
  const all = measures(info);
  const rows = () => [{ label: "all, weighted", value: (token) => token.pull }, ...all];
  const popover = new Popover($("popover"), rows);
  const chat = new Chat({
    info,
    store,
    popover,
    plot: new Plot($("plot-rows"), all),
    onKey: () => askForKey(() => {}, "The server does not accept the key: enter another, then try again."),
    onState: () => showState(chat),
    onEdit: (text) => {
      $("prompt").value = text;
      fit();
      $("prompt").focus();
    },
  });
  new Helm(info, store);
  composer(chat, prompt);
  keys(chat, popover);
  display(info, store, all);
  trim(store);
  settingsDialog(info, store, { onKey: () => {} });
  const messages = () => {
    const text = $("prompt").value.trim();
    if (text) return [...chat.messages("guided"), { role: "user", content: text }];
    const turns = chat.turns.slice(0, -1);
    const last = chat.turns.at(-1);
    return last ? [...chat.messages("guided", turns), { role: "user", content: last.prompt }] : [];
  };
  shareDialog(info, store, { messages, prompt: () => $("prompt").value.trim() || (chat.turns.at(-1)?.prompt ?? "") });
  let timer;
  store.listen(() => {
    clearTimeout(timer);
    timer = setTimeout(() => history.replaceState(null, "", toFragment(info, store.settings)), 150);
  });
  addEventListener("hashchange", () => location.reload()); // another link was pasted into the address bar
  $("new").addEventListener("click", () => {
    chat.clear();
    $("prompt").focus();
  });
  document.body.classList.add("ready");
  showState(chat);
  if (matchMedia("(pointer: fine)").matches && !$("settings").open) $("prompt").focus();
}

function fit() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight * 0.4)}px`;
}

function composer(chat, prompt) {
  const field = $("prompt");
  field.value = prompt;
  fit();
  const send = () => {
    const text = field.value.trim();
    if (chat.busy || !text) return;
    field.value = "";
    fit();
    chat.send(text);
  };
  field.addEventListener("input", fit);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("send").addEventListener("click", () => (chat.busy ? chat.stop() : send()));
  $("tries").replaceChildren(
    ...TRIES.map((text) => el("li", {}, el("button", { type: "button", class: "try", text, on: { click: () => chat.busy || chat.send(text) } }))),
  );
}

function showState(chat) {
  const { busy } = chat;
  $("send").textContent = busy ? "Stop" : "Send";
  $("send").classList.toggle("stop", busy);
  $("empty").hidden = chat.turns.length > 0;
  document.body.classList.toggle("busy", busy);
}

function keys(chat, popover) {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (popover.open) popover.hide();
    else if (chat.busy) chat.stop();
    else return;
    event.preventDefault();
  });
}

/** Bind what concerns how answers are shown: side by side, colour, theme, and the helm on a phone. */
function display(info, store, all) {
  const compare = $("compare");
  compare.addEventListener("change", () => store.set({ compare: compare.checked }));
  compare.disabled = info.guides.length === 0;
  const measure = $("measure");
  const option = (value, text) => el("option", { value, text });
  measure.replaceChildren(option("", "all, weighted"), ...all.map((m) => option(m.id, m.label)));
  measure.addEventListener("change", () => store.set({ measure: measure.value }));
  if (!all.some((m) => m.id === store.settings.measure)) store.settings.measure = "";
  $("legend").hidden = info.guides.length === 0;
  $("legend-low").textContent = `−${BOUNDS.at(-1)}`;
  $("legend-high").textContent = `+${BOUNDS.at(-1)}`;
  const show = () => {
    compare.checked = store.settings.compare;
    measure.value = store.settings.measure;
    $("summary").textContent = summary(info, store.settings);
  };
  store.listen(show);
  show();
  $("helm-toggle").addEventListener("click", () => {
    const open = $("helm").classList.toggle("open");
    $("helm-toggle").setAttribute("aria-expanded", String(open));
  });
}

/** Let the tab on the rudder of the logo stand as the strength does. */
function trim(store) {
  const show = () => {
    const angle = Math.max(-40, Math.min(40, store.settings.strength * 14));
    $("tab").style.setProperty("transform", `rotate(${angle}deg)`);
  };
  store.listen(show);
  show();
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const show = () => $("theme").setAttribute("aria-pressed", String(now() === "dark"));
  $("theme").addEventListener("click", () => {
    const chosen = now() === "dark" ? "light" : "dark";
    root.dataset.theme = chosen;
    localStorage.setItem("trimtab-theme", chosen);
    show();
  });
  dark.addEventListener("change", show);
  show();
}

theme();
closable();
start();
