/** The conversation: what was asked, what each side answered, and what is being written now. */

import { Answer } from "./answer.js";
import { $, announce, el } from "./dom.js";
import { Generation } from "./generation.js";
import { appliedWeights, measures } from "./guides.js";
import { guidanceOf } from "./settings.js";
import { streamed } from "./snippets.js";

const LABELS = { guided: "Guided", base: "Base" };

/** Everything in the log. */
export class Chat {
  /**
   * @param {{info: object, store: object, popover: object, plot: object, onKey: () => void, onState: () => void,
   *   onEdit: (prompt: string) => void}} options
   */
  constructor(options) {
    Object.assign(this, options);
    this.log = $("log");
    this.turns = [];
    this.running = new Set();
    this.measures = measures(this.info);
    this.following = true;
    this.reached = 0;
    this.log.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.log;
      if (Math.abs(scrollTop - this.reached) < 8) return; // it was the page itself
      this.following = !this.stacked() && scrollHeight - scrollTop - clientHeight < 60;
    });
    this.store.listen((now, before) => this.settled(now, before));
  }

  /** Whether an answer is being written. */
  get busy() {
    return this.running.size > 0;
  }

  settled(now, before) {
    if (now.measure !== before.measure) for (const answer of this.answers()) answer.colour(now.measure);
    if (now.pulls === before.pulls && now.strength === before.strength) return;
    for (const generation of this.running) {
      if (generation.answer.side === "guided") generation.change(guidanceOf(this.info, now));
    }
  }

  answers() {
    return this.turns.flatMap((turn) => Object.values(turn.answers));
  }

  /** Return the messages that one side has seen, up to a turn. */
  messages(side, turns = this.turns) {
    return turns.flatMap((turn) => {
      const answer = turn.answers[side] ?? turn.answers.guided;
      const said = answer.text ? [{ role: "assistant", content: answer.text }] : [];
      return [{ role: "user", content: turn.prompt }, ...said];
    });
  }

  /** Ask. */
  send(prompt) {
    const { settings } = this.store;
    const turn = { prompt, answers: {}, seed: settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1 };
    const sides = settings.compare ? ["guided", "base"] : ["guided"];
    turn.element = el("article", { class: "turn" }, this.asked(prompt), (turn.columns = el("div", { class: `columns ${settings.compare ? "two" : ""}` })));
    this.turns.push(turn);
    this.refreshTools();
    this.log.append(turn.element);
    this.following = true;
    for (const side of sides) this.ask(turn, side);
    announce("Answering.");
    this.follow();
  }

  asked(prompt) {
    return el("div", { class: "asked" }, el("h2", { class: "visually-hidden", text: "You asked" }), el("p", { text: prompt }), el("div", { class: "tools" }));
  }

  /** Offer to edit or repeat the last turn, and no other. */
  refreshTools() {
    this.turns.forEach((turn, i) => {
      const tools = turn.element.querySelector(".tools");
      const last = i === this.turns.length - 1;
      const button = (text, act) => el("button", { type: "button", class: "small quiet", text, on: { click: act } });
      tools.replaceChildren(...(last ? [button("Edit", () => this.edit()), button("Try again", () => this.again())] : []));
    });
  }

  async ask(turn, side) {
    const { settings } = this.store;
    const answer = new Answer({
      side,
      label: LABELS[side],
      measures: this.measures,
      popover: this.popover,
      view: settings.scores ? settings.view : "text",
      measure: settings.measure,
      weights: appliedWeights(settings.pulls, settings.strength),
      guides: this.info.guides,
      onView: (view) => this.store.set({ view }),
    });
    answer.onDraw = () => this.drawn(turn);
    answer.element.classList.toggle("unscored", !settings.scores);
    const old = turn.answers[side];
    turn.answers[side] = answer;
    if (old) old.element.replaceWith(answer.element);
    else turn.columns.append(answer.element);
    const messages = [...this.messages(side, this.turns.slice(0, this.turns.indexOf(turn))), { role: "user", content: turn.prompt }];
    const generation = new Generation(answer, streamed(this.info, settings, { messages, side, seed: turn.seed }));
    // Both sides are coloured by the same weights at the same place, or their colours could not be compared.
    generation.steered = (from, weights) => turn.answers.base !== answer && turn.answers.base?.steer(from, weights);
    generation.refused = (problem) => answer.fail(problem, []);
    this.running.add(generation);
    this.onState();
    try {
      await generation.run();
    } catch (problem) {
      this.failed(turn, side, answer, problem);
    } finally {
      this.running.delete(generation);
      this.onState();
      if (!this.busy && !answer.note.hasChildNodes()) announce(`Answered: ${answer.foot.textContent}.`);
      this.follow();
    }
  }

  failed(turn, side, answer, problem) {
    const actions = [["Try again", () => this.ask(turn, side)]];
    if (problem.kind === "key") actions.unshift(["Enter the key", this.onKey]);
    answer.fail(problem, actions);
    if (problem.kind === "key") this.onKey();
  }

  drawn(turn) {
    if (turn === this.turns.at(-1)) this.plot.show(turn.answers);
    this.follow();
  }

  /** Keep the end of what is being written in sight, until somebody scrolls; on a phone that of the guided side. */
  follow() {
    if (!this.following || this.popover.open) return;
    const guided = this.stacked();
    if (!guided) this.log.scrollTop = this.log.scrollHeight;
    else if (guided.busy) {
      const below = guided.element.getBoundingClientRect().bottom - this.log.getBoundingClientRect().bottom;
      this.log.scrollTop += below + 24;
    }
    this.reached = this.log.scrollTop;
  }

  /** Return the last guided answer if the base's stands below it. */
  stacked() {
    const { guided, base } = this.turns.at(-1)?.answers ?? {};
    if (!guided || !base) return null;
    return base.element.getBoundingClientRect().top >= guided.element.getBoundingClientRect().bottom ? guided : null;
  }

  /** Stop everything that is being written. */
  stop() {
    for (const generation of this.running) generation.stop();
  }

  /** Take the last turn back. */
  drop() {
    this.stop();
    this.popover.hide();
    const turn = this.turns.pop();
    turn.element.remove();
    this.refreshTools();
    this.plot.show(this.turns.at(-1)?.answers ?? {});
    this.onState();
    return turn.prompt;
  }

  /** Ask the last question again; without a fixed seed, with another one. */
  again() {
    this.send(this.drop());
  }

  /** Put the last question back where it can be changed. */
  edit() {
    this.onEdit(this.drop());
  }

  /** Begin anew. */
  clear() {
    while (this.turns.length) this.drop();
  }
}
