"""Held-out pairs under mixed preferences: does the guide at α prefer the answer that α prefers?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from objectives.plan import DataSet, Method, named
from trimtab.preferences import Comparison
from trimtab.rewards.mixed import mixed_label
from trimtab.rewards.ranking import LENGTH_TOLERANCE

RESAMPLES = 2000


def mixed_signs(rows: Sequence[Comparison], objectives: Sequence[str], alphas: np.ndarray) -> np.ndarray:
    """Return sgn(Σ_i α_i Δ_i) of each α and pair, (G, N): 1 where answer a is preferred, 0 at ties."""
    labels = [[mixed_label(row.labels, named(objectives, alpha)) for row in rows] for alpha in alphas]
    return np.array([[0 if label is None else int(label) for label in line] for line in labels], dtype=np.float64)


def margins(
    data: DataSet,
    method: Method,
    folders: Mapping[str, Path],
    rows: Sequence[Comparison],
    alphas: np.ndarray,
    options: Any,
    work: Path,
) -> np.ndarray:
    """Return log π_r(a|x, α) − log π_r(b|x, α) of each α and pair, (G, N), nats.

    Several guides: the sum of their margins weighted by α. Decode-aware guides: of the reward that decoding acts on.
    Aligned models: of the implicit reward, log π/π_ref, which is theirs less the base's, as their weights sum to 1.
    """
    pull = options.strength if method.decode_aware else None
    if "" in folders:
        found = _scored(data, folders[""], rows, alphas, options, work, pull)
    else:
        own = [_scored(data, folders[name], rows, None, options, work, pull)[0] for name in data.objectives]
        found = alphas @ np.stack(own)
    return found - base_margins(data, rows, options, work)[0] if method.policy else found


def _scored(
    data: DataSet,
    folder: Path,
    rows: Sequence[Comparison],
    alphas: np.ndarray | None,
    options: Any,
    work: Path,
    pull: float | None,
) -> np.ndarray:
    """Return the margins of one folder, (G, N), or (1, N) where it takes no preference; kept on disk."""
    import torch

    from trimtab.models import load_base
    from trimtab.rewards import load_guide_model
    from trimtab.rewards.conditioned import preference
    from trimtab.rewards.scoring import PairScorer, sequence_logprobs

    ids = hashlib.sha256("\n".join([*(r.id for r in rows), repr(alphas), repr(pull)]).encode()).hexdigest()[:12]
    path = work / "margins" / f"{folder.name}-{ids}.npy"
    if path.exists():
        return np.load(path)
    base = load_base(options.base)
    pairs = encoded(data, rows, base)
    model = load_guide_model(folder, base)
    extra = {"guided_by": pull} if pull is not None else {}

    def score() -> np.ndarray:
        scorer = PairScorer(model, max_length=data.max_length)
        a, b = sequence_logprobs(model, pairs, scorer=scorer, **extra)
        return (a - b).double().numpy()

    found: list[np.ndarray] = []
    for alpha in [None] if alphas is None else alphas:
        if alpha is None:
            found.append(score())
        else:
            with preference(model, torch.tensor(alpha, dtype=torch.float32)):
                found.append(score())
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.stack(found))
    return np.stack(found)


def base_margins(data: DataSet, rows: Sequence[Comparison], options: Any, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the untrained model's margins, (N,), and the answers' tokens, (N, 2); kept on disk."""
    from trimtab.models import load_base
    from trimtab.rewards.scoring import sequence_logprobs

    ids = hashlib.sha256("\n".join([*(r.id for r in rows), options.base]).encode()).hexdigest()[:12]
    path = work / "margins" / f"base-{ids}.npz"
    if not path.exists():
        base = load_base(options.base)
        pairs = encoded(data, rows, base)
        a, b = sequence_logprobs(base.model, pairs)
        path.parent.mkdir(parents=True, exist_ok=True)
        lengths = np.array([(len(p.a_ids), len(p.b_ids)) for p in pairs])
        np.savez(path, margins=(a - b).double().numpy(), lengths=lengths)
    with np.load(path, allow_pickle=False) as file:
        return file["margins"], file["lengths"]


def encoded(data: DataSet, rows: Sequence[Comparison], base: Any) -> list[Any]:
    """Return the pairs as token ids, in the order the answers are written."""
    from trimtab.rewards.encoding import PairEncoder

    encoder = PairEncoder(base.tokenizer, max_length=data.max_length, max_prompt_length=data.max_prompt_length)
    return [encoder.encode(row.prompt, row.response_a, row.response_b, id=row.id) for row in rows]


def accuracies(
    signs: np.ndarray, margin: np.ndarray, lengths: np.ndarray, prompts: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return a method's accuracy at each α and over the grid, of all pairs and of those of like length.

    Args:
        signs: (G, N), mixed labels; ties are passed over.
        margin: (S, G, N), the method's, of each run; 0 counts half.
        lengths: (N, 2), tokens of the answers.
        prompts: (N,), what the bootstrap resamples whole, beside runs.
        seed: of the bootstrap.
    """
    right = (signs * margin > 0) + 0.5 * (margin == 0)
    runs = len(right)
    judged = signs != 0
    alike = np.abs(lengths[:, 0] - lengths[:, 1]) <= LENGTH_TOLERANCE * lengths.max(axis=1)
    keys = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    owner = np.array([keys[p] for p in prompts])
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=RESAMPLES)
    shares = generator.multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES) / runs
    resampled = [
        _mean_accuracy(np.tensordot(share, right, 1), judged, draw[owner])
        for draw, share in zip(draws, shares, strict=True)
    ]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    ones, mean = np.ones(right.shape[2]), right.mean(axis=0)
    return {
        "by_alpha": [float(r[j].mean()) if j.any() else None for r, j in zip(mean, judged, strict=True)],
        "judged": [int(j.sum()) for j in judged],
        "mean": _mean_accuracy(mean, judged, ones),
        "by_run": [_mean_accuracy(r, judged, ones) for r in right],
        "interval": [float(low), float(high)],
        "matched": _mean_accuracy(mean, judged & alike, ones),
        "matched_pairs": int(alike.sum()),
    }


def _mean_accuracy(right: np.ndarray, judged: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean over the grid of each α's accuracy; an α that decides no pair is passed over."""
    counts = (judged * weights).sum(axis=1)
    hits = (right * judged * weights).sum(axis=1)
    return float((hits[counts > 0] / counts[counts > 0]).mean()) if (counts > 0).any() else float("nan")


def rank_all(
    data: DataSet,
    rows: Sequence[Comparison],
    found: Mapping[str, np.ndarray],
    alphas: np.ndarray,
    options: Any,
    work: Path,
) -> dict[str, Any]:
    """Return each method's accuracies, beside the untrained model's and length's alone (at each α its better side).

    ``found`` is method → (S, G, N), the margins of each run.
    """
    signs = mixed_signs(rows, data.objectives, alphas)
    plain, lengths = base_margins(data, rows, options, work)
    shorter = (lengths[:, 1] - lengths[:, 0]).astype(np.float64)
    prompts = [str(row.prompt) for row in rows]
    side = np.array([1.0 if (s * shorter > 0).sum() >= (s * shorter < 0).sum() else -1.0 for s in signs])
    controls = {
        "untrained": np.repeat(plain[None, None], len(alphas), axis=1),
        "length alone": (side[:, None] * shorter)[None],
    }
    return {
        name: accuracies(signs, margin, lengths, prompts, options.seed)
        for name, margin in {**controls, **found}.items()
    }
