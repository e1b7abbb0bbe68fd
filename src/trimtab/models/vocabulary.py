"""Which token ids two models share, and what to do with the ones they do not.

Scores are added id by id, so base and guide must mean the same text by the same id. Vocabularies that differ only
by padding rows in the output layer or by added tokens are reconciled; a true mismatch is an error.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import VocabularyMismatchError


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a short SHA-256 over every (token, id) pair: equal hashes mean equal ids for equal tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class VocabularyMap:
    """How a guide's scores reach the base's token ids.

    Attributes:
        base_size: V, the width of the base's logits.
        guide_size: width of the guide's logits.
        index: (V,) long; the guide's id for each base id, -1 where the guide has no such token;
            ``None`` where all V ids are the same (the usual case).
    """

    base_size: int
    guide_size: int
    index: Tensor | None

    @property
    def is_identity(self) -> bool:
        """Whether every base id is the same token for the guide."""
        return self.index is None

    def gather(self, scores: Tensor) -> Tensor:
        """Return guide scores by base id: (..., guide_size) → (..., V), ``-inf`` where the guide has no token."""
        if self.index is None:
            return scores
        index = self.index.to(scores.device)
        taken = scores.index_select(-1, index.clamp_min(0))
        return taken.masked_fill(index < 0, float("-inf"))


def reconcile(
    base_tokenizer: Any,
    guide_tokenizer: Any,
    *,
    base_size: int,
    guide_size: int,
    base_name: str,
    guide_name: str,
) -> VocabularyMap:
    """Return the map from a guide's token ids to the base's.

    Ids above the tokenizer (padding rows) and added tokens that only one side knows are cut: under guidance they
    cannot be sampled. The base's EOS is always kept: where the guide ends answers with another token, that
    token's score is used for it.

    Args:
        base_tokenizer: tokenizer of the base.
        guide_tokenizer: tokenizer of the guide.
        base_size: V of the base's logits (may exceed the tokenizer).
        guide_size: V of the guide's logits.
        base_name: for messages.
        guide_name: for messages.

    Raises:
        VocabularyMismatchError: an ordinary token has another id, or a guide token stands where the base has another.
    """
    if base_size == guide_size and tokenizer_hash(base_tokenizer) == tokenizer_hash(guide_tokenizer):
        return VocabularyMap(base_size, guide_size, None)
    base_tokens = _by_id(base_tokenizer)
    guide_tokens = _by_id(guide_tokenizer)
    added = set(base_tokenizer.get_added_vocab()) | set(guide_tokenizer.get_added_vocab())
    index = torch.full((base_size,), -1, dtype=torch.long)
    for i in range(min(base_size, guide_size)):
        ours, theirs = base_tokens.get(i), guide_tokens.get(i)
        if ours is not None and ours == theirs:
            index[i] = i
        elif ours is not None and theirs is not None and ours not in added and theirs not in added:
            raise VocabularyMismatchError(
                f"Base {base_name!r} and guide {guide_name!r} use different tokenizers: id {i} is {ours!r} for the "
                f"base and {theirs!r} for the guide. Train the guide on a model with the base's tokenizer."
            )
    _check_ordinary(base_tokens, guide_tokens, added, base_name, guide_name)
    eos, guide_eos = base_tokenizer.eos_token_id, guide_tokenizer.eos_token_id
    if eos is not None and guide_eos is not None and eos < base_size and index[eos] < 0:
        index[eos] = guide_eos
    if base_size == guide_size and bool((index == torch.arange(base_size)).all()):
        return VocabularyMap(base_size, guide_size, None)
    return VocabularyMap(base_size, guide_size, index)


def _by_id(tokenizer: Any) -> dict[int, str]:
    return {int(i): str(token) for token, i in tokenizer.get_vocab().items()}


def _check_ordinary(
    base_tokens: dict[int, str], guide_tokens: dict[int, str], added: set[str], base_name: str, guide_name: str
) -> None:
    ours = {t for t in base_tokens.values() if t not in added}
    theirs = {t for t in guide_tokens.values() if t not in added}
    if ours != theirs:
        example = sorted(ours ^ theirs)[0]
        raise VocabularyMismatchError(
            f"Base {base_name!r} and guide {guide_name!r} use different tokenizers: they have {len(ours)} and "
            f"{len(theirs)} ordinary tokens, and for example {example!r} is known to one only. "
            "Train the guide on a model with the base's tokenizer."
        )
