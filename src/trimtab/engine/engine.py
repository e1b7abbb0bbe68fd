"""The engine: a base and its guides, ready to write, stream and score."""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from trimtab.decoding.config import Sampling, make_sampling
from trimtab.engine.answers import Answer
from trimtab.engine.config import EngineConfig, make_engine_config
from trimtab.engine.core import Core
from trimtab.engine.draft_model import choose_draft
from trimtab.engine.driver import Driver
from trimtab.engine.guidance import GuidanceLike, Pull, resolve
from trimtab.engine.guides import Guide, GuideFolders, load_guides
from trimtab.engine.memory import MemoryPlan
from trimtab.engine.prompts import Prompts, as_prompts, check_options, one_each
from trimtab.engine.readings import Reading
from trimtab.engine.requests import BASE
from trimtab.engine.results import Generation, Score, Watch
from trimtab.engine.scheduler import Scheduler, Statistics
from trimtab.engine.scoring import make_reading, make_score
from trimtab.engine.stream import Stream
from trimtab.errors import ConfigError, DataError, GuidanceError
from trimtab.models import Base, Prompt, check_ids, encode_response, end_of_response_id, is_ids, load_base
from trimtab.models.chat import needs_leading_space, stop_ids

if TYPE_CHECKING:
    from trimtab.models import Text

SamplingLike = Sampling | Mapping[str, Any] | None
DEFAULT_BATCH = 16


