/** The helm: everything that steers. Each control writes to the store, and shows what the store holds. */

import { $, clamp, el, short } from "./dom.js";
import { fromGuidance, initial, sameGuidance, toGuidance, withShare } from "./guides.js";
import { guidanceOf } from "./settings.js";
import { SimplexPad } from "./simplex.js";

let count = 0;

/** A slider and a field for the exact number, which may lie beyond the slider. */
class Dial {
  constructor({ label, hint, low, high, min, max, step = 0.05, unit = 1, onChange }) {
    const id = `dial-${++count}`;
    Object.assign(this, { low, high, unit });
    this.slider = el("input", { type: "range", min: low, max: high, step, "aria-labelledby": id });
    this.field = el("input", { type: "number", min, max, step: "any", inputmode: "decimal", "aria-label": `${label}, exact` });
    const hintNode = hint ? el("p", { class: "hint", id: `${id}-hint`, text: hint }) : null;
    if (hint) this.slider.setAttribute("aria-describedby", `${id}-hint`);
    this.element = el("div", { class: "dial" }, el("span", { class: "dial-label", id, text: label }), this.field, this.slider, hintNode);
    this.slider.addEventListener("input", () => onChange(Number(this.slider.value) / unit));
    this.field.addEventListener("input", () => {
      const value = Number(this.field.value);
      const valid = this.field.value.trim() !== "" && Number.isFinite(value) && value >= min && value <= max;
      this.field.setAttribute("aria-invalid", String(!valid));
      if (valid) onChange(value / unit);
    });
    this.field.addEventListener("blur", () => this.set(this.value));
  }

  set(value) {
    this.value = value;
    const shown = value * this.unit;
    this.slider.value = String(shown);
    if (document.activeElement !== this.field) {
      this.field.value = String(Number(shown.toFixed(this.unit === 1 ? 3 : 1)));
      this.field.setAttribute("aria-invalid", "false");
    }
    const fill = (x) => clamp((x - this.low) / (this.high - this.low), 0, 1);
    this.slider.style.setProperty("--fill", fill(shown).toFixed(4));
  }
}

/** Fill the helm, and keep it and the store the same. */
export class Helm {
  constructor(info, store) {
    Object.assign(this, { info, store });
    this.updates = [];
    const parts = info.guides.length ? [this.presets(), this.strength(), ...info.guides.map((guide) => this.guide(guide))] : [this.none()];
    $("helm-controls").replaceChildren(...parts);
    const show = () => this.updates.forEach((update) => update(store.settings));
    store.listen(show);
    show();
  }

  none() {
    return el("p", { class: "hint", text: "No guide is loaded, so there is nothing to steer with: start the server with --guide FOLDER." });
  }

  presets() {
    const { pulls, strength } = initial(this.info);
    const first = [this.info.default ? "Default" : "Recommended", toGuidance(this.info, pulls, strength)];
    const chips = [first, ...Object.entries(this.info.presets), ["Base only", null]].map(([name, guidance]) => {
      const chip = el("button", { type: "button", class: "chip", text: name, title: guidance?.description });
      chip.addEventListener("click", () => {
        if (guidance === null) this.store.set({ strength: 0 });
        else {
          const { pulls, strength } = fromGuidance(this.info, guidance);
          this.store.set({ pulls, strength });
        }
      });
      const meant = guidance && fromGuidance(this.info, guidance);
      const wanted = meant && toGuidance(this.info, meant.pulls, meant.strength);
      this.updates.push((settings) => {
        const now = guidanceOf(this.info, settings);
        chip.setAttribute("aria-pressed", String(wanted ? sameGuidance(now, wanted) : settings.strength === 0));
      });
      return chip;
    });
    return el("div", { class: "chips", role: "group", "aria-label": "Presets" }, ...chips);
  }

  strength() {
    const dial = new Dial({
      label: "Strength",
      hint: "Turns everything below up or down. 0 is the base model, exactly; below 0 steers away.",
      low: 0, high: 3, min: -100, max: 100,
      onChange: (strength) => this.store.set({ strength }),
    });
    this.updates.push((settings) => dial.set(settings.strength));
    return el("div", { class: "guide strength" }, dial.element);
  }

  guide(guide) {
    const title = el("h3", {}, el("span", { text: guide.name }));
    const box = el("div", { class: "guide", role: "group", "aria-label": guide.name });
    if (!guide.conditioned) {
      box.append(this.weight(guide, guide.name, [aims(guide), described(guide.objectives)].join(" ").trim(), -100));
      return box;
    }
    title.append(el("span", { class: "tag", text: "mixture" }));
    box.append(title, this.weight(guide, "Weight of the mixture", "", 0));
    if (guide.objectives.length === 3) box.append(this.pad(guide));
    for (const objective of guide.objectives) box.append(this.share(guide, objective));
    return box;
  }

  weight(guide, label, hint, min) {
    const [low, high] = guide.weight_range ?? [0, 2];
    const dial = new Dial({ label, hint, low: Math.max(0, low), high: high > low ? high : 2, min, max: 100, onChange: (weight) => this.store.pull(guide.name, { weight }) });
    this.updates.push((settings) => dial.set(settings.pulls[guide.name].weight));
    return dial.element;
  }

  pad(guide) {
    const pad = new SimplexPad(guide, (shares) => this.store.pull(guide.name, { shares }));
    this.updates.push((settings) => pad.set(settings.pulls[guide.name].shares));
    return pad.element;
  }

  share(guide, objective) {
    const dial = new Dial({
      label: `${objective.name}, %`,
      hint: described([objective]),
      low: 0, high: 100, min: 0, max: 100, step: 1, unit: 100,
      onChange: (value) => {
        const { shares } = this.store.settings.pulls[guide.name];
        this.store.pull(guide.name, { shares: withShare(shares, objective.name, clamp(value, 0, 1)) });
      },
    });
    this.updates.push((settings) => dial.set(settings.pulls[guide.name].shares[objective.name]));
    return dial.element;
  }
}

/** Say what a guide rewards, where its own name does not: scores go by the names of objectives. */
function aims(guide) {
  const others = guide.objectives.map((o) => o.name).filter((name) => name !== guide.name);
  return others.length ? `Rewards ${others.join(", ")}.` : "";
}

function described(objectives) {
  return objectives.map((o) => (o.description ?? "") + (o.direction === "minimize" ? " Less of it is better." : "")).join(" ").trim();
}

/** Say in a few words how it steers now. */
export function summary(info, settings) {
  if (!info.guides.length) return "no guide";
  const { weights, strength } = guidanceOf(info, settings);
  const parts = Object.entries(weights).filter(([, weight]) => weight !== 0).map(([name, weight]) => `${name} ${short(weight)}`);
  return `strength ${short(strength)} · ${parts.join(", ") || "all weights 0"}`;
}
