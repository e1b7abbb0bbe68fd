"""What is loaded: the base, its guides, and the weights they run through."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

from trimtab.decoding.rules import base_coefficient
from trimtab.engine.backbone import Backbone
from trimtab.engine.guidance import Pull
from trimtab.engine.guides import Guide
from trimtab.engine.requests import BASE, DRAFT, Row
from trimtab.errors import PromptTooLongError
from trimtab.models import Base, Prompt, VocabularyMap, check_ids, encode_prompt, is_ids

if TYPE_CHECKING:
    from trimtab.models import Text


@dataclass(frozen=True)
class DraftModel:
    """A model whose bare weights propose tokens, together with the guides on the same weights.

    Attributes:
        backbone: number of its backbone.
        vocabulary: how its scores reach the base's token ids.
    """

    backbone: int
    vocabulary: VocabularyMap

    def own_id(self, token: int) -> int:
        """Return its id of a base token; -1 if it has none."""
        return token if self.vocabulary.index is None else int(self.vocabulary.index[token])


@dataclass(frozen=True)
class Core:
    """What is loaded: the base, its guides and their backbones.

    Guide j is stream j + 1. Policies that were trained from another model than the base need that model's scores too:
    it reads along as a stream after those of the guides, at minus the policies' weight.
    """

    base: Base
    backbones: Sequence[Backbone]
    guides: Sequence[Guide]
    stop_ids: frozenset[int]
    draft: DraftModel | None = None

    @functools.cached_property
    def references(self) -> Sequence[Guide]:
        """The models that policies were trained from, where that is not the base; each once."""
        found = {id(guide.reference): guide.reference for guide in self.guides if guide.reference is not None}
        return list(found.values())

    @functools.cached_property
    def readers(self) -> Sequence[Guide]:
        """What the streams after the base's are: the guides, then the references of policies."""
        return [*self.guides, *self.references]

    @functools.cached_property
    def shares_reference(self) -> bool:
        """Whether there is a policy whose reference is the base itself."""
        return any(self.reference_of(stream) == BASE for stream in range(1, len(self.guides) + 1))

    def reader(self, stream: int) -> Guide:
        """Return the guide or reference that a stream after the base's is."""
        return self.readers[stream - 1]

    def reference_of(self, stream: int) -> int | None:
        """Return the stream whose scores are subtracted from those of a policy's; ``None`` for all other streams."""
        guide = self.reader(stream) if stream > BASE else None
        if guide is None or not guide.is_policy:
            return None
        if guide.reference is None:
            return BASE
        return 1 + len(self.guides) + next(k for k, one in enumerate(self.references) if one is guide.reference)

    def with_references(self, streams: Iterable[int]) -> list[int]:
        """Return streams, and those whose scores are subtracted from theirs."""
        found = list(streams)
        return sorted({*found, *(own for stream in found if (own := self.reference_of(stream)) is not None)})

    def pull(self, stream: int, pulls: Sequence[Pull], head: int = BASE) -> Pull:
        """Return what is asked of a stream: of a guide what it is asked, of a reference minus what its policies are.

        Args:
            stream: a stream after the base's.
            pulls: what is asked of each guide.
            head: the stream that is added to; a model that drafts is helped by the guides on its weights only.
        """
        if stream <= len(self.guides):
            return pulls[stream - 1]
        return Pull(base_coefficient(self._weights_against(stream, pulls, head), whole=0.0))

    def base_weight(self, pulls: Sequence[Pull]) -> float:
        """Return the coefficient of the base itself: 1, less the weights of the policies that were trained from it."""
        return base_coefficient(self._weights_against(BASE, pulls, BASE)) if self.shares_reference else 1.0

    def deciding(self, pulls: Sequence[Pull]) -> list[int]:
        """Return the streams that the next token depends on, the base's first."""
        return [BASE, *(s for s in range(1, len(self.readers) + 1) if self.pull(s, pulls).weight != 0)]

    def gather(self, stream: int, logits: Tensor) -> Tensor:
        """Return a stream's logits by the base's token ids: (T, V of the stream) → (T, V)."""
        return self.reader(stream).vocabulary.gather(logits) if stream else logits

    def _weights_against(self, reference: int, pulls: Sequence[Pull], head: int) -> list[float]:
        """Return the weights of the policies that a stream is the reference of."""
        return [
            pull.weight
            for stream, (guide, pull) in enumerate(zip(self.guides, pulls, strict=True), start=1)
            if self.reference_of(stream) == reference and (head == BASE or guide.backbone == self.backbone_of(head))
        ]

    def backbone_of(self, stream: int) -> int:
        """Return the number of the backbone that a stream runs through."""
        if stream == DRAFT and self.draft is not None:
            return self.draft.backbone
        return self.reader(stream).backbone if stream else 0

    def own_id(self, stream: int, token: int) -> int:
        """Return a stream's own id of a base token.

        Raises:
            GuidanceError: a guide does not know it.
        """
        if stream == DRAFT and self.draft is not None:
            # A token that it does not know is one it will not propose; what it reads instead costs drafts, not truth.
            return max(0, self.draft.own_id(token))
        return self.reader(stream).own_id(token) if stream else token

    def encode(self, prompt: Prompt, stream: int) -> list[int]:
        """Return the prompt's ids as a stream reads it: a text in its own template and by its own tokenizer.

        Raises:
            DataError: the prompt is empty, its template refuses it, or an id is not in the base's vocabulary.
            GuidanceError: a guide does not know one of the ids.
        """
        if is_ids(prompt):
            return [self.own_id(stream, t) for t in check_ids(prompt, self.base.vocabulary_size, self.base.id)]
        text = cast("Text", prompt)
        return self.reader(stream).encode_prompt(text) if stream else encode_prompt(self.base.tokenizer, text)

    def mark(self, stream: int, pull: Pull | None) -> object:
        """Return what a row's reading of a text depends on beside the text and its stream."""
        return self.reader(stream).condition_key(pull) if stream and pull else None

    def row(self, stream: int, tokens: list[int], pull: Pull | None = None, salt: str | None = None) -> Row:
        """Return a row of a stream, for guides at what is asked of them."""
        if not stream:
            return Row(BASE, 0, tokens, salt=salt)
        guide = self.reader(stream)
        conditions = guide.conditions(pull) if pull else None
        return Row(stream, guide.backbone, tokens, guide.slot, conditions, self.mark(stream, pull), salt)

    def room(self, lengths: Sequence[tuple[int, int]]) -> int:
        """Return how many tokens fit behind the prompts of one request.

        Args:
            lengths: (stream, tokens of its prompt) of each row.

        Raises:
            PromptTooLongError: one of them fills its context.
        """
        most: list[int] = []
        for stream, count in lengths:
            length = self.backbones[self.backbone_of(stream)].context_length
            if count >= length:
                reader = f"the guide {self.reader(stream).name!r}" if stream else f"the base {self.base.id!r}"
                raise PromptTooLongError(
                    f"The prompt has {count} tokens, but {reader} reads at most {length}, answer included: "
                    "shorten the prompt."
                )
            most.append(length - count)
        return min(most)
