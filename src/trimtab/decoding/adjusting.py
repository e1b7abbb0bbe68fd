"""What one answer's own tokens and options make of z' before temperature: penalties, biases, no end too early.

In this order, each once and on the combined logits: repetition penalty (on tokens of the base's prompt and of the
answer), presence and frequency penalty (on tokens of the answer), logit bias, and -inf for every token that would end
an answer that has fewer than ``min_tokens``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trimtab.decoding.config import Sampling

_NEGATIVE_INFINITY = float("-inf")


def penalise_repetition(z: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Make tokens that were seen less likely (Keskar et al., arXiv 1909.05858, as transformers applies it).

    The penalty acts on z' as combined from raw logits, so at strength 0 it is what ``generate`` does to the base;
    under guidance z' is about 1 + Σw times as large and the penalty grows with it.

    Args:
        z: (B, V) combined logits.
        seen: (B, V) bool, the tokens of the base's prompt and of the answer so far.
        penalty: > 1 discourages, < 1 encourages, 1 does nothing; one number, or (B, 1).
    """
    return torch.where(seen, torch.where(z < 0, z * penalty, z / penalty), z)


class Adjustments:
    """What is done to one answer's combined logits, with what that depends on of its tokens.

    Args:
        sampling: the answer's options.
        vocabulary_size: V.
        prompt: ids of the base's prompt.
        ends: ids that end an answer.
        device: where the logits are.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary_size: int,
        *,
        prompt: Sequence[int] = (),
        ends: Iterable[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        self._written = 0
        self._ends = sorted({*ends, *sampling.stop_token_ids}) if sampling.min_tokens else []
        self.seen: Tensor | None = None
        self.shift: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)
            self.seen[torch.tensor(prompt, dtype=torch.long, device=device)] = True
        if sampling.presence_penalty or sampling.frequency_penalty or sampling.logit_bias:
            self.shift = torch.zeros(vocabulary_size, device=device)
            for token, bias in sampling.logit_bias.items():
                self.shift[token] = bias

    @staticmethod
    def wanted(sampling: Sampling) -> bool:
        """Return whether any option needs them; most answers go without."""
        s = sampling
        return bool(
            s.repetition_penalty != 1 or s.presence_penalty or s.frequency_penalty or s.logit_bias or s.min_tokens
        )

    @property
    def penalty(self) -> float:
        """The repetition penalty."""
        return self._sampling.repetition_penalty

    def add(self, token: int) -> None:
        """Note a token that was written."""
        self._counts[token] += 1
        self._written += 1
        if self.seen is not None:
            self.seen[token] = True
        if self.shift is not None:
            self.shift[token] = self._shift(token, self._counts[token])

    def seen_after(self, drafted: Sequence[int]) -> Tensor:
        """Return (V,) bool, the tokens of prompt and answer and those drafted."""
        seen = self.seen if self.seen is not None else torch.empty(0)
        return seen.index_fill(0, torch.tensor(drafted, device=seen.device), True) if drafted else seen

    def shift_after(self, drafted: Sequence[int]) -> Tensor:
        """Return (V,) what is added to the logits when some more tokens have been drafted."""
        shift = self.shift if self.shift is not None else torch.empty(0)
        if not drafted:
            return shift
        more = {token: self._shift(token, self._counts[token] + k) for token, k in Counter(drafted).items()}
        index = torch.tensor(list(more), device=shift.device)
        return shift.index_copy(0, index, torch.tensor(list(more.values()), device=shift.device))

    def forbidden(self, drafted: int) -> Sequence[int]:
        """Return the tokens that must not come next when so many have been drafted."""
        return self._ends if self._written + drafted < self._sampling.min_tokens else ()

    def _shift(self, token: int, count: int) -> float:
        s = self._sampling
        bias = s.logit_bias.get(token, 0.0)
        return bias - (s.presence_penalty + s.frequency_penalty * count if count else 0.0)


Position = tuple[Adjustments | None, Sequence[int]]
"""Of one line of logits: what is done to it, and the tokens that have been drafted before it."""


def adjusted(z: Tensor, positions: Sequence[Position]) -> Tensor:
    """Return logits after penalties, biases and bans: (N, V) → (N, V), a copy unless nothing is to be done.

    Args:
        z: (N, V) combined logits.
        positions: N of them; ``None`` leaves a line as it is.
    """
    todo = [(n, its, drafted) for n, (its, drafted) in enumerate(positions) if its is not None]
    penalised = [(n, its, drafted) for n, its, drafted in todo if its.seen is not None]
    shifted = [(n, its, drafted) for n, its, drafted in todo if its.shift is not None]
    bans = [(n, token) for n, its, drafted in todo for token in its.forbidden(len(drafted))]
    if penalised or shifted or bans:
        z = z.clone()
    if penalised:
        rows = torch.tensor([n for n, _, _ in penalised], device=z.device)
        seen = torch.stack([its.seen_after(drafted) for _, its, drafted in penalised])
        penalties = torch.tensor([[its.penalty] for _, its, _ in penalised], device=z.device)
        z[rows] = penalise_repetition(z[rows], seen, penalties)
    if shifted:
        rows = torch.tensor([n for n, _, _ in shifted], device=z.device)
        z[rows] += torch.stack([its.shift_after(drafted) for _, its, drafted in shifted])
    if bans:
        rows, tokens = torch.tensor(bans, device=z.device).unbind(-1)
        z[rows, tokens] = _NEGATIVE_INFINITY
    return z
