"use strict";
// Everything that comes from a run is put into the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const minus = (text) => text.replace("-", "\u2212");

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const first = [...table.tBodies[0].rows];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    return cell.textContent === "–" ? null : cell.textContent;
  };
  heads.forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.querySelector("button").addEventListener("click", () => {
      const next = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
      const sign = next === "ascending" ? 1 : -1;
      const rows = next === "none" ? first : [...first].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
      });
      table.tBodies[0].append(...rows);
    });
  });
}

function charts() {
  const pick = byId("chart-scorer");
  pick.addEventListener("change", () => {
    document.querySelectorAll(".charts").forEach((each) => { each.hidden = each.dataset.scorer !== pick.value; });
  });
}

const chosen = (id) => (byId(id) ? Number(byId(id).value) : 0);

function tokenNote(note, at) {
  const parts = [`“${note.tokens[at].replace(/\n/g, "⏎")}”`, `base ${minus(note.base[at].toFixed(2))}`, `guided ${minus(note.guided[at].toFixed(2))}`];
  for (const [name, values] of Object.entries(note.voices)) {
    if (values[at] === null) continue;
    const ratio = values[at] - note.base[at];
    parts.push(`${name} ${minus(values[at].toFixed(2))} (${ratio > 0 ? "+" : ""}${minus(ratio.toFixed(2))} to the base)`);
  }
  const shown = byId("token-note");
  shown.classList.remove("idle");
  shown.textContent = parts.join(" · ") + " nats";
}

function coloured(note, voice) {
  const text = document.createElement("div");
  text.className = "answer";
  const values = note.voices[voice];
  note.tokens.forEach((token, at) => {
    const span = document.createElement("span");
    span.className = "token";
    span.textContent = token;
    const ratio = values[at] === null ? 0 : values[at] - note.base[at];
    const strength = Math.min(Math.abs(ratio) / 3, 1) * 0.55;
    if (strength > 0.02) span.style.backgroundColor = `rgba(var(${ratio > 0 ? "--plus" : "--minus"}), ${strength.toFixed(2)})`;
    span.tabIndex = at === 0 ? 0 : -1;
    span.addEventListener("pointerenter", () => tokenNote(note, at));
    span.addEventListener("click", () => tokenNote(note, at));
    span.addEventListener("focus", () => tokenNote(note, at));
    text.append(span);
  });
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const spans = [...text.children];
    const next = step && spans[spans.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return text;
}

function plain(answer) {
  const text = document.createElement("div");
  text.className = "answer";
  text.textContent = answer.text || "(an empty answer)";
  return text;
}

function side(name) {
  const answer = data.settings[chosen(name)][chosen("prompt")][chosen("sample")];
  const colour = chosen("colour");
  const note = answer.note === undefined ? null : data.notes[answer.note];
  const voice = data.colours[colour - 1];
  const text = colour > 0 && note && note.voices[voice] ? coloured(note, voice) : plain(answer);
  const marks = document.createElement("ul");
  marks.className = "marks";
  const ended = answer.end === "stop" ? "ended itself" : "cut at the limit";
  const facts = Object.entries(answer.scores).map(([scorer, value]) => `${scorer} ${minus(String(Number(value.toPrecision(3))))}`);
  for (const fact of [...facts, `KL ${answer.kl.toFixed(2)} a token`, `${answer.tokens} tokens, ${ended}`]) {
    const item = document.createElement("li");
    item.textContent = fact;
    marks.append(item);
  }
  byId(`${name}-answer`).replaceChildren(text, marks);
}

// What the judge said of the two answers that are shown; preferences are those for the answer of setting `first`.
function judged() {
  const box = byId("judged");
  if (!box) return;
  const [left, right, at] = [chosen("left"), chosen("right"), `${chosen("prompt")}/${chosen("sample")}`];
  const straight = data.judged[`${left}/${right}/${at}`];
  const found = straight || data.judged[`${right}/${left}/${at}`];
  const line = document.createElement("p");
  if (!found) {
    line.textContent = `The judge ${data.judge} was not asked about these two answers.`;
    box.replaceChildren(line);
    return;
  }
  const [own, other] = straight ? ["left", "right"] : ["right", "left"];
  const side = (value) => (value === null ? "no verdict" : value > 0.5 ? own : value < 0.5 ? other : "a tie");
  const sides = found.preferences.map(side);
  const said = found.said.some((text) => text);
  let outcome = `prefers the ${sides[0]} answer in both orders`;
  if (found.problem) outcome = `gave no verdict in both orders: ${found.problem}`;
  else if (sides[0] !== sides[1]) outcome = `disagrees with itself: ${sides[0]} with the ${own} answer first, ${sides[1]} with the ${other} one first; a tie`;
  else if (sides[0] === "a tie") outcome = said ? "says tie in both orders" : "was not asked, as the answers are equal: a tie";
  line.textContent = `The judge ${data.judge} ${outcome}.`;
  const more = document.createElement("details");
  const title = document.createElement("summary");
  title.textContent = "What it said";
  more.append(title);
  found.said.forEach((text, order) => {
    const head = document.createElement("h3");
    head.className = "label";
    head.textContent = `Shown as A: the ${order === 0 ? own : other} answer`;
    const reply = document.createElement("pre");
    reply.textContent = text || "(nothing)";
    more.append(head, reply);
  });
  box.replaceChildren(line, ...(said ? [more] : []));
}

function answers() {
  if (!byId("prompt")) return;
  const show = () => {
    byId("prompt-text").textContent = data.prompts[chosen("prompt")].text;
    byId("token-note").classList.add("idle");
    side("left");
    side("right");
    judged();
  };
  const step = (by) => {
    const pick = byId("prompt");
    pick.selectedIndex = (pick.selectedIndex + by + pick.length) % pick.length;
    show();
  };
  for (const id of ["prompt", "left", "right", "sample", "colour"]) {
    if (byId(id)) byId(id).addEventListener("change", show);
  }
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  if (byId("colour")) byId("colour").selectedIndex = 1;
  show();
}

document.querySelectorAll("table").forEach(sortable);
charts();
answers();
