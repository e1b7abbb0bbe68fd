"""Answers over the grid: written once, scored by scorers that are not the guides, with KL and length beside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from objectives.guides import Pairs, cached, key_of, slug
from objectives.plan import METHODS, DataSet, named, seeds_of
from study_prompts import choose_prompts
from trimtab.engine.results import Watch
from trimtab.evaluation.scorers import ConcisenessScorer, EncoderScorer, RefusalScorer, Scorer, pair_accuracy
from trimtab.evaluation.scorers.encoder import default_encoder
from trimtab.preferences import Comparison

WATCH = Watch(base=True)


def read_prompts(data: DataSet, pairs: Pairs, options: Any) -> list[dict[str, Any]]:
    """Return the prompts to answer; of XSTest half are unsafe, and the test pairs' prompts are taken too."""
    others = [_as_prompt(row) for row in pairs.val] if data.prompt_source == "xstest" else []
    return choose_prompts((data.prompt_source,), others, options.prompts)


def _as_prompt(row: Comparison) -> dict[str, Any]:
    prompt: Any = row.prompt
    return {"id": row.id, "prompt": prompt, "prompt_is_safe": bool(row.extra["prompt_is_safe"])}


def answer_all(
    guides: dict[str, Path],
    guidances: Sequence[dict[str, float]],
    prompts: Sequence[Any],
    options: Any,
    folder: Path,
    seed: int,
) -> list[dict[str, Any]]:
    """Answer the prompts under each guidance; what is on disk already is not written again.

    Returns:
        One a guidance: texts, tokens written, and of each answer's tokens, summed, log p_guided − log π_base; where it
        was written by an engine that notes it, log π_base too.
    """
    sampling = {"temperature": options.temperature, "max_tokens": options.max_tokens, "seed": seed}
    texts = [row["prompt"] for row in prompts]
    paths = [folder / f"{key_of([Path(g).name for g in guides.values()], w, texts, sampling)}.json" for w in guidances]
    if all(path.exists() for path in paths):
        return [cached(path, dict) for path in paths]
    with trimtab.load(options.base, guides=guides) as engine:

        def write(weights: dict[str, float]) -> dict[str, Any]:
            answers = [
                answer
                for i, text in enumerate(texts)
                for answer in engine.answers(text, guidance=weights, sampling=sampling, watch=WATCH, index=i)
            ]
            _, driver = engine.parts
            for answer in answers:
                driver.add(answer, tokens=answer.limit)
            driver.drive(answers, until=all)
            results = [answer.result() for answer in answers]
            return {
                "texts": [result.text for result in results],
                "tokens": [len(result.token_ids) for result in results],
                "log_ratio": [sum(note.log_prob - note.base_log_prob for note in a.noted) for a in answers],
                "log_base": [sum(note.base_log_prob for note in a.noted) for a in answers],
            }

        return [cached(path, lambda w=w: write(w)) for path, w in zip(paths, guidances, strict=True)]


def answer_methods(
    data: DataSet, trained: dict[str, Any], control: Path, prompts: Sequence[Any], alphas: np.ndarray, options: Any, work: Path
) -> dict[str, list[list[dict[str, Any]]]]:  # fmt: skip
    """Return method → run → the answers of each α; base and untrained guide know no α, so theirs are repeated.

    A run's answers are sampled with its seed; the base and the untrained guide answer once with each seed.
    """
    folder = work / "answers"
    out: dict[str, list[list[dict[str, Any]]]] = {"base": [], "untrained": []}
    for seed in seeds_of(options, data):
        for name, pull in (("base", 0.0), ("untrained", options.strength)):
            once = answer_all({"untrained": control}, [{"untrained": pull}], prompts, options, folder / name, seed)
            out[name].append(once * len(alphas))
    for name, made in trained.items():
        print(f"{data.name}: answers of {name}", flush=True)
        pull = 1.0 if METHODS[name].policy else options.strength * METHODS[name].pull
        guidances = [named(data.objectives, pull * alpha) for alpha in alphas]
        out[name] = [
            answer_all(
                {objective or "guide": Path(path) for objective, path in run["folders"].items()},
                guidances,
                prompts,
                options,
                folder / slug(name),
                run["seed"],
            )
            for run in made["runs"]
        ]
    return out


Read = Callable[[Sequence[str], Sequence[Any]], Sequence[float]]


def unguided(base: str) -> Read:
    """Return what reads answers to prompts by the base alone: the mean log-probability of each one's tokens."""

    def read(texts: Sequence[str], asked: Sequence[Any]) -> Sequence[float]:
        from trimtab.evaluation.scorers.likelihood import FluencyScorer

        print(f"fluency of {len(texts)} answers under {base}", flush=True)
        with trimtab.load(base) as engine:
            return FluencyScorer(engine, base, is_base=True).score(texts, asked).tolist()

    return read


