"""A tiny base with one conditioned guide on disk, and the same guide as a float64 PEFT model for the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import guides
from conditioned import DESCRIPTIONS, adapted, config_of
from trimtab.decoding.oracle import OracleGuide, greedy
from trimtab.engine import Engine, load
from trimtab.models import Base, encode_prompt, load_base
from trimtab.rewards import Objective, save_guide
from trimtab.rewards.conditioned import preference

OBJECTIVES = tuple(DESCRIPTIONS)


class At:
    """A conditioned PEFT model at one preference, as the oracle calls a model."""

    def __init__(self, model: Any, alpha: list[float]) -> None:
        self.model, self.alpha, self.device = model, torch.tensor(alpha, dtype=torch.float64), "cpu"

    def __call__(self, **inputs: Any) -> Any:
        with preference(self.model, self.alpha):
            return self.model(**inputs)


def save_conditioned(base: Base, folder: Path, method: str, *, kind: Any = "arm", **options: Any) -> Any:
    """Save a random conditioned guide for ``base``; return its model."""
    model = adapted(base.model, config_of(method, base.tokenizer, **options))
    names = model.peft_config["default"].objectives
    described = tuple(Objective(name=name, description=DESCRIPTIONS[name]) for name in names)
    adapter = method.partition("-")[0]
    save_guide(folder, model, guides.manifest(base, adapter=adapter, objectives=described, kind=kind))
    return model


def alpha_of(weights: dict[str, float]) -> list[float]:
    """α over the three objectives, by hand."""
    total = sum(weights.values())
    return [weights.get(name, 0.0) / total for name in OBJECTIVES]


@dataclass
class Blend:
    base: Base
    folder: Path
    model: Any  # float64, PEFT
    plain: Any  # float64, the base alone
    engine: Engine

    def ids(self, prompt: Any) -> list[int]:
        return encode_prompt(self.base.tokenizer, prompt, chat_template=None)

    def guide(self, prompt: Any, weights: dict[str, float], strength: float = 1.0) -> OracleGuide:
        """The oracle's guide for weights by objective: w their sum, α the mixture."""
        return OracleGuide(At(self.model, alpha_of(weights)), self.ids(prompt), strength * sum(weights.values()))

    def greedy(self, prompt: Any, weights: dict[str, float], max_tokens: int, **options: Any) -> list[int]:
        guide = self.guide(prompt, weights, **options)
        return greedy(self.plain, self.ids(prompt), [guide], max_tokens=max_tokens, stop_ids=frozenset({2}))


def make_blend(base_folder: Path, root: Path, method: str) -> Blend:
    base = load_base(str(base_folder), dtype="float32")
    model = save_conditioned(base, root / "uni", method)
    plain = load_base(str(base_folder), dtype="float32").model.double()
    return Blend(base, root / "uni", model.double(), plain, load(base, [root / "uni"]))
