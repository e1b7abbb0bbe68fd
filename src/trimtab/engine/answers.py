"""Answers being written: what each is made of, and how a new token changes it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trimtab.decoding.adjusting import Adjustments
from trimtab.decoding.config import Sampling
from trimtab.decoding.speculation import Rule, Uniforms
from trimtab.decoding.stops import TextAssembler
from trimtab.engine.core import Core
from trimtab.engine.drafting import Drafting
from trimtab.engine.guidance import Pull
from trimtab.engine.guides import Guide
from trimtab.engine.noting import Heard, voices
from trimtab.engine.requests import BASE, DRAFT, Request, Row
from trimtab.engine.results import FinishReason, Generation, TokenScores, Watch
from trimtab.errors import GuidanceError, PromptTooLongError
from trimtab.models import Prompt


class Answer(Request):
    """One answer being written.

    Attributes:
        prompts: stream → prompt ids, of the streams that have a row.
        pulls: what is asked of each guide.
        sampling: how its tokens are drawn.
        tokens: those chosen so far.
        pieces: text that nobody has taken yet.
        adjustments: penalties, biases and the like, where its sampling asks for some; ``None``: z' stays as it is.
        heard: guides and objectives whose opinion is noted, each with the rows that give it.
        drafting: how its next tokens are drafted; ``None`` where they are not.
        uniforms: the random numbers that its tokens are drawn with; ``None`` if greedy.
        prompt: what it answers, as the caller gave it.
        watch: what is noted of each token; ``None``: nothing.
        noted: what was noted of the tokens and nobody has taken yet.
        cached_tokens: how many tokens of the base's prompt were found in the cache when it began.
        begun: whether it has had pages.
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
            prompts: stream → prompt ids, for the base, for each guide whose weight is not 0, for those that watch, and
                for the references of all these.
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
        self.prompts: dict[int, list[int]]
        self.pulls: tuple[Pull, ...]
        self.heard: list[Heard]
        room = core.room([(stream, len(ids)) for stream, ids in prompts.items()])
        self.rows = self.adopt(self._plan(prompts, pulls, room))
        self.sampling = sampling
        self._most = sampling.max_tokens
        self.seed = None if sampling.is_greedy else seed
        self.place = place
        self.text = TextAssembler(core.base.tokenizer, sampling.stop)
        self.pieces: deque[str] = deque()
        self.finish_reason: FinishReason | None = None
        self.prompt = prompt
        self.noted: deque[TokenScores] = deque()
        self.cached_tokens = 0
        self.begun = False
        self.drafting: Drafting | None = None
        self.uniforms: Uniforms | None = None
        if not sampling.is_greedy:
            self.uniforms = Uniforms(torch.Generator().manual_seed(seed), rule)
        self.adjustments = _adjustments(core, sampling, prompts[BASE])
        self._ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else core.stop_ids)

    @property
    def limit(self) -> int:
        """Most tokens, by ``max_tokens`` (or what is set here) and by the contexts of those that read along."""
        return min(self._most, self._room)

    @limit.setter
    def limit(self, tokens: int) -> None:
        self._most = tokens

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
            self.heard = [heard for heard in self.heard if not any(row in deaf for row in heard.rows)]

    def _take(self, token: int) -> None:
        self.tokens.append(token)
        if self.uniforms is not None:
            self.uniforms.written(1)
        if self.adjustments is not None:
            self.adjustments.add(token)
        looking = len(self.tokens) > self.sampling.min_tokens  # for stop strings
        if token in self._ends:
            self.finish_reason = "stop"
            gained = self.text.finish(looking=looking)
        else:
            gained = self.text.push(token, looking=looking)
            if self.text.stopped_by is None and len(self.tokens) >= self.limit:
                self.finish_reason = "length"
                gained += self.text.finish(looking=looking)
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

    def change(self, pulls: tuple[Pull, ...], room: Callable[[Sequence[Row]], int] | None = None) -> list[Row]:
        """Ask something else of the guides from the next token on; return the rows that the answer goes on with.

        Rows that nothing changes for are the same objects. A guide that joins reads prompt and answer from the start,
        and so does one whose preference changes: what it has cached was read at the old one. One that has watched until
        now has read them.

        Args:
            pulls: one a guide.
            room: called with the rows, says how many tokens more they have room for.

        Raises:
            PromptTooLongError: a guide that joins has no room for the answer so far. Nothing changes.
            GuidanceError: it does not know a token of the answer. Nothing changes.
        """
        return self.adopt(self.plan(pulls, room))

    def plan(self, pulls: tuple[Pull, ...], room: Callable[[Sequence[Row]], int] | None = None) -> Plan:
        """Return what :meth:`change` would do, without doing it."""
        core = self._core
        self.drop_ahead()  # where a reader paused in the middle of somebody else's step there may be drafts
        asked = [s for s, pull in enumerate(pulls, 1) if pull.weight != 0 or (s in self.prompts and self.hears_all)]
        streams = core.with_references([BASE, *asked])
        prompts = {stream: self.prompts.get(stream) or core.encode(self.prompt, stream) for stream in streams}
        most = core.room([(s, len(ids)) for s, ids in prompts.items()])
        plan = self._plan(prompts, pulls, most)
        plan.rows.extend(row for row in self.rows if row.stream == DRAFT)
        if room is not None:
            plan = dataclasses.replace(plan, room=min(most, len(self.tokens) + room(plan.rows)))
        if plan.room <= len(self.tokens) and not self.finished:
            raise PromptTooLongError(
                f"A guide that joins now would have to read prompt and answer, and its context ends {plan.room} tokens "
                f"into the answer, which has {len(self.tokens)} already."
            )
        return plan

    def adopt(self, plan: Plan) -> list[Row]:
        """Carry a plan out; return its rows, which the scheduler is to go on with."""
        self.prompts, self.pulls, self.heard, self._room = plan.prompts, plan.pulls, plan.heard, plan.room
        for row in plan.rows:
            row.watches = row.stream > BASE and row not in plan.deciding
        return plan.rows

    @property
    def hears_all(self) -> bool:
        """Whether guides and objectives that do not decide read along."""
        return self.watch is not None and self.watch.objectives

    def _plan(self, prompts: dict[int, list[int]], pulls: tuple[Pull, ...], room: int) -> Plan:
        """Return the rows for what is asked of the guides; those that are there already stay. Changes nothing."""
        rows = {(row.stream, row.mark): row for row in self.rows if row.stream != DRAFT}
        found: dict[tuple[int, object], Row] = {}

        def one(stream: int, pull: Pull | None) -> Row:
            key = (stream, self._core.mark(stream, pull))
            if key not in found:
                text = [*prompts[stream], *(self._core.own_id(stream, token) for token in self.tokens)]
                found[key] = rows.get(key) or self._core.row(stream, text, pull, self.salt)
            return found[key]

        core = self._core
        deciding = [one(stream, core.pull(stream, pulls) if stream else None) for stream in core.deciding(pulls)]
        heard: list[Heard] = []
        for voice in voices(core.guides, pulls) if self.hears_all else ():
            if voice.stream in prompts:
                with contextlib.suppress(GuidanceError):  # it does not know a token of the answer
                    against = core.reference_of(voice.stream)
                    reference = None if against is None else one(against, None)
                    heard.append(Heard(voice, one(voice.stream, voice.pull), reference))
        return Plan(prompts, pulls, room, list(found.values()), deciding, heard)


