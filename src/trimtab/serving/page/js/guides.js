/**
 * What the server can steer towards, and how the page's settings say it.
 *
 * A plain guide has one weight. A conditioned guide has a weight and a mixture: one share an objective, summing to one.
 * The API takes both as weights by name; a conditioned guide's objective gets weight × share.
 */

/**
 * @typedef {{name: string, description?: string, direction?: string}} Objective
 * @typedef {{name: string, objectives: Objective[], recommended_weight: number, conditioned: boolean,
 *   weight_range?: [number, number]}} Guide
 * @typedef {{base: string, model: string, guides: Guide[], presets: Record<string, Guidance>, default?: Guidance|null, limits: object}} Info
 * @typedef {{weights: Record<string, number>, strength: number}} Guidance
 * @typedef {{weight: number, shares: Record<string, number>}} Pull
 */

/** Return the guides that have an objective of this name. */
const having = (info, objective) => info.guides.filter((g) => g.objectives.some((o) => o.name === objective));

/** Return the name under which the API weighs an objective of a conditioned guide. */
function weightName(info, guide, objective) {
  const clash = having(info, objective).length > 1 || info.guides.some((g) => g.name === objective);
  return clash ? `${guide.name}/${objective}` : objective;
}

/** Return the pulls of guidance without weights: recommended weights, even mixtures. */
function recommended(info) {
  return Object.fromEntries(
    info.guides.map((guide) => [guide.name, { weight: guide.recommended_weight, shares: evenShares(guide) }]),
  );
}

/** Return the pulls and the strength that the server applies when a request says nothing. */
export function initial(info) {
  const { pulls, strength } = fromGuidance(info, info.default ?? {});
  return { pulls, strength };
}

/** Return an even mixture; none for a guide that takes no preference. */
export function evenShares(guide) {
  if (!guide.conditioned) return {};
  return Object.fromEntries(guide.objectives.map((o) => [o.name, 1 / guide.objectives.length]));
}

/** Return the guidance object that says what the pulls and the strength mean. */
export function toGuidance(info, pulls, strength) {
  const weights = {};
  for (const guide of info.guides) {
    const { weight, shares } = pulls[guide.name];
    if (!guide.conditioned) weights[guide.name] = weight;
    else for (const [name, share] of Object.entries(shares)) weights[weightName(info, guide, name)] = tidy(weight * share);
  }
  return { weights, strength };
}

/** Return the pulls that a guidance object means; names that no guide has are listed in `unknown`. */
export function fromGuidance(info, guidance) {
  const pulls = recommended(info);
  const unknown = [];
  const named = Object.entries(guidance.weights ?? {});
  if (named.length) for (const guide of info.guides) pulls[guide.name] = { weight: 0, shares: evenShares(guide) };
  const asked = new Map();
  for (const [name, weight] of named) {
    const [guide, objective] = find(info, name);
    if (!guide) unknown.push(name);
    else if (!guide.conditioned || objective === null) pulls[guide.name].weight = weight;
    else asked.set(guide, { ...asked.get(guide), [objective]: weight });
  }
  for (const [guide, weights] of asked) {
    const total = Object.values(weights).reduce((sum, value) => sum + value, 0);
    if (total <= 0) continue;
    const shares = Object.fromEntries(guide.objectives.map((o) => [o.name, (weights[o.name] ?? 0) / total]));
    pulls[guide.name] = { weight: tidy(total), shares };
  }
  return { pulls, strength: guidance.strength ?? 1, unknown };
}

function find(info, name) {
  const byName = info.guides.find((g) => g.name === name);
  if (byName) return [byName, null];
  const [first, ...more] = having(info, name);
  if (first && !more.length) return [first, name];
  for (const guide of info.guides) {
    const objective = name.startsWith(`${guide.name}/`) ? name.slice(guide.name.length + 1) : null;
    if (objective !== null && guide.objectives.some((o) => o.name === objective)) return [guide, objective];
  }
  return [null, null];
}

/** Return a mixture in which one share is set and the others keep their proportions. */
export function withShare(shares, name, value) {
  const others = Object.keys(shares).filter((other) => other !== name);
  const rest = others.reduce((sum, other) => sum + shares[other], 0);
  const result = { ...shares, [name]: value };
  for (const other of others) result[other] = (1 - value) * (rest > 0 ? shares[other] / rest : 1 / others.length);
  return result;
}

/** Whether two guidance objects say the same, up to rounding. */
export function sameGuidance(a, b) {
  const names = new Set([...Object.keys(a.weights), ...Object.keys(b.weights)]);
  const near = (x, y) => Math.abs((x ?? 0) - (y ?? 0)) < 5e-4;
  return near(a.strength, b.strength) && [...names].every((name) => near(a.weights[name], b.weights[name]));
}

/** Say in words how one guidance differs from another. */
export function difference(before, after) {
  const write = (x) => tidy(x ?? 0).toFixed(2).replace(/\.?0+$/, "").replace("-", "−");
  const parts = [];
  if (write(before.strength) !== write(after.strength)) parts.push(`strength ${write(after.strength)}`);
  for (const name of Object.keys(after.weights)) {
    if (write(before.weights[name]) !== write(after.weights[name])) parts.push(`${name} ${write(after.weights[name])}`);
  }
  return parts.join(", ");
}

/**
 * List what a token can be measured by: each objective, or the guide where it rewards several as one.
 * @returns {{id: string, label: string, value: (token: object) => number|null}[]}
 */
export function measures(info) {
  const found = [];
  for (const guide of info.guides) {
    const alone = guide.conditioned || guide.objectives.length === 1;
    for (const objective of alone ? guide.objectives : [null]) {
      const name = objective?.name ?? guide.name;
      const key = objective && having(info, name).length > 1 ? `${guide.name}/${name}` : name;
      const value = (token) => token.objectives?.[key]?.log_ratio ?? (guide.conditioned ? null : ratio(token, guide));
      found.push({ id: key, label: key, value });
    }
  }
  return found;
}

/**
 * Return Σ w·(log π_r − log π_b), of a policy w·(log π − log π_ref): what the guides add to a token's logit beyond the
 * base's own view, nats.
 */
export function weightedSum(token, weights, guides) {
  let sum = 0;
  for (const [name, weight] of Object.entries(weights)) {
    const value = ratio(token, guides.find((guide) => guide.name === name) ?? { name });
    if (value === null) return null;
    sum += weight * value;
  }
  return sum;
}

function ratio(token, guide) {
  const own = token.guides?.[guide.name];
  if (guide.kind === "policy") return typeof own === "number" ? own : null; // its score is a log-ratio already
  return typeof own === "number" && typeof token.base_logprob === "number" ? own - token.base_logprob : null;
}

/** Return the weight of each guide as it is applied, strength included. */
export function appliedWeights(pulls, strength) {
  return Object.fromEntries(Object.entries(pulls).map(([name, pull]) => [name, pull.weight * strength]));
}

const tidy = (value) => Number(value.toFixed(4));
