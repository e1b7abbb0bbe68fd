/** Tells about one token: what each objective thinks of it, and what the likeliest tokens were before and after. */

import { clamp, el, percent, signed } from "./dom.js";
import { shade } from "./tokens.js";

/** One for the whole page. It takes no focus: the token that it is about describes itself by it. */
export class Popover {
  /**
   * @param {HTMLElement} root
   * @param {() => {label: string, value: Function}[]} rows what a token is measured by
   */
  constructor(root, rows) {
    this.root = root;
    this.rows = rows;
    this.owner = null;
    this.pinned = false;
    addEventListener("scroll", () => this.follow(), { capture: true, passive: true });
    addEventListener("resize", () => this.hide());
    document.addEventListener("pointerdown", (event) => {
      if (!root.contains(event.target) && !event.target.closest?.(".token")) this.hide();
    });
  }

  /** Whether it is open. */
  get open() {
    return !this.root.hidden;
  }

  /** Show it beside a token; pinned, it stays when the pointer leaves. */
  show(span, token, pin = false) {
    if (this.owner !== span) {
      this.hide();
      this.owner = span;
      span.setAttribute("aria-describedby", this.root.id);
      span.classList.add("told");
      this.root.replaceChildren(...this.content(token));
      this.root.hidden = false;
    }
    this.pinned ||= pin;
    this.place(span);
  }

  /** Close it. */
  hide() {
    this.owner?.removeAttribute("aria-describedby");
    this.owner?.classList.remove("told");
    this.owner = null;
    this.pinned = false;
    this.root.hidden = true;
  }

  /** Stay beside the token while the page scrolls, as long as it can be seen. */
  follow() {
    if (!this.owner) return;
    const box = this.owner.getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight || !this.owner.isConnected) this.hide();
    else this.place(this.owner);
  }

  place(span) {
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.root;
    const below = box.bottom + 8 + height <= innerHeight || box.top < height + 8;
    this.root.style.left = `${clamp(box.left, 8, Math.max(8, innerWidth - width - 8))}px`;
    this.root.style.top = `${clamp(below ? box.bottom + 8 : box.top - height - 8, 8, Math.max(8, innerHeight - height - 8))}px`;
  }

  content(token) {
    const head = el("p", { class: "pop-token" }, el("code", { text: visible(token.token) }));
    if (typeof token.base_logprob === "number") {
      head.append(
        el("span", { class: "pop-odds" }, "base ", el("b", { text: percent(token.base_logprob) }), " → guided ", el("b", { text: percent(token.logprob) })),
      );
    }
    const parts = [head];
    const measured = this.rows().map((row) => [row.label, row.value(token)]).filter(([, value]) => value !== null);
    if (measured.length) parts.push(this.ratios(measured));
    if (token.base_top?.length || token.top?.length) {
      parts.push(
        el("div", { class: "pop-tops" }, top("Before (base)", token.base_top ?? [], token), top("After (guided)", token.top ?? [], token)),
      );
    }
    const facts = [];
    if (typeof token.base_logprob === "number") facts.push(`log p base ${signed(token.base_logprob)}`);
    if (typeof token.logprob === "number") facts.push(`guided ${signed(token.logprob)}`);
    if (typeof token.kl === "number") facts.push(`KL ${token.kl.toFixed(3)} nats`);
    parts.push(el("p", { class: "pop-facts", text: facts.join(" · ") }));
    return parts;
  }

  ratios(measured) {
    const list = el("dl", { class: "pop-ratios" });
    for (const [label, value] of measured) {
      const sure = typeof value === "number" && !Number.isNaN(value);
      const chip = el("span", { class: `chip-value ${sure ? shade(value) : ""}`, text: sure ? signed(value) : "–" });
      list.append(el("dt", { text: label }), el("dd", {}, chip, el("span", { class: "pop-word", text: sure ? inWords(value) : "" })));
    }
    return el("div", { class: "pop-measured" }, el("p", { class: "pop-title", text: "Compared with the base, in nats" }), list);
  }
}

function inWords(value) {
  const times = Math.exp(Math.abs(value));
  if (times < 1.1) return "as likely";
  const count = times > 999 ? "over 999" : times < 10 ? times.toFixed(1) : times.toFixed(0);
  return `${count}× ${value > 0 ? "likelier" : "less likely"}`;
}

function top(title, tokens, chosen) {
  const list = el("ol", {});
  for (const token of tokens.slice(0, 5)) {
    const bar = el("span", { class: "pop-bar" });
    bar.style.setProperty("--p", Math.exp(token.logprob).toFixed(4));
    const mine = token.token_id === chosen.token_id;
    list.append(
      el("li", { class: mine ? "mine" : "" }, bar, el("code", { text: visible(token.token) }), mine ? el("span", { class: "visually-hidden", text: " (chosen)" }) : null, el("span", { class: "pop-p", text: percent(token.logprob) })),
    );
  }
  return el("div", {}, el("p", { class: "pop-title", text: title }), list);
}

/** Write a token so that its spaces and breaks can be seen. */
export function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}
