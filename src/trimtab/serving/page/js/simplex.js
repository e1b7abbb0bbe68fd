/** A triangle to mix three objectives: a corner is all of one, the middle all alike. For mouse, touch and keyboard. */

import { clamp, el, svg } from "./dom.js";
import { withShare } from "./guides.js";

const WIDTH = 220;
const HEIGHT = 190.5; // an equilateral triangle
const CORNERS = [
  [WIDTH / 2, 0],
  [0, HEIGHT],
  [WIDTH, HEIGHT],
];
const STEP = 0.05;

/** Return where a mixture lies. */
export const toPoint = (shares) => [0, 1].map((axis) => CORNERS.reduce((sum, corner, i) => sum + shares[i] * corner[axis], 0));

/** Return the mixture at a point; outside the triangle, that of its nearest edge. */
export function toShares([x, y]) {
  const first = 1 - y / HEIGHT;
  const third = x / WIDTH - first / 2;
  const shares = [first, 1 - first - third, third];
  if (shares.every((share) => share >= 0)) return shares;
  const edges = [0, 1, 2].map((i) => nearest([x, y], CORNERS[i], CORNERS[(i + 1) % 3]));
  const best = edges.reduce((a, b) => (b.distance < a.distance ? b : a));
  return toSharesInside(best.point);
}

function toSharesInside([x, y]) {
  const first = clamp(1 - y / HEIGHT, 0, 1);
  const third = clamp(x / WIDTH - first / 2, 0, 1 - first);
  return [first, Math.max(0, 1 - first - third), third];
}

function nearest([x, y], [ax, ay], [bx, by]) {
  const along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2);
  const t = clamp(along, 0, 1);
  const point = [ax + t * (bx - ax), ay + t * (by - ay)];
  return { point, distance: Math.hypot(x - point[0], y - point[1]) };
}

/** The triangle of one guide with three objectives. */
export class SimplexPad {
  /**
   * @param {{name: string, objectives: {name: string}[]}} guide
   * @param {(shares: Record<string, number>) => void} onChange
   */
  constructor(guide, onChange) {
    this.names = guide.objectives.map((objective) => objective.name);
    this.onChange = onChange;
    this.handle = svg("circle", {
      class: "pad-handle",
      r: 11,
      tabindex: "0",
      role: "slider",
      "aria-roledescription": "mixture pad",
      "aria-label": `Mixture of ${this.names.join(", ")}. Up: more ${this.names[0]}; left: more ${this.names[1]}; right: more ${this.names[2]}.`,
      "aria-valuemin": "0",
      "aria-valuemax": "100",
    });
    const lines = CORNERS.map(([x, y], i) => {
      const [ax, ay] = CORNERS[(i + 1) % 3];
      const [bx, by] = CORNERS[(i + 2) % 3];
      return svg("line", { class: "pad-median", x1: x, y1: y, x2: (ax + bx) / 2, y2: (ay + by) / 2 });
    });
    this.plane = svg(
      "svg",
      { class: "pad", viewBox: `-14 -14 ${WIDTH + 28} ${HEIGHT + 28}` },
      svg("polygon", { class: "pad-face", points: CORNERS.map((corner) => corner.join(",")).join(" ") }),
      ...lines,
      this.handle,
    );
    const label = (i) => el("span", { class: `pad-label pad-label-${i}`, "aria-hidden": "true", text: this.names[i] });
    this.element = el("div", { class: "pad-box" }, label(0), this.plane, el("div", { class: "pad-foot" }, label(1), label(2)));
    this.plane.addEventListener("pointerdown", (event) => this.drag(event));
    this.handle.addEventListener("keydown", (event) => this.key(event));
  }

  /** Show a mixture. */
  set(shares) {
    this.shares = shares;
    const [x, y] = toPoint(this.names.map((name) => shares[name]));
    this.handle.setAttribute("cx", x.toFixed(2));
    this.handle.setAttribute("cy", y.toFixed(2));
    this.handle.setAttribute("aria-valuenow", Math.round(100 * shares[this.names[0]]));
    this.handle.setAttribute("aria-valuetext", this.names.map((name) => `${name} ${Math.round(100 * shares[name])} %`).join(", "));
  }

  drag(event) {
    if (event.button) return;
    event.preventDefault();
    this.handle.focus({ preventScroll: true });
    this.plane.setPointerCapture(event.pointerId);
    const move = (at) => {
      const box = this.plane.getBoundingClientRect();
      const scale = (WIDTH + 28) / box.width;
      const shares = toShares([(at.clientX - box.left) * scale - 14, (at.clientY - box.top) * scale - 14]);
      this.onChange(Object.fromEntries(this.names.map((name, i) => [name, shares[i]])));
    };
    const end = () => {
      this.plane.removeEventListener("pointermove", move);
      for (const type of ["pointerup", "pointercancel"]) this.plane.removeEventListener(type, end);
    };
    move(event);
    this.plane.addEventListener("pointermove", move);
    for (const type of ["pointerup", "pointercancel"]) this.plane.addEventListener(type, end);
  }

  key(event) {
    const [index, sign] = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [1, 1], ArrowRight: [2, 1] }[event.key] ?? [];
    if (event.key === "Home") this.onChange(Object.fromEntries(this.names.map((name) => [name, 1 / 3])));
    else if (index === undefined) return;
    else {
      const name = this.names[index];
      const step = event.shiftKey ? STEP / 5 : STEP;
      this.onChange(withShare(this.shares, name, clamp(this.shares[name] + sign * step, 0, 1)));
    }
    event.preventDefault();
  }
}
