"""Where the logits of a step lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trimtab.engine.requests import Row

Place = tuple[Tensor, int]
"""Logits of a forward, and a line of them."""
Scores = Mapping[Row, list[Place]]
"""Row → where the logits of each of its last positions lie."""


def lines(places: Sequence[Place]) -> Tensor:
    """Return the lines that lie at the given places, as a view where they follow each other."""
    logits, first = places[0]
    if all(tensor is logits and line == first + i for i, (tensor, line) in enumerate(places)):
        return logits[first : first + len(places)]
    return torch.stack([tensor[line] for tensor, line in places])


def taken(log_probs: Tensor, tokens: Sequence[int]) -> list[float]:
    """Return each position's value of its token: (T, V) → T numbers."""
    index = torch.tensor(tokens, device=log_probs.device).unsqueeze(-1)
    values: list[float] = log_probs.gather(-1, index).squeeze(-1).tolist()
    return values


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the log-softmax in float32, nats: (T, V) → (T, V)."""
    return logits.to(torch.float32).log_softmax(-1)
