/** Talks to the server this page came from, and to no other. Its errors say what to do. */

import { apiKey } from "./settings.js";

/** Return the address of a route of the API; the page may be served below any path. */
export const address = (path) => new URL(`v1/${path}`, document.baseURI).href;

/** What went wrong, in words. `kind` is key, busy, network, cut or refused. */
export class Problem extends Error {
  constructor(kind, message, { retryAfter = null, param = null } = {}) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
    this.param = param;
  }
}

async function call(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  const key = apiKey.get();
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("network", "The server cannot be reached. Check that it runs and that you are connected, then try again.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy may answer with something else than JSON: the status says enough.
  }
  const message = typeof error.message === "string" ? error.message : "";
  const wait = Number(response.headers.get("retry-after"));
  const retryAfter = Number.isFinite(wait) && wait > 0 ? wait : null;
  const { status } = response;
  if (status === 401) {
    const given = apiKey.get() ? "The server does not accept this API key." : "This server needs an API key.";
    return new Problem("key", `${given} Enter it in the settings; it stays in this tab.`);
  }
  if (status === 429) {
    return new Problem("busy", `The server is busy. ${retryAfter ? `Try again in ${retryAfter} s.` : "Try again in a moment."}`, { retryAfter });
  }
  if (status === 503) {
    return new Problem("busy", `The server is not ready or is shutting down. ${message}`.trim(), { retryAfter: retryAfter ?? 5 });
  }
  if (status === 504) return new Problem("refused", "The answer took longer than the server allows. Ask for fewer tokens.");
  const words = message || `The server answered with status ${status}.`;
  return new Problem("refused", words, { param: error.param ?? null });
}

/** Ask what the server can steer towards. */
export async function guides() {
  return (await call("guides")).json();
}

/** Change the guidance of an answer that is being written. */
export async function change(id, guidance) {
  return (await call(`generations/${encodeURIComponent(id)}/guidance`, { method: "POST", body: guidance })).json();
}

/** End an answer that is being written. */
export async function stop(id) {
  await call(`generations/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/**
 * Ask for an answer and yield its chunks as they arrive.
 * @param {object} body a chat request
 * @param {AbortSignal} signal gives it up
 */
export async function* chat(body, signal) {
  const response = await call("chat/completions", { method: "POST", body, signal });
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem("cut", `The server gave up the answer: ${chunk.error.message}`);
      if (chunk.choices?.[0]?.finish_reason) finished = true;
      yield chunk;
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem("cut", "The connection broke off: the server may have restarted. What was written is kept; try again.");
  }
  if (!finished) throw new Problem("cut", "The answer broke off before its end: the server may have restarted. Try again.");
}

/** Yield the data of each server-sent event of a body. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