def load(
    base: str | Path | Base,
    guides: GuideFolders = (),
    *,
    revision: str | None = None,
    guide_bases: Mapping[str, str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    guide_quantization: str | None = "auto",
    config: EngineConfig | Mapping[str, Any] | None = None,
) -> Engine:
    """Load a base model and the guides that steer it.

    A guide trained on this base shares its weights and runs in the same forward; a guide trained on another model
    (a smaller one, for instance) brings that model along.

    Args:
        base: ``"smollm2"``, a local folder, a hub id, or a loaded :class:`Base`.
        guides: guide folders, each named after its folder; or a mapping from name to folder.
        revision: hub revision of the base.
        guide_bases: guide name → model to load for a guide that was trained on another base, where the id in its
            ``guide.json`` is not the place to load it from.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"`` or a torch device.
        quantization: ``"int8"`` (nearly exact) or ``"int4"`` (small models suffer) for weights that take less to
            read. A :class:`Base` is used as it was loaded. Adapters stay in ``dtype``.
        guide_quantization: likewise of models that guides bring along, and of one that drafts; ``"auto"`` for that of
            the base.
        config: an :class:`EngineConfig` or a mapping with its fields.

    Raises:
        ConfigError: an unknown or impossible option, or torchao, which quantises, is not installed.
        ModelError: the base cannot be loaded.
        GuideError: a guide folder is missing, damaged, unsafe or for another base.
        VocabularyMismatchError: base and guide do not share a tokenizer.
    """
    chosen = make_engine_config(config)
    options: Any = {"revision": revision, "dtype": dtype, "device": device, "quantization": quantization}
    loaded = base if isinstance(base, Base) else load_base(str(base), **options)
    folders = [guides] if isinstance(guides, (str, Path)) else guides
    smaller = loaded.quantization if guide_quantization == "auto" else guide_quantization
    backbones, ready = load_guides(
        loaded,
        folders,
        guide_bases or {},
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=str(loaded.device),
        kernels=chosen.kernels,
        quantization=smaller,
    )
    options |= {"revision": None, "quantization": smaller}
    draft = choose_draft(chosen, loaded, backbones, ready, lambda name: load_base(name, **options))
    return Engine(Core(loaded, backbones, ready, stop_ids(loaded.model, loaded.tokenizer), draft), chosen)


class Engine:
    """A base and its guides. Made by :func:`load`; also a context manager.

    Answers of all calls, from whatever thread, are written together: each call drives the steps until its own answers
    are finished, and every step carries those of the others along.
    """

    def __init__(self, core: Core, config: EngineConfig | None = None) -> None:
        self._core = core
        self._driver = Driver(Scheduler(core, config or EngineConfig()))

    @property
    def base(self) -> Base:
        """The base model."""
        return self._core.base

    @property
    def guides(self) -> dict[str, Guide]:
        """The guides by name."""
        return {guide.name: guide for guide in self._core.guides}

    @property
    def memory(self) -> MemoryPlan:
        """What it takes, as planned when it was loaded."""
        return self._driver.scheduler.plan

    @property
    def statistics(self) -> Statistics:
        """What it has done so far."""
        return self._driver.scheduler.statistics

    @property
    def parts(self) -> tuple[Core, Driver]:
        """What other loops than its own are built from: what is loaded, and what does the steps."""
        return self._core, self._driver

    def generate(
        self,
        prompts: Prompts,
        *,
        guidance: GuidanceLike | Sequence[GuidanceLike] = None,
        sampling: SamplingLike | Sequence[SamplingLike] = None,
        max_batch_size: int = DEFAULT_BATCH,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Write answers.

        Answer k of prompt i is drawn by a ``torch.Generator`` seeded with ``seed + i·n + k``, one number a token, so
        it does not depend on what else the engine writes: not at all with native kernels, which compute each row
        alike in any company; up to rounding with the others, which can turn a near-tie.

        Args:
            prompts: one prompt (plain text, chat turns, or token ids of the base), or a list of prompts. Guides read
                the same ids, a text or turns each in its own template.
            guidance: ``None`` for each guide's recommended weight, a strength, weights by objective or guide (what
                they do not name has weight 0), or a :class:`Guidance`; or a list with one of these for each prompt.
            sampling: a :class:`Sampling` or a mapping with its fields; or a list with one for each prompt.
            max_batch_size: most answers of this call written at a time; the next begins when one is finished.
            progress: called with (answers done, answers in all) whenever an answer is finished.
            **options: single fields of :class:`Sampling`, over ``sampling``: ``generate(p, temperature=0)``.

        Returns:
            n answers a prompt, in the order of the prompts.

        Raises:
            GuidanceError: unknown guide, NaN weight and the like.
            ConfigError: unknown or impossible sampling option.
            PromptTooLongError: a prompt fills a context, or does not fit the memory for keys and values.
            NumericalError: a model gave NaN.
        """
        self._driver.check_open()
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}: use 1 or more.")
        texts = as_prompts(prompts)
        guidances = one_each(guidance, len(texts), "guidance")
        samplings = [make_sampling(s, **options) for s in one_each(sampling, len(texts), "sampling")]
        answers = [
            answer
            for i, (text, g, s) in enumerate(zip(texts, guidances, samplings, strict=True))
            for answer in self.answers(text, guidance=g, sampling=s, index=i)
        ]
        self._write(answers, max_batch_size, progress)
        return [answer.result() for answer in answers]

    def stream(
        self, prompt: Prompt, *, guidance: GuidanceLike = None, sampling: SamplingLike = None, **options: Any
    ) -> Stream:
        """Write one answer piece by piece; the pieces join to what :meth:`generate` returns for this prompt.

        The answer is written only as far as its pieces are asked for, so that new guidance acts from the next piece.

        Args:
            prompt: plain text, chat turns or token ids.
            guidance: as in :meth:`generate`; :meth:`Stream.set_guidance` changes it while the answer is written.
            sampling: as in :meth:`generate`, with n = 1.
            **options: single fields of :class:`Sampling`.

        Raises:
            ConfigError: n is not 1; else as :meth:`generate`.
        """
        self._driver.check_open()
        chosen = make_sampling(sampling, **options)
        if chosen.n != 1:
            raise ConfigError(f"A stream writes one answer, but n is {chosen.n}: use generate for several.")
        (answer,) = self.answers(prompt, guidance=guidance, sampling=chosen)
        answer.wanted = False
        self._driver.add(answer, tokens=answer.limit)
        return Stream(self._core, self._driver, answer)

    def answers(
        self,
        prompt: Prompt,
        *,
        guidance: GuidanceLike = None,
        sampling: SamplingLike = None,
        watch: Watch | None = None,
        salt: str | None = None,
        index: int = 0,
    ) -> list[Answer]:
        """Return the n answers to a prompt, ready to be written by a :class:`Worker` and not begun.

        Renders and tokenises, which takes its time; may be called from any thread.

        Args:
            prompt: plain text, chat turns or token ids.
            guidance: as in :meth:`generate`.
            sampling: as in :meth:`generate`.
            watch: what is noted of each token.
            salt: requests of different salts never share what was read of equal beginnings, so that how fast one is
                answered tells nothing about another's text.
            index: number of the prompt in a call; its answers are drawn with ``seed + index·n + k``.

        Raises:
            GuidanceError: as :meth:`generate`, and so are the others.
        """
        chosen = make_sampling(sampling)
        check_options(chosen, self._core.base)
        pulls = resolve(guidance, self._core.guides)
        prompts = self._encode(prompt, pulls, watching=watch is not None and watch.objectives)
        seed = secrets.randbits(62) if chosen.seed is None else chosen.seed
        rule = self._driver.scheduler.config.acceptance
        seeds = [(seed + index * chosen.n + k) % 2**63 for k in range(chosen.n)]
        common: Any = {"prompt": prompt, "watch": watch, "salt": salt}
        return [
            Answer(self._core, prompts, pulls, chosen, each, (index, k), rule, **common) for k, each in enumerate(seeds)
        ]

    def score(
        self,
        prompt: Prompt,
        response: Prompt,
        *,
        guidance: GuidanceLike = None,
        include_eos: bool = True,
        by_objective: bool = False,
    ) -> Score:
        """Score a given answer, token by token, by the base, by every guide and by their combination.

        Args:
            prompt: plain text, chat turns or token ids.
            response: the answer as text or turns, or its token ids (then nothing is added to them).
            guidance: as in :meth:`generate`; it matters for contributions and combination, and a guide that takes a
                preference scores at the one that is asked for (at its default one where it has weight 0).
            include_eos: whether a text's end-of-answer token is scored too, as it is in training.
            by_objective: whether each guide also scores at each of its objectives alone, in rows of the same forward.

        Raises:
            DataError: the answer is empty; else as :meth:`generate`.
        """
        self._driver.check_open()
        pulls = resolve(guidance, self._core.guides)
        prompts = {stream: self._core.encode(prompt, stream) for stream in range(len(self._core.readers) + 1)}
        ids = self._response_ids(prompt, response, include_eos=include_eos)
        reading = make_reading(self._core, prompts, ids, pulls, by_objective=by_objective)
        self._driver.add(reading, tokens=len(reading.answer))
        self._driver.drive([reading])
        return make_score(self._core, reading, pulls, by_objective=by_objective)

    def reading(
        self,
        prompt: Prompt,
        response: Prompt,
        *,
        guidance: GuidanceLike = None,
        include_eos: bool = True,
        watch: Watch | None = None,
        salt: str | None = None,
    ) -> Reading:
        """Return what reads a given answer, ready to be read by a :class:`Worker` and not begun.

        What it notes of each token is what it would have noted while writing it; guides of weight 0 read along only
        where they are watched.

        Args:
            prompt: as in :meth:`score`.
            response: as in :meth:`score`.
            guidance: as in :meth:`score`.
            include_eos: as in :meth:`score`.
            watch: what is noted of each token.
            salt: as in :meth:`answers`.

        Raises:
            DataError: the answer is empty; else as :meth:`generate`.
        """
        pulls = resolve(guidance, self._core.guides)
        ids = self._response_ids(prompt, response, include_eos=include_eos)
        prompts = self._encode(prompt, pulls, watching=watch is not None and watch.objectives, ids=ids)
        return make_reading(self._core, prompts, ids, pulls, watch=watch, salt=salt)

    def _encode(
        self, prompt: Prompt, pulls: Sequence[Pull], *, watching: bool, ids: Sequence[int] = ()
    ) -> dict[int, list[int]]:
        """Return stream → prompt ids: of the base, of guides that pull and, if wanted, of those that can only watch.

        The references of all these are among them.
        """
        core = self._core
        prompts = {BASE: core.encode(prompt, BASE)}
        for stream, pull in enumerate(pulls, start=1):
            needed = core.with_references([stream])
            if pull.weight != 0:
                prompts |= {own: core.encode(prompt, own) for own in needed if own not in prompts}
            elif watching:
                with contextlib.suppress(GuidanceError, DataError):  # its opinion will be missing, not the answer
                    found = {own: core.encode(prompt, own) for own in needed if own not in prompts}
                    _ = [core.own_id(own, token) for own in found for token in ids]
                    prompts |= found
        return prompts

    def _response_ids(self, prompt: Prompt, response: Prompt, *, include_eos: bool) -> list[int]:
        base, tokenizer = self._core.base, self._core.base.tokenizer
        if is_ids(response):
            return check_ids(response, base.vocabulary_size, base.id)
        before = "" if is_ids(prompt) else cast("Text", prompt)
        ids = encode_response(tokenizer, cast("Text", response), leading_space=needs_leading_space(tokenizer, before))
        return ids + ([end_of_response_id(tokenizer, before)] if include_eos else [])

    def close(self) -> None:
        """Take the guides' hooks off the base, which is then as it was loaded. The engine cannot be used after."""
        for backbone in self._core.backbones:
            backbone.adapters.remove()
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, answers: Sequence[Answer], most: int, progress: Callable[[int, int], None] | None) -> None:
        """Write answers, at most so many of them at a time."""
        queue, going, done = deque(answers), list[Answer](), 0
        try:
            while queue or going:
                while queue and len(going) < most:
                    self._driver.add(queue[0], tokens=queue[0].limit)
                    going.append(queue.popleft())
                self._driver.drive(going, until=any)
                done += sum(answer.finished for answer in going)
                going = [answer for answer in going if not answer.finished]
                if progress:
                    progress(done, len(answers))
        finally:
            for answer in answers:
                answer.cancelled = not answer.finished
