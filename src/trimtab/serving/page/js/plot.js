/** Where the last answers are: their mean log-ratio per objective, guided and base, as bars around zero. */

import { clamp, el, signed } from "./dom.js";

/** Redrawn while answers grow; cheap, as an answer keeps its sums. */
export class Plot {
  /**
   * @param {HTMLElement} root
   * @param {{id: string, label: string}[]} measures
   */
  constructor(root, measures) {
    this.rows = measures.map((measure) => {
      const guided = el("span", { class: "bar-guided" });
      const base = el("span", { class: "bar-base" });
      const guidedNumber = el("b");
      const baseNumber = el("span");
      const numbers = el("span", { class: "plot-numbers" }, hidden("guided "), guidedNumber, hidden(" base"), baseNumber);
      const track = el("span", { class: "plot-track", "aria-hidden": "true" }, guided, base);
      const element = el("li", {}, el("span", { class: "plot-label", text: measure.label, title: measure.label }), track, numbers);
      return { id: measure.id, guided, base, guidedNumber, baseNumber, element };
    });
    root.replaceChildren(...this.rows.map((row) => row.element));
    this.box = root.closest("section");
  }

  /** Show the answers of one turn. */
  show(answers) {
    const value = (side, id) => answers[side]?.mean(id) ?? null;
    const all = this.rows.flatMap((row) => [value("guided", row.id), value("base", row.id)]).filter((x) => x !== null);
    this.box.hidden = this.rows.length === 0 || all.length === 0;
    const scale = Math.max(0.5, ...all.map(Math.abs)); // nats at the end of the track
    for (const row of this.rows) {
      const guided = value("guided", row.id);
      const base = value("base", row.id);
      bar(row.guided, guided, scale);
      bar(row.base, base, scale);
      row.guidedNumber.textContent = guided === null ? "–" : signed(guided);
      row.baseNumber.textContent = base === null ? "" : ` / ${signed(base)}`;
    }
  }
}

const hidden = (text) => el("span", { class: "visually-hidden", text });

function bar(node, value, scale) {
  node.hidden = value === null;
  if (value === null) return;
  const length = clamp(Math.abs(value) / scale, 0.01, 1) * 50;
  node.style.setProperty("left", `${value < 0 ? 50 - length : 50}%`);
  node.style.setProperty("width", `${length}%`);
  node.classList.toggle("below", value < 0);
}
