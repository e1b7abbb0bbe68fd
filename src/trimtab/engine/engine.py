"""The engine: a base and its guides, ready to write, stream and score."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from trimtab.decoding.config import Sampling, make_sampling
from trimtab.engine.batch import Answer, Batch, Core, new_answer
from trimtab.engine.guidance import GuidanceLike, Pull, resolve
from trimtab.engine.guides import Guide, GuideFolders, load_guides
from trimtab.engine.results import Generation, Score
from trimtab.engine.scoring import score_answer
from trimtab.errors import ConfigError, PromptTooLongError
from trimtab.models import (
    Base,
    Text,
    encode_prompt,
    encode_response,
    end_of_response_id,
    load_base,
)
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
            read, of the base and of models that guides bring along; adapters stay in ``dtype``. A :class:`Base` is
            used as it was loaded.

    Raises:
        ModelError: the base cannot be loaded.
        ConfigError: an unknown quantization, or torchao is not installed.
        GuideError: a guide folder is missing, damaged, unsafe or for another base.
        VocabularyMismatchError: base and guide do not share a tokenizer.
    """
    options: Any = {"revision": revision, "dtype": dtype, "device": device, "quantization": quantization}
    loaded = base if isinstance(base, Base) else load_base(str(base), **options)
    folders = [guides] if isinstance(guides, (str, Path)) else guides
    used = str(loaded.model.dtype).removeprefix("torch.")
    backbones, ready = load_guides(
        loaded, folders, guide_bases or {}, dtype=used, device=str(loaded.device), quantization=loaded.quantization
    )
    return Engine(Core(loaded, backbones, ready, stop_ids(loaded.model, loaded.tokenizer)))


class Engine:
    """A base and its guides. Made by :func:`load`; also a context manager."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._closed = False

    @property
    def base(self) -> Base:
        """The base model."""
        return self._core.base

    @property
    def guides(self) -> dict[str, Guide]:
        """The guides by name."""
        return {guide.name: guide for guide in self._core.guides}

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
        it does not depend on the other prompts of the call (up to rounding: a batch of another shape may round its
        logits differently, which can turn a near-tie).

        Args:
            prompts: one prompt, plain text or chat turns, or a list of prompts.
            guidance: ``None`` for each guide's recommended weight, a strength, weights by objective or guide (what
                they do not name has weight 0), or a :class:`Guidance`; or a list with one of these for each prompt.
            sampling: a :class:`Sampling` or a mapping with its fields; or a list with one for each prompt.
            max_batch_size: most answers written at a time; more are done in turns.
            progress: called with (answers done, answers in all) whenever an answer is finished.
            **options: single fields of :class:`Sampling`, over ``sampling``: ``generate(p, temperature=0)``.

        Returns:
            n answers a prompt, in the order of the prompts.

        Raises:
            GuidanceError: unknown guide, NaN weight and the like.
            ConfigError: unknown or impossible sampling option.
            PromptTooLongError: a prompt fills a context.
            NumericalError: a model gave NaN.
        """
        self._check_open()
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}: use 1 or more.")
        texts = as_prompts(prompts)
        guidances = _one_each(guidance, len(texts), "guidance")
        samplings = [make_sampling(s, **options) for s in _one_each(sampling, len(texts), "sampling")]
        groups = [
            self._answers(i, text, resolve(g, self._core.guides), s)
            for i, (text, g, s) in enumerate(zip(texts, guidances, samplings, strict=True))
        ]
        total = sum(len(group) for group in groups)
        done = 0
        for chunk in _chunks(groups, max_batch_size):
            batch = Batch(self._core, chunk)
            while batch.active:
                ended = sum(1 for answer, _ in batch.advance() if answer.finish_reason)
                if ended and progress:
                    done += ended
                    progress(done, total)
        return [answer.result(self._core.guides) for group in groups for answer in group]

    def stream(
        self, prompt: Text, *, guidance: GuidanceLike = None, sampling: SamplingLike = None, **options: Any
    ) -> Stream:
        """Write one answer piece by piece; the pieces join to what :meth:`generate` returns for this prompt.

        Args:
            prompt: plain text or chat turns.
            guidance: as in :meth:`generate`; :meth:`Stream.set_guidance` changes it while the answer is written.
            sampling: as in :meth:`generate`, with n = 1.
            **options: single fields of :class:`Sampling`.

        Raises:
            ConfigError: n is not 1; else as :meth:`generate`.
        """
        self._check_open()
        chosen = make_sampling(sampling, **options)
        if chosen.n != 1:
            raise ConfigError(f"A stream writes one answer, but n is {chosen.n}: use generate for several.")
        pulls = resolve(guidance, self._core.guides)
        return Stream(self._core, prompt, self._answers(0, prompt, pulls, chosen)[0])

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
        self._check_open()
        tokenizer = self._core.base.tokenizer
        if _is_ids(response):
            ids = [int(token) for token in cast("Sequence[int]", response)]
        else:
            text = cast("Text", response)
            ids = encode_response(tokenizer, text, leading_space=needs_leading_space(tokenizer, prompt))
            ids += [end_of_response_id(tokenizer, prompt)] if include_eos else []
        prompts = encode_streams(self._core, prompt, [True] * len(self._core.guides))
        pulls = resolve(guidance, self._core.guides)
        return score_answer(self._core, prompts, ids, pulls, by_objective=by_objective)

    def close(self) -> None:
        """Take the guides' hooks off the base, which is then as it was loaded. The engine cannot be used after."""
        for backbone in self._core.backbones:
            backbone.adapters.remove()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("This engine is closed: load another.")

    def _answers(self, i: int, prompt: Text, pulls: tuple[Pull, ...], sampling: Sampling) -> list[Answer]:
        prompts = encode_streams(self._core, prompt, [pull.weight != 0 for pull in pulls])
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        return [
            new_answer(
                self._core,
                prompts=prompts,
                pulls=pulls,
                sampling=sampling,
                seed=(seed + i * sampling.n + k) % 2**63,
                prompt_index=i,
                sample_index=k,
            )
            for k in range(sampling.n)
        ]