@dataclass(frozen=True)
class Plan:
    """What an answer goes on with.

    Attributes:
        prompts: stream → prompt ids, of the streams that have a row.
        pulls: what is asked of each guide.
        room: most tokens of the answer, by contexts and cache.
        rows: its rows, the base's first.
        deciding: those that the next token depends on.
        heard: whose opinion is noted, each with the rows that give it.
    """

    prompts: dict[int, list[int]]
    pulls: tuple[Pull, ...]
    room: int
    rows: list[Row]
    deciding: list[Row]
    heard: list[Heard]


def _adjustments(core: Core, sampling: Sampling, prompt: Sequence[int]) -> Adjustments | None:
    if not Adjustments.wanted(sampling):
        return None
    size, device = core.base.vocabulary_size, core.base.device
    return Adjustments(sampling, size, prompt=prompt, ends=core.stop_ids, device=device)


def applied(guides: Sequence[Guide], pulls: Sequence[Pull]) -> dict[str, Any]:
    """Return what results say of guidance: ``weights`` by guide, and ``preferences`` of guides that take one."""
    named = {guide.name: (guide, pull) for guide, pull in zip(guides, pulls, strict=True)}
    return {
        "weights": {name: pull.weight for name, (_, pull) in named.items()},
        "preferences": {name: guide.preference(pull) for name, (guide, pull) in named.items() if guide.conditioned},
    }
