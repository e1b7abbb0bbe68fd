/** Small helpers around the DOM. Nothing here, or anywhere else, turns a string into markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Return the element with an id; it is part of index.html. */
export const $ = (id) => document.getElementById(id);

/**
 * Build an element.
 * @param {string} tag
 * @param {Record<string, any>} props `class`, `text`, `on` (event → listener), `data`; the rest are attributes, of which
 *   `true` is written empty, and `false` and `null` are left out.
 * @param {...(Node|string|null)} children
 */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Build an SVG element, as `el` does. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Return a number between two bounds. */
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Write a number shortly, with a true minus sign. */
export function short(value, digits = 2) {
  const text = Number(value.toFixed(digits)).toString();
  return text.replace("-", "−").replace(/^−0$/, "0");
}

/** Write a number with its sign and always the same digits. */
export function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "±" : value < 0 ? "−" : "+") + text;
}

/** Write a probability given its logarithm (nats). */
export function percent(logProb) {
  const value = 100 * Math.exp(logProb);
  if (value >= 99.95) return "100 %";
  if (value >= 9.95) return `${value.toFixed(0)} %`;
  if (value >= 0.995) return `${value.toFixed(1)} %`;
  if (value >= 0.01) return `${value.toFixed(2)} %`;
  return "< 0.01 %";
}

/** Say something to screen readers, once and politely. */
export function announce(text) {
  const status = $("status");
  if (status.textContent === text) status.textContent = "";
  requestAnimationFrame(() => (status.textContent = text));
}

/** Copy a text, and show on the button that it was done. */
export async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("Copied.");
  } catch {
    button.textContent = "Select and copy it by hand";
  }
  setTimeout(() => (button.textContent = label), 1600);
}
