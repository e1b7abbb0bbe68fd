/** One answer being written: reads its stream, passes on changes of guidance, and stops it. */

import * as api from "./api.js";
import { sameGuidance } from "./guides.js";

const PAUSE = 60; // ms between two changes of guidance; the last one always arrives
const PATIENCE = 1500; // ms that the server gets to end an answer before the connection is cut

/** Reads one stream into an answer. */
export class Generation {
  /**
   * @param {import("./answer.js").Answer} answer
   * @param {object} body the request
   */
  constructor(answer, body) {
    Object.assign(this, { answer, body });
    this.controller = new AbortController();
    this.guidance = body.guidance && { weights: body.guidance.weights, strength: body.guidance.strength };
    this.wanted = null;
    this.sending = false;
    this.stopped = false;
    this.over = false;
    this.usage = null;
  }

  /** Read to the end. Rejects with a `Problem`; stopping is none. */
  async run() {
    this.begun = performance.now();
    let reason = null;
    try {
      for await (const chunk of api.chat(this.body, this.controller.signal)) {
        if (!this.id) this.meet(chunk);
        this.usage = chunk.usage ?? this.usage;
        const choice = chunk.choices?.[0];
        if (!choice) continue;
        const tokens = choice.guidance?.tokens ?? [];
        const said = choice.delta?.content ? 1 : 0; // where the server counts no tokens, a chunk stands for one
        const count = tokens.length || (choice.logprobs?.content?.length ?? said);
        if (count) this.first ??= performance.now();
        this.answer.add(choice.delta?.content ?? "", tokens, count);
        reason = choice.finish_reason ?? reason;
      }
    } catch (error) {
      if (!this.stopped) throw error;
    } finally {
      this.over = true;
      clearTimeout(this.timer);
      this.answer.finish(this.verdict(reason));
    }
  }

  meet(chunk) {
    this.id = chunk.id;
    if (this.answer.side === "guided" && chunk.guidance?.weights) this.steer(0, chunk.guidance.weights);
    if (this.wanted) this.later();
  }

  /** Pass on which weights are applied from a token on. */
  steer(from, weights) {
    this.answer.steer(from, weights);
    this.steered?.(from, weights);
  }

  verdict(reason) {
    const count = this.usage?.completion_tokens ?? this.answer.count;
    const seconds = (performance.now() - (this.first ?? performance.now())) / 1000;
    const parts = [`${count} ${count === 1 ? "token" : "tokens"}`];
    if (seconds > 0.05 && count > 1) parts.push(`${((count - 1) / seconds).toFixed(count / seconds < 10 ? 1 : 0)} a second`);
    if (this.body.seed !== undefined) parts.push(`seed ${this.body.seed}`);
    if (this.stopped) parts.push("stopped");
    else if (reason === "length") parts.push("ended by the limit of tokens");
    else if (reason === "abort") parts.push("ended by the server");
    else if (reason === null) parts.push("broken off");
    return parts.join(" · ");
  }

  /** Let the answer go on with other guidance from the next token on. */
  change(guidance) {
    if (this.over || !this.guidance) return;
    this.wanted = guidance;
    this.later();
  }

  later() {
    // Before the first chunk nobody knows the answer's id; one request at a time keeps them in order.
    if (!this.id || this.sending || this.timer !== undefined || this.over) return;
    this.timer = setTimeout(() => {
      this.timer = undefined;
      this.send();
    }, PAUSE);
  }

  async send() {
    const { wanted, guidance: before } = this;
    this.wanted = null;
    if (!wanted || sameGuidance(wanted, before)) return;
    this.sending = true;
    try {
      const { from_token: from, guidance: applied } = await api.change(this.id, wanted);
      this.guidance = wanted;
      this.steer(from, applied.weights);
      this.answer.mark(from, before, wanted);
    } catch (problem) {
      // An answer that has just ended cannot be changed any more, which needs no words.
      if (!this.over && problem.param !== undefined) this.refused?.(problem);
    } finally {
      this.sending = false;
      if (this.wanted) this.later();
    }
  }

  /** Stop: the server ends the answer and frees its place, and says so on the stream. */
  stop() {
    if (this.over || this.stopped) return;
    this.stopped = true;
    if (!this.id) {
      this.controller.abort();
      return;
    }
    api.stop(this.id).catch(() => this.controller.abort());
    setTimeout(() => this.controller.abort(), PATIENCE);
  }
}
