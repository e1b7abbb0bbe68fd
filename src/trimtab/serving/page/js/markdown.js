/**
 * Renders Markdown as it grows, and never trusts it.
 *
 * Only the last block of a text can still change while more is written, so the blocks before it are kept as they are:
 * each update reads and renders one block, however long the answer is. Raw HTML is shown as the text it is, and what
 * marked makes goes through DOMPurify with a short list of allowed elements; none of them loads anything.
 */

import { Marked } from "../vendor/marked.esm.js";
import DOMPurify from "../vendor/purify.es.mjs";
import { el } from "./dom.js";

const escaped = (text) =>
  text.replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => escaped(`[image: ${text || href}]`), // an image would be a request to wherever it says
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 3); // below the page's own headings
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."p br hr strong em del code pre blockquote ul ol li a h4 h5 h6".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** A line that may yet become an item of the list before it. */
const MAY_BE_ITEM = /^ {0,3}(?:\d{1,9}[.)]?|[-+*])\s*$/;

/** Stands for a mark in the text. A noncharacter, which no model writes; one that comes in a text is replaced. */
export const MARK = "\uFDD0";

/** Return a text as this module takes it. */
export const cleaned = (text) => text.replaceAll(MARK, "\uFFFD").replace(/\r\n?/g, "\n");

/** Shows one growing Markdown text in an element. */
export class MarkdownView {
  /**
   * @param {HTMLElement} root is emptied and filled
   * @param {(index: number) => Node} makeMark returns what the n-th MARK in the text becomes
   */
  constructor(root, makeMark) {
    this.root = root;
    this.makeMark = makeMark;
    this.clear();
  }

  /** Forget what is shown. */
  clear() {
    this.root.replaceChildren();
    this.settled = "";
    this.marks = 0; // in the settled part
    this.tail = [];
  }

  /**
   * Show a text.
   * @param {string} text what was written so far, MARKs included
   * @param {boolean} final whether nothing follows; references to links defined further down then hold too
   */
  update(text, final = false) {
    if (!text.startsWith(this.settled) || (final && /^ {0,3}\[[^\]]+\]:/m.test(text))) this.clear();
    for (const node of this.tail) node.remove();
    this.tail = [];
    const blocks = marked.lexer(text.slice(this.settled.length));
    const last = blocks.findLastIndex((block) => block.type !== "space");
    let marks = this.marks;
    blocks.forEach((block, i) => {
      const nodes = this.render(block, marks);
      this.root.append(...nodes);
      marks += block.raw.split(MARK).length - 1;
      const grows = block.type === "list" && MAY_BE_ITEM.test(blocks[last].raw);
      if (i < last && !grows && this.settles(text, block)) this.marks = marks;
      else this.tail.push(...nodes);
    });
  }

  settles(text, block) {
    const whole = this.settled + block.raw;
    if (this.tail.length || !text.startsWith(whole)) return false;
    this.settled = whole;
    return true;
  }

  render(block, marks) {
    if (block.type === "space" || block.type === "def") return [];
    const fragment = DOMPurify.sanitize(marked.parser([block]), ALLOWED);
    for (const link of fragment.querySelectorAll("a")) {
      link.setAttribute("rel", "noopener noreferrer nofollow");
      link.setAttribute("target", "_blank");
    }
    for (const table of fragment.querySelectorAll("table")) {
      const box = el("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": "Table" });
      table.replaceWith(box);
      box.append(table);
    }
    for (const code of fragment.querySelectorAll("pre")) code.setAttribute("tabindex", "0");
    this.place(fragment, marks);
    return [...fragment.childNodes];
  }

  place(fragment, marks) {
    const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) if (walker.currentNode.data.includes(MARK)) found.push(walker.currentNode);
    let index = marks;
    for (const node of found) {
      const parts = node.data.split(MARK);
      const nodes = [document.createTextNode(parts[0])];
      for (const part of parts.slice(1)) nodes.push(this.makeMark(index++), document.createTextNode(part));
      node.replaceWith(...nodes);
    }
    for (const link of fragment.querySelectorAll("a")) {
      link.setAttribute("href", (link.getAttribute("href") ?? "").replaceAll(encodeURIComponent(MARK), ""));
    }
  }
}

/**
 * Return where in a Markdown text a mark for some position may stand without changing what the text means: behind the
 * word there, and in no line that is all syntax.
 */
export function placeFor(text, position) {
  const word = /[\p{L}\p{N}.,;:!?)'"”’]/u;
  let start = Math.max(0, position);
  while (start > 0 && /\s/.test(text[start - 1])) start -= 1;
  for (let i = start; i <= text.length; i++) {
    if (i < text.length && !/\s/.test(text[i])) continue;
    const line = text.slice(text.lastIndexOf("\n", i - 1) + 1, i);
    if (i > 0 && word.test(text[i - 1]) && !/^\s*(```|~~~|\||\d+[.)]$|\[[^\]]*\]:)/.test(line)) return i;
  }
  return text.length;
}
