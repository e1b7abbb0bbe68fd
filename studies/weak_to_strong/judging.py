"""What the answers come to: rewards, gains, the share of the fine-tune's gap that is recovered, all with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trimtab
from objectives.answers import CachedEncoder
from objectives.guides import cached, key_of
from trimtab.evaluation.resampling import prompt_weights
from trimtab.evaluation.scorers import BagOfWordsScorer, EncoderScorer, Scorer, pair_accuracy
from trimtab.preferences import Comparison
from trimtab.preferences.records import response_text
from weak_to_strong.answers import SEED, Records, mean_kl
from weak_to_strong.plan import OBJECTIVE
from weak_to_strong.training import Pairs

Array = NDArray[np.float64]
RESAMPLES = 2000
LIKE_LENGTH = 0.1
PRIMARY = "words"
"""The scorer that verdicts rest on, as in the study of first guides; the other is shown beside it."""
FLUENT = "smollm2"
"""SmolLM2-135M: another family than the models of this study, and nothing guides it."""


def make_scorers(encode: CachedEncoder, pairs: Pairs) -> dict[str, Scorer]:
    """Return the scorers, fitted on pairs whose prompts no guide has seen."""
    return {
        "words": BagOfWordsScorer.fit(pairs.scorer, OBJECTIVE),
        "encoder": EncoderScorer.fit(pairs.scorer, OBJECTIVE, encode=encode),
    }


def accuracies(scorer: Scorer, val: Sequence[Comparison]) -> dict[str, Any]:
    """Return how often a scorer agrees with held-out labels, on all pairs and on those of like length in characters."""
    alike = [row for row in val if _alike(row)]
    return {
        "pairs": len(val),
        "accuracy": pair_accuracy(scorer, val),
        "alike_pairs": len(alike),
        "alike_accuracy": pair_accuracy(scorer, alike) if alike else None,
    }


def _alike(row: Comparison) -> bool:
    a, b = len(response_text(row.response_a)), len(response_text(row.response_b))
    return abs(a - b) <= LIKE_LENGTH * max(a, b)


def rewards_of(scorer: Scorer, records: Records) -> dict[str, Array]:
    """Return setting → (P,) rewards."""
    return {
        name: np.asarray(scorer.score([row["response"] for row in rows], [row["prompt"] for row in rows]))
        for name, rows in records.items()
    }


def fluency_of(options: Any, records: Records) -> dict[str, Array]:
    """Return setting → (P,) mean log-probability of the tokens under a model that nothing guides, nats a token."""
    from trimtab.evaluation.scorers.likelihood import FluencyScorer

    folder = options.work_dir / "fluency"
    keys = {name: folder / f"{key_of(FLUENT, [r['key'] for r in rows])}.json" for name, rows in records.items()}
    if not all(path.exists() for path in keys.values()):
        with trimtab.load(FLUENT) as engine:
            scorer = FluencyScorer(engine, FLUENT)
            for name, rows in records.items():
                texts, asked = [r["response"] for r in rows], [r["prompt"] for r in rows]
                cached(keys[name], lambda texts=texts, asked=asked: scorer.score(texts, asked).tolist())
    return {name: np.array(cached(path, list)) for name, path in keys.items()}


def content_of(encode: CachedEncoder, pairs: Pairs, records: Records) -> dict[str, Array]:
    """Return setting → (P,) mean cosine, under the sentence encoder, of an answer with the pair's two reference answers.

    The two say the same in other tones, so what they share is the content; a polite answer that says nothing is far from
    both. An empty answer counts 0.
    """
    references = {row.id: [response_text(row.response_a), response_text(row.response_b)] for row in pairs.val}

    def unit(texts: Sequence[str]) -> Array:
        vectors = encode(texts)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)

    found: dict[str, Array] = {}
    for name, rows in records.items():
        own = unit([row["response"] for row in rows])
        other = unit([text for row in rows for text in references[row["id"]]]).reshape(len(rows), 2, -1)
        cosine = np.einsum("pd,pkd->p", own, other) / 2
        found[name] = np.where([bool(row["response"].strip()) for row in rows], cosine, 0.0)
    return found


def interval(values: Array, draws: Array) -> dict[str, float]:
    """Return a mean over prompts with the 2.5th and 97.5th percentile over resampled prompts."""
    low, high = np.percentile(draws @ values, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def recovered(way: Array, base: Array, ceiling: Array, draws: Array) -> dict[str, float]:
    """Return (way − base) / (ceiling − base) of mean rewards, all (P,), with its bootstrap interval over prompts."""
    shares = np.concatenate([np.full((1, len(base)), 1 / len(base)), draws])
    with np.errstate(all="ignore"):  # a ceiling that does not gain leaves no share to speak of
        return _summary((shares @ (way - base)) / (shares @ (ceiling - base)))


def _summary(values: Array) -> dict[str, float]:
    """Return the first value, which is of all prompts, with percentiles of the resampled rest; NaN is left out."""
    rest = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(rest, [2.5, 97.5]) if len(rest) else (values[0], values[0])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def at_equal_kl(
    ways: Sequence[tuple[Array, Array]], ceilings: Sequence[tuple[Array, Array]], level: float, draws: Array
) -> dict[str, Any]:
    """Return rewards over the base at one KL, and the share recovered there.

    Args:
        ways: (KL, reward) of each strength, (P,) each, the base of KL 0 first; the curve between them is straight.
        ceilings: the same of the fine-tuned model.
        level: nats a token.
        draws: (R, P).
    """
    shares = np.concatenate([np.full((1, draws.shape[1]), 1 / draws.shape[1]), draws])
    base = shares @ ways[0][1]
    over = [_along(points, level, shares) - base for points in (ways, ceilings)]
    with np.errstate(all="ignore"):
        share = _summary(over[0] / over[1])
    return {"level": level, "way": _summary(over[0]), "ceiling": _summary(over[1]), "share": share}


def _along(curve: Sequence[tuple[Array, Array]], level: float, shares: Array) -> Array:
    """Return (R,): the reward at a KL on each resampled curve; NaN beyond its ends."""
    kl = np.stack([shares @ point for point, _ in curve], axis=1)
    reward = np.stack([shares @ value for _, value in curve], axis=1)
    found = np.full(len(shares), np.nan)
    for i in range(len(shares)):
        order = np.argsort(kl[i], kind="stable")
        found[i] = np.interp(level, kl[i][order], reward[i][order], left=np.nan, right=np.nan)
    return found


def judge(options: Any, pairs: Pairs, records: Records) -> dict[str, Any]:
    """Return every number that is computed from the answers."""
    encode = CachedEncoder(options.work_dir / "embeddings.npz")
    scorers = make_scorers(encode, pairs)
    fluency, content = fluency_of(options, records), content_of(encode, pairs, records)
    prompts = len(records["base"])
    draws = prompt_weights(prompts, RESAMPLES, SEED)
    found: dict[str, Any] = {"scorers": {}, "settings": {}, "gaps": {}, "equal_kl": {}}
    found["content_against"] = {
        ceiling: interval(content["0.5B ARM, w = 1"] - content[f"{ceiling}, w = 1"], draws)
        for ceiling in CEILINGS
        if f"{ceiling}, w = 1" in content
    }
    for name, scorer in scorers.items():
        rewards = rewards_of(scorer, records)
        found["scorers"][name] = {"measures": scorer.about.measures, **accuracies(scorer, pairs.val)}
        for setting, values in rewards.items():
            row = found["settings"].setdefault(setting, _beside(records[setting], fluency[setting], draws))
            row["content"] = interval(content[setting], draws)
            row["reward"][name] = interval(values, draws)
            row["gain"][name] = interval(values - rewards["base"], draws)
        found["gaps"][name] = gaps(records, rewards, draws)
        found["equal_kl"][name] = equal_kl(records, rewards, draws)
        found.setdefault("over_controls", {})[name] = over_controls(options, records, rewards, draws)
    return found


def _beside(rows: Sequence[dict[str, Any]], fluency: Array, draws: Array) -> dict[str, Any]:
    return {
        "family": rows[0]["family"],
        "strength": rows[0]["strength"],
        "temperature": rows[0]["temperature"],
        "kl": mean_kl(rows),
        "fluency": interval(fluency, draws),
        "tokens": float(np.mean([r["tokens"] for r in rows])),
        "words": float(np.mean([len(r["response"].split()) for r in rows])),
        "stopped": float(np.mean([r["finish_reason"] == "stop" for r in rows])),
        "reward": {},
        "gain": {},
    }


CEILINGS = ("1.5B DPO", "1.5B ARM")
WEAK = ("0.5B ARM", "0.5B DPO, proxy")


def gaps(records: Records, rewards: Mapping[str, Array], draws: Array) -> dict[str, Any]:
    """Return ceiling → setting of a weak guide → the share of the gap it recovers."""
    out: dict[str, Any] = {}
    for ceiling in CEILINGS:
        top = rewards.get(f"{ceiling}, w = 1")
        if top is None:
            continue
        out[ceiling] = {
            name: recovered(values, rewards["base"], top, draws)
            for name, values in rewards.items()
            if records[name][0]["family"].startswith(WEAK)
        }
        for family in WEAK:
            seeds = [v for n, v in rewards.items() if n in (f"{family}, w = 1",) or n.startswith(f"{family}, seed")]
            if len(seeds) > 1:
                mean = np.mean(seeds, axis=0)
                out[ceiling][f"{family}, w = 1, mean of {len(seeds)} seeds"] = recovered(
                    mean, rewards["base"], top, draws
                )
    return out


def curve(records: Records, rewards: Mapping[str, Array], family: str) -> list[tuple[Array, Array]]:
    """Return (KL, reward), (P,) each, of the base and then of each strength (or temperature) of a family."""
    names = [name for name, rows in records.items() if rows[0]["family"] == family]
    kl = {n: np.array([row["diagnostics"]["kl"] for row in records[n]]) for n in ("base", *names)}
    return [(kl[n], rewards[n]) for n in ("base", *names)]


def equal_kl(records: Records, rewards: Mapping[str, Array], draws: Array) -> dict[str, Any]:
    """Return ceiling → family → rewards at the greatest KL that both reach, the ceiling's at w = 1 at most."""
    out: dict[str, Any] = {}
    for ceiling in CEILINGS:
        if f"{ceiling}, w = 1" not in records:
            continue
        tops = curve(records, rewards, ceiling)
        own = float(np.mean([row["diagnostics"]["kl"] for row in records[f"{ceiling}, w = 1"]]))
        out[ceiling] = {}
        for family in (*WEAK, "0.5B untrained", "base temperature"):
            points = curve(records, rewards, family)
            if len(points) > 1:
                # A little inside the end, so that most resampled curves reach it too.
                reach = 0.9 * max(float(kl.mean()) for kl, _ in points)
                out[ceiling][family] = at_equal_kl(points, tops, min(own, reach), draws)
    return out


def over_controls(options: Any, records: Records, rewards: Mapping[str, Array], draws: Array) -> dict[str, Any]:
    """Return setting of a weak guide → difference to the base, the untrained guide, and the base at equal KL."""
    sharper = curve(records, rewards, "base temperature")
    shares = np.concatenate([np.full((1, draws.shape[1]), 1 / draws.shape[1]), draws])
    out: dict[str, Any] = {}
    for family in WEAK:
        for w in options.strengths:
            name = f"{family}, w = {w:g}"
            if name not in rewards:
                continue
            own = float(np.mean([row["diagnostics"]["kl"] for row in records[name]]))
            reach = max(float(kl.mean()) for kl, _ in sharper)
            reference = _along(sharper, min(own, 0.9 * reach), shares)
            out[name] = {
                "base": interval(rewards[name] - rewards["base"], draws),
                "untrained": interval(rewards[name] - rewards[f"0.5B untrained, w = {w:g}"], draws),
                "equal_kl": _summary(shares @ rewards[name] - reference),
                "kl": own,
                "kl_of_control": min(own, 0.9 * reach),
            }
    return out
