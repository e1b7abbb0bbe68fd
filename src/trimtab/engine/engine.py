"""The engine: a base and its guides, ready to write, stream and score."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from trimtab.decoding.config import Sampling, make_sampling
from trimtab.engine.answers import Answer, Core
from trimtab.engine.config import EngineConfig, make_engine_config
from trimtab.engine.draft_model import choose_draft
from trimtab.engine.driver import Driver
from trimtab.engine.guidance import GuidanceLike, resolve
from trimtab.engine.guides import Guide, GuideFolders, load_guides
from trimtab.engine.memory import MemoryPlan
from trimtab.engine.readings import Reading
from trimtab.engine.requests import BASE
from trimtab.engine.results import Generation, Score, Watch
from trimtab.engine.scheduler import Scheduler, Statistics
from trimtab.engine.scoring import make_reading, make_score
from trimtab.engine.stream import Stream
from trimtab.errors import ConfigError
from trimtab.models import Base, Text, encode_response, end_of_response_id, load_base
from trimtab.models.chat import needs_leading_space, stop_ids

Prompts = Text | Sequence[Text]
"""One prompt (text or chat turns), or a list of prompts."""
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
            prompts: one prompt, plain text or chat turns, or a list of prompts.
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
        guidances = _one_each(guidance, len(texts), "guidance")
        samplings = [make_sampling(s, **options) for s in _one_each(sampling, len(texts), "sampling")]
        answers = [
            answer
            for i, (text, g, s) in enumerate(zip(texts, guidances, samplings, strict=True))
            for answer in self.answers(text, guidance=g, sampling=s, index=i)
        ]
        self._write(answers, max_batch_size, progress)
        return [answer.result() for answer in answers]

    def stream(
        self, prompt: Text, *, guidance: GuidanceLike = None, sampling: SamplingLike = None, **options: Any
    ) -> Stream:
        """Write one answer piece by piece; the pieces join to what :meth:`generate` returns for this prompt.

        The answer is written only as far as its pieces are asked for, so that new guidance acts from the next piece.

        Args:
            prompt: plain text or chat turns.
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
        prompt: Text,
        *,
        guidance: GuidanceLike = None,
        sampling: SamplingLike = None,
        watch: Watch | None = None,
        index: int = 0,
    ) -> list[Answer]:
        """Return the n answers to a prompt, ready to be written by a :class:`Worker` and not begun.

        Renders and tokenises, which takes its time; may be called from any thread.

        Args:
            prompt: plain text or chat turns.
            guidance: as in :meth:`generate`.
            sampling: as in :meth:`generate`.
            watch: what is noted of each token.
            index: number of the prompt in a call; its answers are drawn with ``seed + index·n + k``.

        Raises:
            GuidanceError: as :meth:`generate`, and so are the others.
        """
        chosen = make_sampling(sampling)
        pulls = resolve(guidance, self._core.guides)
        streams = [BASE, *(j + 1 for j, pull in enumerate(pulls) if pull.weight != 0)]
        prompts = {stream: self._core.encode(prompt, stream) for stream in streams}
        seed = secrets.randbits(62) if chosen.seed is None else chosen.seed
        rule = self._driver.scheduler.config.acceptance
        seeds = [(seed + index * chosen.n + k) % 2**63 for k in range(chosen.n)]
        return [
            Answer(self._core, prompts, pulls, chosen, each, (index, k), rule, prompt=prompt, watch=watch)
            for k, each in enumerate(seeds)
        ]

    def score(
        self,
        prompt: Text,
        response: Text | Sequence[int],
        *,
        guidance: GuidanceLike = None,
        include_eos: bool = True,
        by_objective: bool = False,
    ) -> Score:
        """Score a given answer, token by token, by the base, by every guide and by their combination.

        Args:
            prompt: plain text or chat turns.
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
        reading = self.reading(prompt, response, guidance=guidance, include_eos=include_eos, by_objective=by_objective)
        self._driver.add(reading, tokens=len(reading.answer))
        self._driver.drive([reading])
        return make_score(self._core, reading, pulls, by_objective=by_objective)

    def reading(
        self,
        prompt: Text,
        response: Text | Sequence[int],
        *,
        guidance: GuidanceLike = None,
        include_eos: bool = True,
        by_objective: bool = False,
        watch: Watch | None = None,
    ) -> Reading:
        """Return what scores a given answer, ready to be read by a :class:`Worker` and not begun.

        Args:
            prompt: as in :meth:`score`.
            response: as in :meth:`score`.
            guidance: as in :meth:`score`.
            include_eos: as in :meth:`score`.
            by_objective: as in :meth:`score`.
            watch: what is noted of each token; the notes are those of answers that are written.

        Raises:
            DataError: the answer is empty; else as :meth:`generate`.
        """
        tokenizer = self._core.base.tokenizer
        if _is_ids(response):
            ids = [int(token) for token in cast("Sequence[int]", response)]
        else:
            text = cast("Text", response)
            ids = encode_response(tokenizer, text, leading_space=needs_leading_space(tokenizer, prompt))
            ids += [end_of_response_id(tokenizer, prompt)] if include_eos else []
        prompts = [self._core.encode(prompt, stream) for stream in range(len(self._core.guides) + 1)]
        reading = make_reading(
            self._core, prompts, ids, resolve(guidance, self._core.guides), by_objective=by_objective
        )
        reading.watch = watch
        return reading

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


def as_prompts(prompts: Prompts) -> list[Text]:
    """Return one prompt or many as a list of prompts.

    Raises:
        ConfigError: an item is neither text nor a list of chat turns.
    """
    if isinstance(prompts, str) or (prompts and all(isinstance(item, Mapping) for item in prompts)):
        return [cast("Text", prompts)]
    for item in prompts:
        turns = not isinstance(item, str) and isinstance(cast("Any", item), Sequence)
        if not isinstance(item, str) and not (turns and all(_is_message(turn) for turn in item)):
            raise ConfigError(
                "A prompt is a text or a list of chat turns such as {'role': 'user', 'content': 'Hi'}, not "
                f"{str(item)[:80]!r}."
            )
    return [item if isinstance(item, str) else list(item) for item in cast("Sequence[Text]", prompts)]


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _is_ids(response: Any) -> bool:
    return not isinstance(response, str) and len(response) > 0 and isinstance(response[0], int)


def _one_each(value: Any, count: int, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return [value] * count
    values = list(cast("Sequence[Any]", value))
    if len(values) != count:
        raise ConfigError(f"There are {count} prompts but {len(values)} entries in {name}: give one, or one each.")
    return values
