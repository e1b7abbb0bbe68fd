"""Held-out ranking before and after training, each objective at the preference that asks for it alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from trimtab.rewards.conditioned import condition_input, preference
from trimtab.rewards.encoding import EncodedPair
from trimtab.rewards.labelled import LabelledPair
from trimtab.rewards.ranking import RankReport, rank, score_margins
from trimtab.training.config import TrainConfig
from trimtab.training.drawing import fixed_preferences


def reading_at(model: Any, alpha: Sequence[float], config: TrainConfig) -> AbstractContextManager[None]:
    """Return a context in which the model reads under ``alpha``; nothing changes where it takes no preference."""
    if not config.conditioned:
        return nullcontext()
    return preference(model, condition_input(model.active_peft_config, torch.tensor(alpha), config.weight))


class HeldOut:
    """The held-out pairs of a run and how well the model ranked them before it was trained.

    Guides trained for decoding are ranked by the reward that decoding with the recommended weight acts on; ``base`` is
    the frozen copy of a model that is trained as a whole.
    """

    def __init__(
        self, pairs: Sequence[LabelledPair], objectives: Sequence[str], config: TrainConfig, base: Any | None = None
    ) -> None:
        self._base = base
        self._pairs = pairs
        self._objectives = objectives
        self._config = config
        self._untrained: list[float] = []

    @property
    def _scoring(self) -> dict[str, Any]:
        config = self._config
        decoded = config.loss == "decode-aware"
        return {
            "max_length": config.max_length,
            "batch_size": config.per_device_eval_batch_size,
            "guided_by": config.weight if decoded else None,
            "base": self._base,
        }

    @property
    def _scoring_trained(self) -> dict[str, Any]:
        return {**self._scoring, "against_base": self._config.method == "dpo"}

    def before(self, model: Any) -> None:
        """Score the pairs with the untrained model, which is the base whatever the preference."""
        if self._pairs:
            with reading_at(model, fixed_preferences(len(self._objectives))[-1], self._config):
                self._untrained = score_margins(
                    model,
                    [item.pair for item in self._pairs],
                    **self._scoring,
                )

    def after(self, model: Any) -> dict[str, RankReport]:
        """Return each objective's report; none without held-out pairs."""
        return {name: self._report(model, i) for i, name in enumerate(self._objectives)} if self._pairs else {}

    def _report(self, model: Any, i: int) -> RankReport:
        name, config = self._objectives[i], self._config
        pairs, untrained = oriented(self._pairs, self._untrained, i)
        with reading_at(model, fixed_preferences(len(self._objectives))[i], config):
            return rank(
                model,
                pairs,
                objective=name,
                beta=config.betas.get(name, config.beta),
                untrained_margins=untrained,
                **self._scoring_trained,
            )


def oriented(
    pairs: Sequence[LabelledPair], margins: Sequence[float], i: int
) -> tuple[list[EncodedPair], list[float]]:  # fmt: skip
    """Return the pairs that objective i decides, the answer it prefers first, and their margins turned likewise."""
    chosen: list[EncodedPair] = []
    turned: list[float] = []
    for item, margin in zip(pairs, margins, strict=True):
        strength = item.strengths[i]
        if strength > 0:
            chosen.append(item.pair)
            turned.append(margin)
        elif strength < 0:
            chosen.append(swapped(item.pair))
            turned.append(-margin)
    return chosen, turned


def swapped(pair: EncodedPair) -> EncodedPair:
    """Return the pair with its answers in the other order."""
    return replace(pair, a_ids=pair.b_ids, b_ids=pair.a_ids, a_truncated=pair.b_truncated, b_truncated=pair.a_truncated)