class Stream(Iterator[str]):
    """An answer being written: iterate for its pieces of text.

    Attributes:
        result: the whole answer, once it is finished; before that ``None``.
    """

    def __init__(self, core: Core, prompt: Text, answer: Answer) -> None:
        self._core = core
        self._prompt = prompt
        self._answer = answer
        self._batch: Batch | None = None
        self.result: Generation | None = None

    def __next__(self) -> str:
        while self.result is None:
            if self._batch is None:
                self._batch = Batch(self._core, [[self._answer]])
            piece = self._batch.advance()[0][1]
            if self._answer.finish_reason is not None:
                self.result = self._answer.result(self._core.guides)
            if piece:
                return piece
        raise StopIteration

    @property
    def token_ids(self) -> list[int]:
        """The tokens chosen so far."""
        return list(self._answer.tokens)

    def set_guidance(self, guidance: GuidanceLike) -> None:
        """Change weights, preferences and strength from the next token on, without reloading anything.

        A guide that had no row so far (its weight was 0 from the start) reads prompt and answer once, and so does one
        whose preference changes: what it has cached was read at the old one.

        Raises:
            GuidanceError: as in :meth:`Engine.generate`; the old guidance then stays.
        """
        pulls = resolve(guidance, self._core.guides)
        answer = self._answer
        joins = [pull.weight != 0 and answer.prompts[j + 1] is None for j, pull in enumerate(pulls)]
        if any(joins):
            wanted = [has or joins[j] for j, has in enumerate(ids is not None for ids in answer.prompts[1:])]
            prompts = encode_streams(self._core, self._prompt, wanted)
            limit = min(answer.sampling.max_tokens, self._core.room(prompts))
            self._check_can_join(joins, limit)
            answer.prompts, answer.limit = prompts, limit
        answer.pulls = pulls
        if self._batch is not None:
            self._batch.refresh()

    def _check_can_join(self, joins: Sequence[bool], limit: int) -> None:
        """Refuse before anything is changed, so that the answer can go on as it was."""
        tokens = self._answer.tokens
        if limit <= len(tokens) and self.result is None:
            raise PromptTooLongError(
                f"A guide that joins now would have to read prompt and answer, and its context ends {limit} tokens "
                f"into the answer, which has {len(tokens)} already."
            )
        for guide, join in zip(self._core.guides, joins, strict=True):
            for token in tokens if join else ():
                guide.own_id(token)


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


def encode_streams(core: Core, prompt: Text, wanted: Sequence[bool]) -> list[list[int] | None]:
    """Return the prompt's ids for the base and for each wanted guide, each with its own template."""
    ids: list[list[int] | None] = [encode_prompt(core.base.tokenizer, prompt)]
    ids += [guide.encode_prompt(prompt) if want else None for guide, want in zip(core.guides, wanted, strict=True)]
    return ids


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


def _chunks(groups: Sequence[list[Answer]], size: int) -> Iterator[list[list[Answer]]]:
    """Split into batches of at most ``size`` answers; prompts of like length go together, so little is padded."""
    ordered = sorted(groups, key=lambda group: max(len(ids) for ids in group[0].prompts if ids is not None))
    pieces = [group[at : at + size] for group in ordered for at in range(0, len(group), size)]
    chunk: list[list[Answer]] = []
    for piece in pieces:
        if chunk and sum(map(len, chunk)) + len(piece) > size:
            yield chunk
            chunk = []
        chunk.append(piece)
    if chunk:
        yield chunk
