"""What is loaded: the base, its guides, and the weights they run through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

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
    """What is loaded: the base, its guides and their backbones."""

    base: Base
    backbones: Sequence[Backbone]
    guides: Sequence[Guide]
    stop_ids: frozenset[int]
    draft: DraftModel | None = None

    def backbone_of(self, stream: int) -> int:
        """Return the number of the backbone that a stream runs through."""
        if stream == DRAFT and self.draft is not None:
            return self.draft.backbone
        return self.guides[stream - 1].backbone if stream else 0

    def own_id(self, stream: int, token: int) -> int:
        """Return a stream's own id of a base token.

        Raises:
            GuidanceError: a guide does not know it.
        """
        if stream == DRAFT and self.draft is not None:
            # A token that it does not know is one it will not propose; what it reads instead costs drafts, not truth.
            return max(0, self.draft.own_id(token))
        return self.guides[stream - 1].own_id(token) if stream else token

    def encode(self, prompt: Prompt, stream: int) -> list[int]:
        """Return the prompt's ids as a stream reads it: a text in its own template and by its own tokenizer.

        Raises:
            DataError: the prompt is empty, its template refuses it, or an id is not in the base's vocabulary.
            GuidanceError: a guide does not know one of the ids.
        """
        if is_ids(prompt):
            return [self.own_id(stream, t) for t in check_ids(prompt, self.base.vocabulary_size, self.base.id)]
        text = cast("Text", prompt)
        return self.guides[stream - 1].encode_prompt(text) if stream else encode_prompt(self.base.tokenizer, text)

    def mark(self, stream: int, pull: Pull | None) -> object:
        """Return what a row's reading of a text depends on beside the text and its stream."""
        return self.guides[stream - 1].condition_key(pull) if stream and pull else None

    def row(self, stream: int, tokens: list[int], pull: Pull | None = None, salt: str | None = None) -> Row:
        """Return a row of a stream, for guides at what is asked of them."""
        if not stream:
            return Row(BASE, 0, tokens, salt=salt)
        guide = self.guides[stream - 1]
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
                reader = f"the guide {self.guides[stream - 1].name!r}" if stream else f"the base {self.base.id!r}"
                raise PromptTooLongError(
                    f"The prompt has {count} tokens, but {reader} reads at most {length}, answer included: "
                    "shorten the prompt."
                )
            most.append(length - count)
        return min(most)
