/** One answer on the page: its text, its tokens, its marks, and how it goes on. */

import { announce, el, svg } from "./dom.js";
import { difference, weightedSum } from "./guides.js";
import { MARK, MarkdownView, cleaned, placeFor } from "./markdown.js";
import { TokenView } from "./tokens.js";

const NEAR = 4; // marks of fewer tokens apart become one: a slider that moves leaves one, not twenty

/** What is written on one side ("guided" or "base") in reply to a prompt. */
export class Answer {
  /**
   * @param {{side: string, label: string, measures: object[], popover: object, view: string, measure: string,
   *   weights: Record<string, number>, guides: object[], onView: (view: string) => void}} options
   */
  constructor(options) {
    Object.assign(this, options);
    this.epochs = [{ from: 0, weights: this.weights }];
    this.text = "";
    this.tokens = [];
    this.offsets = []; // token → where in the text it begins, as far as chunks tell
    this.count = 0;
    this.marks = []; // {token, label}
    this.sums = Object.fromEntries(this.measures.map((m) => [m.id, { sum: 0, count: 0 }]));
    this.busy = true;
    this.pending = false;
    this.wait = 0;
    this.build();
  }

  build() {
    this.words = el("div", { class: "prose" });
    this.cells = el("div", { class: "cells", role: "group", "aria-label": "Tokens; arrow keys move between them" });
    this.note = el("div", { class: "note" });
    this.foot = el("p", { class: "foot" });
    this.markdown = new MarkdownView(this.words, (i) => this.markNode(i));
    this.cellView = new TokenView(this.cells, (token) => this.valueOf(token), this.popover, (i) => this.markNode(i));
    this.buttons = ["text", "tokens"].map((view) =>
      el("button", { type: "button", text: view === "text" ? "Text" : "Tokens", on: { click: () => this.choose(view) }, data: { view } }),
    );
    this.element = el(
      "section",
      { class: `answer ${this.side}`, "aria-label": this.label },
      el("div", { class: "answer-head" }, el("h3", { text: this.label }), el("div", { class: "switch", role: "group", "aria-label": `View of the ${this.label.toLowerCase()} answer` }, ...this.buttons)),
      this.words,
      this.cells,
      this.note,
      this.foot,
    );
    this.show(this.view);
    this.element.setAttribute("aria-busy", "true");
  }

  choose(view) {
    this.show(view);
    this.onView(view);
  }

  /** Show the text or the tokens. */
  show(view) {
    this.view = view;
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.dataset.view === view));
    this.words.hidden = view === "tokens";
    this.cells.hidden = view !== "tokens";
    this.draw();
  }

  /** Take what a chunk of the stream brought. */
  add(text, tokens, count) {
    const begin = this.text.length;
    this.text += cleaned(text);
    for (let i = 0; i < count; i++) this.offsets.push(begin);
    this.count += count;
    for (const token of tokens) {
      token.shown = this.textOf(token.token);
      // What a token is worth to the guides depends on how strongly they pulled when it was drawn.
      token.pull = weightedSum(token, this.weightsAt(this.tokens.length), this.guides);
      this.tokens.push(token);
      for (const measure of this.measures) {
        const value = measure.value(token);
        if (typeof value !== "number") continue;
        this.sums[measure.id].sum += value;
        this.sums[measure.id].count += 1;
      }
    }
    this.schedule();
  }

  /** Return what a token shows as: a character whose bytes are several tokens stands at the last of them. */
  textOf(token) {
    if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) {
      this.decoder = undefined;
      return token;
    }
    this.decoder ??= new TextDecoder();
    const bytes = token.slice(6).split("\\x").slice(1).map((pair) => Number.parseInt(pair, 16));
    return this.decoder.decode(new Uint8Array(bytes), { stream: true }) || "◌";
  }

  weightsAt(i) {
    return this.epochs.findLast((epoch) => epoch.from <= i)?.weights ?? {};
  }

  /** Note which weights are applied, from a token on; tokens that have arrived since are measured anew. */
  steer(from, weights) {
    this.epochs = [...this.epochs.filter((epoch) => epoch.from < from), { from, weights }];
    for (const token of this.tokens.slice(from)) token.pull = weightedSum(token, weights, this.guides);
    if (from < this.tokens.length && !this.measure) this.colour("");
  }

  /** Return the mean log-ratio of one objective so far, nats; `null` if nothing was scored. */
  mean(id) {
    const { sum, count } = this.sums[id];
    return count ? sum / count : null;
  }

  valueOf(token) {
    if (!this.measure) return token.pull;
    return this.measures.find((m) => m.id === this.measure)?.value(token) ?? null;
  }

  /** Colour the tokens by an objective; "" by the weighted sum of all. */
  colour(measure) {
    this.measure = measure;
    this.cellView.recolour((token) => this.valueOf(token));
  }

  /**
   * Note that tokens from this one on were drawn with other guidance.
   * @param {number} token the first of them
   * @param {object} before guidance
   * @param {object} after guidance
   */
  mark(token, before, after) {
    const last = this.marks.at(-1);
    if (last && token - last.token < NEAR) {
      last.label = difference(last.before, after);
      for (const node of last.nodes) relabel(node, last.label);
    } else this.marks.push({ token, before, label: difference(before, after), nodes: [] });
    this.schedule();
  }

  markNode(i) {
    const mark = this.marks[i];
    if (!mark) return document.createTextNode("");
    const aside = (text) => el("span", { class: "visually-hidden", text });
    const node = el("span", { class: "mark", data: { token: mark.token } }, aside(" (steering: "), el("b", {}), aside(")"));
    node.prepend(svg("svg", { viewBox: "0 0 10 12", "aria-hidden": "true" }, svg("path", { d: "M1 1v10M1 1l8 3-8 3z" })));
    relabel(node, mark.label);
    mark.nodes = [...mark.nodes.filter((other) => other.isConnected), node];
    return node;
  }

  /** Say how it ended. */
  finish(text) {
    this.busy = false;
    this.element.setAttribute("aria-busy", "false");
    this.element.classList.add("done");
    this.foot.textContent = text;
    this.draw();
  }

  /** Tell what went wrong, with buttons for what can be done. */
  fail(problem, actions) {
    this.note.replaceChildren(
      el("p", { text: problem.message }),
      ...actions.map(([text, act]) => el("button", { type: "button", class: "small", text, on: { click: act } })),
    );
    this.note.classList.add("bad");
    announce(problem.message);
  }

  /** Draw in the next frame, or later where drawing takes long, so that the page stays at hand. */
  schedule() {
    if (this.pending) return;
    this.pending = true;
    const frame = () =>
      requestAnimationFrame(() => {
        this.pending = false;
        const begin = performance.now();
        this.draw();
        this.wait = Math.min(1000, 3 * (performance.now() - begin));
      });
    if (this.wait > 24) setTimeout(frame, this.wait);
    else frame();
  }

  draw() {
    if (this.view === "tokens") this.cellView.update(this.tokens, this.marks.map((mark) => mark.token));
    else this.markdown.update(this.marked(), !this.busy);
    this.onDraw?.();
  }

  /** Return the text with a MARK where guidance changed. */
  marked() {
    const places = this.marks.filter((mark) => mark.token <= this.count).map((mark) => placeFor(this.text, this.offsets[mark.token] ?? this.text.length));
    let text = this.text;
    for (const place of places.reverse()) text = text.slice(0, place) + MARK + text.slice(place);
    return text;
  }
}

function relabel(node, label) {
  node.querySelector("b").textContent = label || "as before";
}
