"""Answers being written: what each is made of, and how a new token changes it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from trimtab.decoding.config import Sampling
from trimtab.decoding.speculation import Rule, Uniforms
from trimtab.decoding.stops import TextAssembler
from trimtab.engine.backbone import Backbone
from trimtab.engine.drafting import Drafting
from trimtab.engine.guidance import Pull
from trimtab.engine.guides import Guide
from trimtab.engine.noting import Voice, voices
from trimtab.engine.requests import BASE, DRAFT, Request, Row
from trimtab.engine.results import FinishReason, Generation, TokenScores, Watch
from trimtab.errors import GuidanceError, PromptTooLongError
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


class Answer(Request):
    """One answer being written.

    Attributes:
        prompts: stream → prompt ids, of the streams that have a row.
        pulls: what is asked of each guide.
        sampling: how its tokens are drawn.
        limit: most tokens, by ``max_tokens`` and by the contexts.
        tokens: those chosen so far.
        pieces: text that nobody has taken yet.
        seen: (V,) bool, the tokens of prompt and answer, kept only for a repetition penalty.
        heard: guides and objectives whose opinion is noted, each with the row that gives it.
        drafting: how its next tokens are drafted; ``None`` where they are not.
        uniforms: the random numbers that its tokens are drawn with; ``None`` if greedy.
        prompt: what it answers, as the caller gave it.
        watch: what is noted of each token; ``None``: nothing.
        noted: what was noted of the tokens and nobody has taken yet.
        cached_tokens: how many tokens of the base's prompt were found in the cache when it began; ``None`` before.
        salt: answers of different salts share nothing that was read.
    """

    def __init__(
        self,
        core: Core,
        prompts: dict[int, list[int]],
        pulls: tuple[Pull, ...],
        sampling: Sampling,
        seed: int,
        place: tuple[int, int] = (0, 0),
        rule: Rule = "coupled",
        *,
        prompt: Prompt = "",
        watch: Watch | None = None,
        salt: str | None = None,
    ) -> None:
        """Begin an answer.

        Args:
            core: what is loaded.
            prompts: stream → prompt ids, for the base, for each guide whose weight is not 0, and for those that watch.
            pulls: one a guide.
            sampling: how its tokens are drawn.
            seed: of this one answer.
            place: number of the prompt in the call, and of the answer among its prompt's.
            rule: how drafts are accepted, which random numbers depend on.
            prompt: what it answers, as the caller gave it; guides that join later read it.
            watch: what is noted of each token.
            salt: answers of different salts share nothing that was read.

        Raises:
            PromptTooLongError: a prompt fills a context.
        """
        super().__init__([])
        self._core = core
        self.tokens: list[int] = []
        self.watch = watch
        self.salt = salt
        arranged = self._arrange(prompts, pulls)
        self._adopt(arranged)
        self.rows = arranged.rows
        self.prompts = prompts
        self.pulls = pulls
        self.sampling = sampling
        self.limit = min(sampling.max_tokens, core.room([(s, len(ids)) for s, ids in prompts.items()]))
        self.seed = None if sampling.is_greedy else seed
        self.place = place
        self.text = TextAssembler(core.base.tokenizer, sampling.stop)
        self.pieces: deque[str] = deque()
        self.finish_reason: FinishReason | None = None
        self.seen: Tensor | None = None
        self.prompt = prompt
        self.noted: deque[TokenScores] = deque()
        self.cached_tokens: int | None = None
        self.drafting: Drafting | None = None
        self.uniforms: Uniforms | None = None
        if not sampling.is_greedy:
            self.uniforms = Uniforms(torch.Generator().manual_seed(seed), rule)
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(core.base.vocabulary_size, dtype=torch.bool, device=core.base.device)
            self.seen[torch.tensor(prompts[BASE], device=core.base.device)] = True

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None or self.error is not None

    def take(self, tokens: Sequence[int], notes: Sequence[TokenScores] = ()) -> None:
        """Add the tokens that a step wrote: drafts that were kept, and one more. See whether the answer ends.

        Args:
            tokens: the tokens.
            notes: what was noted of each of them, where that is watched.
        """
        kept = len(tokens) - 1
        for row in self.rows:
            row.rewind(len(row.tokens) - self.ahead + kept)
        if self.drafting is not None:
            self.drafting.learn(self.ahead, kept, tokens)
        self.ahead = 0
        for i, token in enumerate(tokens):
            self._take(token)
            self.noted.extend(notes[i : i + 1])
            if self.finish_reason is not None:
                return
        if self.heard:
            self._leave_deaf(tokens)
        for row in self.rows:
            row.tokens.append(self._core.own_id(row.stream, tokens[-1]))

    def draft(self, token: int) -> bool:
        """Add a token to every row that may have to be taken back; return whether every guide that decides knows it."""
        try:
            own = [0 if self._is_deaf(row, token) else self._core.own_id(row.stream, token) for row in self.rows]
        except GuidanceError:  # base and guides would never choose it, so it is no draft
            return False
        for row, token_ in zip(self.rows, own, strict=True):
            row.tokens.append(token_)
        self.ahead += 1
        return True

    def drop_ahead(self) -> None:
        """Take drafts back."""
        super().drop_ahead()
        if self.drafting is not None:
            self.drafting.drop()

    def _is_deaf(self, row: Row, token: int) -> bool:
        """Return whether a row only watches and does not know a token."""
        if row.watches:
            try:
                self._core.own_id(row.stream, token)
            except GuidanceError:
                return True
        return False

    def _leave_deaf(self, tokens: Sequence[int]) -> None:
        """Let rows that only watch go if they do not know one of the tokens."""
        deaf = [row for row in self.rows if any(self._is_deaf(row, token) for token in tokens)]
        if deaf:
            self.left += deaf
            self.rows = [row for row in self.rows if row not in deaf]
            self.heard = [(voice, row) for voice, row in self.heard if row not in deaf]

    def _take(self, token: int) -> None:
        self.tokens.append(token)
        if self.uniforms is not None:
            self.uniforms.written(1)
        if self.seen is not None:
            self.seen[token] = True
        if token in self._core.stop_ids and not self.sampling.ignore_eos:
            self.finish_reason = "stop"
            gained = self.text.finish()
        else:
            gained = self.text.push(token)
            if self.text.stopped_by is None and len(self.tokens) >= self.limit:
                self.finish_reason = "length"
                gained += self.text.finish()
            if self.text.stopped_by is not None:
                self.finish_reason = "stop"
        if gained:
            self.pieces.append(gained)

    def result(self) -> Generation:
        """Return the finished answer."""
        return Generation(
            text=self.text.text,
            token_ids=list(self.tokens),
            finish_reason=self.finish_reason or "length",
            stopped_by=self.text.stopped_by,
            prompt_index=self.place[0],
            sample_index=self.place[1],
            prompt_tokens=len(self.prompts[BASE]),
            seed=self.seed,
            **applied(self._core.guides, self.pulls),
        )

    def change(self, pulls: tuple[Pull, ...], check: Callable[[Sequence[Row], int], None] | None = None) -> list[Row]:
        """Ask something else of the guides from the next token on; return the rows that the answer goes on with.

        Rows that nothing changes for are the same objects. A guide that joins reads prompt and answer from the start,
        and so does one whose preference changes: what it has cached was read at the old one. One that has watched until
        now has read them.

        Args:
            pulls: one a guide.
            check: called with the rows and with how many tokens they may still get; raises where that cannot be.

        Raises:
            PromptTooLongError: the context of a guide that joins has no room for the answer so far. Nothing changes.
            GuidanceError: it does not know a token of the answer. Nothing changes.
        """
        core = self._core
        prompts = {BASE: self.prompts[BASE]}
        for stream, pull in enumerate(pulls, start=1):
            if pull.weight != 0 or (stream in self.prompts and self.hears_all):
                prompts[stream] = self.prompts.get(stream) or core.encode(self.prompt, stream)
        limit = min(self.sampling.max_tokens, core.room([(s, len(ids)) for s, ids in prompts.items()]))
        if limit <= len(self.tokens) and not self.finished:
            raise PromptTooLongError(
                f"A guide that joins now would have to read prompt and answer, and its context ends {limit} tokens "
                f"into the answer, which has {len(self.tokens)} already."
            )
        self.drop_ahead()  # where a reader paused in the middle of somebody else's step there may be drafts
        arranged = self._arrange(prompts, pulls)
        rows = [*arranged.rows, *(row for row in self.rows if row.stream == DRAFT)]
        if check is not None:
            check(rows, limit - len(self.tokens))
        self.prompts, self.pulls, self.limit = prompts, pulls, limit
        self._adopt(arranged)
        return rows

    @property
    def hears_all(self) -> bool:
        """Whether guides and objectives that do not decide read along."""
        return self.watch is not None and self.watch.objectives

    def _arrange(self, prompts: Mapping[int, Sequence[int]], pulls: Sequence[Pull]) -> _Arranged:
        """Return the rows for what is asked of the guides; those that are there already stay. Changes nothing."""
        rows = {(row.stream, row.mark): row for row in self.rows if row.stream != DRAFT}
        found: dict[tuple[int, object], Row] = {}

        def one(stream: int, pull: Pull | None) -> Row:
            key = (stream, self._core.mark(stream, pull))
            if key not in found:
                text = [*prompts[stream], *(self._core.own_id(stream, token) for token in self.tokens)]
                found[key] = rows.get(key) or self._core.row(stream, text, pull, self.salt)
            return found[key]

        asked = {stream: pulls[stream - 1] if stream else None for stream in sorted(prompts)}
        deciding = [one(stream, pull) for stream, pull in asked.items() if pull is None or pull.weight != 0]
        heard: list[tuple[Voice, Row]] = []
        for voice in voices(self._core.guides, pulls) if self.hears_all else ():
            with contextlib.suppress(GuidanceError):  # it does not know a token of the answer
                heard += [(voice, one(voice.stream, voice.pull))] if voice.stream in prompts else []
        return _Arranged(list(found.values()), deciding, heard)

    def _adopt(self, arranged: _Arranged) -> None:
        self.heard = arranged.heard
        for row in arranged.rows:
            row.watches = row not in arranged.deciding


@dataclass(frozen=True)
class _Arranged:
    """The rows of an answer, those of them that decide, and whose opinion is noted."""

    rows: list[Row]
    deciding: list[Row]
    heard: list[tuple[Voice, Row]]


def applied(guides: Sequence[Guide], pulls: Sequence[Pull]) -> dict[str, Any]:
    """Return what results say of guidance: ``weights`` by guide, and ``preferences`` of guides that take one."""
    named = {guide.name: (guide, pull) for guide, pull in zip(guides, pulls, strict=True)}
    return {
        "weights": {name: pull.weight for name, (_, pull) in named.items()},
        "preferences": {name: guide.preference(pull) for name, (guide, pull) in named.items() if guide.conditioned},
    }