def fluency(
    answers: dict[str, list[list[dict[str, Any]]]], prompts: Sequence[Any], read: Read, path: Path
) -> dict[str, list[float]]:
    """Return method → mean fluency at each α over runs and prompts, nats a token; a text already read is not read again."""
    asked = [row["prompt"] for row in prompts]

    def keyed(texts: Sequence[str]) -> list[str]:
        return [key_of(prompt, text) for prompt, text in zip(asked, texts, strict=True)]

    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new: dict[str, list[Any]] = {}
    for texts in (a["texts"] for runs in answers.values() for run in runs for a in run):
        new |= {k: pair for k, *pair in zip(keyed(texts), texts, asked, strict=True) if k not in known}
    if new:
        known |= dict(zip(new, read(*zip(*new.values(), strict=True)), strict=True))
        path.write_text(json.dumps(known), encoding="utf-8")
    return {
        method: [float(np.mean([[known[k] for k in keyed(a["texts"])] for a in at])) for at in zip(*runs, strict=True)]
        for method, runs in answers.items()
    }


class CachedEncoder:
    """The sentence encoder, with its vectors kept in a file."""

    def __init__(self, path: Path, encode: Callable[[Sequence[str]], np.ndarray] | None = None) -> None:
        self.path, self._encode = path, encode
        self._known: dict[str, np.ndarray] = {}
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                self._known = dict(zip(file["keys"].tolist(), file["vectors"], strict=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return (N, D)."""
        keys = [hashlib.sha256(text.encode()).hexdigest()[:24] for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if new:
            self._encode = self._encode or default_encoder()
            self._known |= dict(zip(new, self._encode(list(new.values())).astype(np.float32), strict=True))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self.path, keys=np.array(list(self._known)), vectors=np.stack(list(self._known.values())))
        return np.stack([self._known[key] for key in keys]).astype(np.float64)


def make_scorers(data: DataSet, pairs: Pairs, work: Path) -> dict[str, tuple[Scorer, Scorer]]:
    """Return sets of one scorer an objective: the first is what the verdict rests on."""
    encode = CachedEncoder(work / "embeddings.npz")
    first, second = data.objectives
    helpful = EncoderScorer.fit(pairs.scorer, first, encode=encode)
    if data.name == "helpful_concise":
        return {"encoder and words": (helpful, ConcisenessScorer())}
    return {
        "encoder": (helpful, EncoderScorer.fit(pairs.scorer, second, encode=encode)),
        "rules": (RefusalScorer(first, wants_refusal=False), RefusalScorer(second)),
    }


def describe(scorers: Sequence[Scorer], val: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return what each scorer is, and how often it is right on all held-out pairs, and on those of like length."""
    rows: list[dict[str, Any]] = []
    for scorer in scorers:
        alike = [row for row in val if _like_length(row)]
        judged = [row for row in alike if row.oriented(scorer.about.objective)]
        rows.append(
            {
                "objective": scorer.about.objective,
                "measures": scorer.about.measures,
                "unit": scorer.about.unit,
                "accuracy": pair_accuracy(scorer, val),
                "matched": pair_accuracy(scorer, judged) if judged else None,
                "matched_pairs": len(judged),
            }
        )
    return rows


def _like_length(row: Comparison) -> bool:
    from trimtab.preferences.records import response_text

    a, b = len(response_text(row.response_a)), len(response_text(row.response_b))
    return abs(a - b) <= 0.1 * max(a, b)


def reward_cubes(
    scorers: Sequence[Scorer], answers: dict[str, list[list[dict[str, Any]]]], prompts: Sequence[Any]
) -> dict[str, np.ndarray]:
    """Return method → (S, G, P, K) of S runs, in standard deviations of the base's answers, from the base's mean.

    "harmless" is asked of unsafe prompts only: elsewhere every answer has the base's mean. The scale is fixed by the base,
    so that volumes and sums over objectives do not hang on units.
    """
    texts = [row["prompt"] for row in prompts]
    cubes = {
        name: np.array([[np.stack([s.score(a["texts"], texts) for s in scorers], axis=1) for a in run] for run in runs])
        for name, runs in answers.items()
    }
    for k, scorer in enumerate(scorers):
        asked = np.ones(len(texts), dtype=bool)
        if scorer.about.objective == "harmless":
            asked = np.array([not row.get("prompt_is_safe", True) for row in prompts])
        plain = cubes["base"][:, 0, asked, k]
        scale = float(plain.std()) or 1.0
        for cube in cubes.values():
            cube[..., k] = np.where(asked, (cube[..., k] - plain.mean()) / scale, 0.0)
    return cubes
