/** The request as it is sent, and the same as curl and as Python, ready to paste. */

import { address } from "./api.js";
import { guidanceOf } from "./settings.js";

const EXAMPLE = "Write a short greeting.";

/**
 * Return the body of a chat request.
 * @param {object} info what the server has
 * @param {object} settings
 * @param {{messages: object[], side?: string, seed?: number|null}} what
 */
export function request(info, settings, { messages, side = "guided", seed = settings.seed }) {
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  const body = {
    model: side === "base" ? `${info.model}:plain` : info.model,
    messages: [...system, ...messages],
    temperature: settings.temperature,
  };
  if (settings.topP !== 1) body.top_p = settings.topP;
  if (settings.maxTokens !== null) body.max_tokens = settings.maxTokens;
  if (seed !== null) body.seed = seed;
  if (info.guides.length) {
    body.guidance = guidanceOf(info, settings);
    // The base's side keeps the weights, which say towards what its tokens are scored, and lets none of them pull.
    if (side === "base") body.guidance.strength = 0;
  }
  return body;
}

/** Return that body with what the page itself needs: a stream, and scores or at least a count of tokens. */
export function streamed(info, settings, what) {
  const body = { ...request(info, settings, what), stream: true, stream_options: { include_usage: true } };
  if (settings.scores) body.guidance = { ...body.guidance, rewards: true, top: Math.min(5, info.limits?.max_logprobs ?? 5) };
  else body.logprobs = true;
  return body;
}

const messagesOr = (messages) => (messages.length ? messages : [{ role: "user", content: EXAMPLE }]);

/** Return a shell command. The key is read from the environment, so that it is in no history. */
export function asCurl(info, settings, messages) {
  const body = JSON.stringify(request(info, settings, { messages: messagesOr(messages) }), null, 2).toWellFormed();
  return [
    `curl ${quoted(address("chat/completions"))} \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -H "Authorization: Bearer $TRIMTAB_API_KEY" \\`,
    `  --data-raw ${quoted(body)}`,
    "",
  ].join("\n");
}

/** Quote a text for a POSIX shell. */
export const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return a Python program for the openai package. */
export function asPython(info, settings, messages) {
  const { guidance, ...body } = request(info, settings, { messages: messagesOr(messages) });
  const base = address("").replace(/\/$/, "");
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  if (guidance) fields.push(`    extra_body=${literal({ guidance }, 4)},`);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(base)}, api_key=os.environ.get("TRIMTAB_API_KEY", "none"))`,
    "answer = client.chat.completions.create(",
    ...fields,
    ")",
    "print(answer.choices[0].message.content)",
    "",
  ].join("\n");
}

/** Write a JSON value as a Python literal. */
export function literal(value, indent = 0) {
  const pad = " ".repeat(indent);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return JSON.stringify(value.toWellFormed());
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const parts = Array.isArray(value)
    ? value.map((item) => literal(item, indent + 4))
    : Object.entries(value).map(([key, item]) => `${literal(key)}: ${literal(item, indent + 4)}`);
  const line = `${open}${parts.join(", ")}${close}`;
  if (line.length + indent < 100 && !line.includes("\n")) return line;
  return `${open}\n${parts.map((part) => `${pad}    ${part},\n`).join("")}${pad}${close}`;
}
