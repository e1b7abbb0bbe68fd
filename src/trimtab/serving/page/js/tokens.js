/** Shows an answer token by token, each coloured by what the guides think of it. */

import { el } from "./dom.js";

/** Bounds between the colours, nats: below the first a token counts as neutral. */
export const BOUNDS = [0.1, 0.5, 1.5, 3];

/** Return the class of the colour for a log-ratio; a token that was not scored has none. */
export function shade(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const level = BOUNDS.filter((bound) => Math.abs(value) >= bound).length;
  return level === 0 ? "z" : `${value > 0 ? "up" : "down"}${level}`;
}

/** The tokens of one answer. Grows; is recoloured in one go. */
export class TokenView {
  /**
   * @param {HTMLElement} root
   * @param {(token: object) => number|null} measure what colours a token
   * @param {{show: Function, hide: Function}} popover tells about the token under pointer or focus
   * @param {(index: number) => Node} makeMark
   */
  constructor(root, measure, popover, makeMark) {
    this.root = root;
    this.measure = measure;
    this.popover = popover;
    this.makeMark = makeMark;
    this.clear();
    for (const type of ["pointerover", "pointerout", "click", "focusin", "focusout", "keydown"]) {
      root.addEventListener(type, (event) => this[type](event));
    }
  }

  /** Forget what is shown. */
  clear() {
    this.root.replaceChildren();
    this.spans = [];
    this.tokens = [];
    this.placed = 0;
    this.current = 0;
  }

  /** Show tokens that were not there before, and marks, given as the index of the token before which each stands. */
  update(tokens, marks) {
    const fresh = document.createDocumentFragment();
    for (const token of tokens.slice(this.spans.length)) {
      const span = el("span", {
        class: `token ${shade(this.measure(token))}`,
        role: "button",
        tabindex: this.spans.length === this.current ? "0" : "-1",
        text: token.shown,
        data: { i: this.spans.length },
      });
      if (token.shown.trim() === "") span.setAttribute("aria-label", token.token.includes("\n") ? "line break" : "space");
      this.spans.push(span);
      fresh.append(span);
    }
    this.root.append(fresh);
    this.tokens = tokens;
    for (; this.placed < marks.length && marks[this.placed] <= this.spans.length; this.placed++) {
      const mark = this.makeMark(this.placed);
      const next = this.spans[marks[this.placed]];
      if (next) next.before(mark);
      else this.root.append(mark);
    }
  }

  /** Colour all tokens anew. */
  recolour(measure) {
    this.measure = measure;
    this.spans.forEach((span, i) => (span.className = `token ${shade(measure(this.tokens[i]))}`));
  }

  at(event) {
    const span = event.target.closest?.(".token");
    return span ? Number(span.dataset.i) : -1;
  }

  pointerover(event) {
    const i = this.at(event);
    if (i >= 0 && event.pointerType === "mouse") this.popover.show(this.spans[i], this.tokens[i]);
  }

  pointerout(event) {
    if (event.pointerType === "mouse" && !this.popover.pinned) this.popover.hide();
  }

  click(event) {
    const i = this.at(event);
    if (i < 0) return;
    this.move(i);
    this.popover.show(this.spans[i], this.tokens[i], true);
  }

  focusin(event) {
    const i = this.at(event);
    if (i >= 0) this.popover.show(this.spans[i], this.tokens[i]);
  }

  focusout() {
    this.popover.hide();
  }

  keydown(event) {
    const i = this.at(event);
    if (i < 0) return;
    const rows = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const target = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: this.spans.length - 1 }[event.key];
    if (target === undefined && rows === undefined && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (rows !== undefined) this.move(this.beside(i, rows));
    else if (target !== undefined) this.move(target);
    else this.popover.show(this.spans[i], this.tokens[i], true);
  }

  /** Return the token nearest to one in the line above or below. */
  beside(i, direction) {
    const from = this.spans[i].getBoundingClientRect();
    let best = i;
    let distance = Infinity;
    let line = null;
    for (let j = i + direction; j >= 0 && j < this.spans.length; j += direction) {
      const box = this.spans[j].getBoundingClientRect();
      if (Math.abs(box.top - from.top) < from.height / 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > from.height / 2) break;
      if (Math.abs(box.left - from.left) < distance) [best, distance] = [j, Math.abs(box.left - from.left)];
    }
    return best;
  }

  move(i) {
    const to = Math.min(Math.max(i, 0), this.spans.length - 1);
    this.spans[this.current]?.setAttribute("tabindex", "-1");
    this.current = to;
    this.spans[to].setAttribute("tabindex", "0");
    this.spans[to].focus();
  }
}
