/** The settings: what they are, where they live, and the link that restores them. */

import { evenShares, fromGuidance, initial, toGuidance } from "./guides.js";

const VERSION = "1";
const KEY = "trimtab-api-key";

/** Return the settings of a first visit. */
export function defaults(info) {
  return {
    ...initial(info),
    compare: info.guides.length > 0,
    view: "text",
    measure: "",
    scores: info.guides.length > 0,
    system: "",
    temperature: 0.7,
    topP: 1,
    maxTokens: 400,
    seed: null,
  };
}

/** Numbers that may be set: name in the link, lowest, highest, whether whole, whether it may be left empty. */
export const NUMBERS = {
  strength: { key: "s", low: -100, high: 100 },
  temperature: { key: "t", low: 0, high: 2 },
  topP: { key: "p", low: 0.01, high: 1 },
  maxTokens: { key: "n", low: 1, high: 1000000, whole: true, empty: true },
  seed: { key: "seed", low: 0, high: 2147483647, whole: true, empty: true },
};

/** Return a number as a setting takes it, or `undefined` if it does not. */
export function checked(name, text) {
  const { low, high, whole, empty } = NUMBERS[name];
  if (String(text).trim() === "") return empty ? null : undefined;
  const value = Number(text);
  if (!Number.isFinite(value) || value < low || value > high || (whole && !Number.isInteger(value))) return undefined;
  return value;
}

/** Holds the settings and tells who listens when they change. */
export class Store {
  constructor(settings) {
    this.settings = settings;
    this.listeners = new Set();
  }

  /** Change some of them. */
  set(changes) {
    const before = this.settings;
    this.settings = { ...before, ...changes };
    for (const listener of this.listeners) listener(this.settings, before);
  }

  /** Change the pull of one guide. */
  pull(name, changes) {
    const pulls = { ...this.settings.pulls, [name]: { ...this.settings.pulls[name], ...changes } };
    this.set({ pulls });
  }

  /** Call a function after each change. */
  listen(listener) {
    this.listeners.add(listener);
  }
}

/** Return the guidance object of some settings. */
export const guidanceOf = (info, settings) => toGuidance(info, settings.pulls, settings.strength);

/** Return the fragment that restores settings, the key never among them. */
export function toFragment(info, settings, prompt = "") {
  const params = new URLSearchParams({ v: VERSION });
  const { weights } = guidanceOf(info, settings);
  for (const [name, weight] of Object.entries(weights)) params.append(`w.${name}`, String(weight));
  for (const guide of info.guides.filter((g) => g.conditioned)) {
    // With weight 0 the weights above have forgotten the mixture.
    const pull = settings.pulls[guide.name];
    if (pull.weight === 0) {
      params.append(`mix.${guide.name}`, guide.objectives.map((o) => pull.shares[o.name].toFixed(4)).join(","));
    }
  }
  for (const [name, { key }] of Object.entries(NUMBERS)) params.append(key, settings[name] ?? "");
  params.append("compare", settings.compare ? "1" : "0");
  params.append("scores", settings.scores ? "1" : "0");
  params.append("view", settings.view);
  if (settings.measure) params.append("by", settings.measure);
  if (settings.system) params.append("system", settings.system);
  if (prompt) params.append("prompt", prompt);
  return `#${params}`;
}

/**
 * Read a fragment. Every value is checked; what does not hold is left at its default and told.
 * @returns {{settings: object, prompt: string, problems: string[]}}
 */
export function fromFragment(info, fragment) {
  const settings = defaults(info);
  const params = new URLSearchParams(fragment.replace(/^#/, ""));
  if (![...params].length) return { settings, prompt: "", problems: [] };
  if (params.get("v") !== VERSION) {
    return { settings, prompt: "", problems: ["The link is not one of this page's, or of a newer one: it was left out."] };
  }
  const problems = [];
  readPulls(info, params, settings, problems);
  for (const [name, { key }] of Object.entries(NUMBERS)) {
    if (!params.has(key)) continue;
    const value = checked(name, params.get(key));
    if (value === undefined) problems.push(`“${key}” has no value that the page takes: its default stays.`);
    else settings[name] = value;
  }
  if (params.has("compare")) settings.compare = params.get("compare") === "1" && info.guides.length > 0;
  if (params.has("scores")) settings.scores = params.get("scores") === "1" && info.guides.length > 0;
  settings.view = params.get("view") === "tokens" && settings.scores ? "tokens" : "text";
  settings.measure = (params.get("by") ?? "").slice(0, 200);
  settings.system = (params.get("system") ?? "").slice(0, 20000);
  return { settings, prompt: (params.get("prompt") ?? "").slice(0, 100000), problems };
}

function readPulls(info, params, settings, problems) {
  const weights = {};
  for (const [key, text] of params) {
    if (!key.startsWith("w.")) continue;
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || Math.abs(value) > 100) {
      problems.push(`The weight of “${key.slice(2, 80)}” is no number that the page takes.`);
    } else weights[key.slice(2)] = value;
  }
  if (Object.keys(weights).length) {
    const { pulls, unknown } = fromGuidance(info, { weights });
    settings.pulls = pulls;
    for (const name of unknown) problems.push(`This server has no guide or objective “${name.slice(0, 80)}”.`);
  }
  for (const guide of info.guides.filter((g) => g.conditioned)) {
    const shares = (params.get(`mix.${guide.name}`) ?? "").split(",").map(Number);
    const total = shares.reduce((sum, share) => sum + share, 0);
    if (shares.length !== guide.objectives.length || !(total > 0) || shares.some((s) => !(s >= 0))) continue;
    settings.pulls[guide.name].shares = Object.fromEntries(guide.objectives.map((o, i) => [o.name, shares[i] / total]));
  }
  for (const guide of info.guides.filter((g) => g.conditioned)) {
    const pull = settings.pulls[guide.name];
    if (!Object.keys(pull.shares).length) pull.shares = evenShares(guide);
  }
}

/** The API key: kept for this tab only, and never in the link. */
export const apiKey = {
  get() {
    return sessionStorage.getItem(KEY) ?? "";
  },
  set(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  },
};
