"""The loop of transformers' ``generate``, with the engine's combined logits in place of the model's own.

Everything that transformers derives from a generation config, it has put into logits processors and stopping criteria
before it calls a ``custom_generate``; those that a user gave stand among them. The loop applies them all, as they are,
to the whole batch, and draws from torch's global generator as transformers does. So each option means exactly what it
means without guides, and nothing has to be translated; what cannot be meant under guidance is refused.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.core import Core
from trimtab.engine.driver import Driver
from trimtab.engine.guidance import Pull
from trimtab.engine.lockstep import Batch
from trimtab.engine.spans import PAGE
from trimtab.errors import ConfigError

log = logging.getLogger("trimtab")

_OURS = "generate(custom_generate=…)"
# Arguments of the model's forward that transformers sets up itself and that the engine does in its own way.
_PREPARED = {"attention_mask", "position_ids", "cache_position", "use_cache", "logits_to_keep", "return_dict"}
_CACHES = ("past_key_values", "cache_params")


@dataclass(frozen=True)
class Asked:
    """What one call of ``generate`` asks for, as transformers prepared it.

    Attributes:
        input_ids: (B, T), padded on the left.
        prompts: B prompts without padding.
        processors: from logits (B, V) to logits that tokens are drawn from.
        criteria: whether answers end, (B,) bool.
        config: the generation config.
        streamer: gets each step's (B,) tokens.
    """

    input_ids: Tensor
    prompts: Sequence[Sequence[int]]
    processors: Any
    criteria: Any
    config: Any
    streamer: Any | None


def arguments_of_generate(method: object) -> dict[str, Any]:
    """Return the arguments of the ``generate`` call that is about to use ``method`` as its ``custom_generate``.

    transformers (5.3 to 5.23 at least) does not hand its own named arguments on to a callable: a streamer would get
    the prompt and then wait forever, an assistant model would be ignored. They can only be read off its frame.
    """
    frame = inspect.currentframe()
    try:
        while frame is not None:
            if frame.f_code.co_name == "generate" and frame.f_locals.get("custom_generate") is method:
                return dict(frame.f_locals)
            frame = frame.f_back
        return {}
    finally:
        del frame


def check_arguments(model: Any, config: Any, processors: Any, given: Mapping[str, Any], model_kwargs: Any) -> None:
    """Refuse what has no meaning here; none of it is ever ignored.

    Args:
        model: the transformers model.
        config: the generation config.
        processors: the prepared logits processors.
        given: the arguments of ``generate`` itself.
        model_kwargs: what transformers would hand to the model's forward.

    Raises:
        ConfigError: names the option.
    """
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor
    from transformers.generation.configuration_utils import GenerationMode

    if model.config.is_encoder_decoder:
        raise ConfigError(f"{type(model).__name__} is an encoder-decoder: trimtab steers causal language models.")
    mode = config.get_generation_mode(given.get("assistant_model"))
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        name = mode.value.replace("_", " ")
        raise ConfigError(f"{_OURS} writes greedily or by sampling, not by {name}: leave the options for that away.")
    if any(isinstance(p, UnbatchedClassifierFreeGuidanceLogitsProcessor) for p in processors):
        raise ConfigError(
            "guidance_scale is transformers' guidance by a second, unconditional prompt, which trimtab does not run: "
            "weigh the guides with generate(guidance=…)."
        )
    if given.get("synced_gpus"):
        raise ConfigError(f"{_OURS} runs on one device: leave synced_gpus away.")
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise ConfigError(f"{_OURS} gives scores and logits, but not what {name} asks for: leave it away.")
    _check_inputs(given, model_kwargs)


def _check_inputs(given: Mapping[str, Any], model_kwargs: Mapping[str, Any]) -> None:
    own: Mapping[str, Any] = given.get("kwargs") or {}
    for name in _CACHES:
        cache = model_kwargs.get(name)
        if own.get(name) is not None or (cache is not None and cache.get_seq_length() > 0):
            raise ConfigError(
                f"{_OURS} keeps keys and values of its own, and finds beginnings that it has read before by itself: "
                f"give the whole text as input_ids and leave {name} away."
            )
    for name, value in model_kwargs.items():
        if value is not None and name not in _PREPARED and name not in _CACHES:
            raise ConfigError(f"{_OURS} reads input_ids and attention_mask only, and cannot pass {name!r} on.")


def read_prompts(input_ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> list[list[int]]:
    """Return the prompts of a batch that is padded on the left.

    Args:
        input_ids: (B, T).
        mask: (B, T), 0 at padding; ``None`` where nothing is padded.
        positions: (B, T) position of each token, where transformers or the caller gave them.

    Raises:
        ConfigError: padding stands elsewhere, a prompt is empty, or the positions are not 0, 1, 2, ….
    """
    rows: list[list[int]] = input_ids.tolist()
    seen: list[list[int]] = [[1] * len(row) for row in rows] if mask is None else (mask != 0).long().tolist()
    places = None if positions is None or positions.shape != input_ids.shape else positions.tolist()
    prompts: list[list[int]] = []
    for i, (row, marks) in enumerate(zip(rows, seen, strict=True)):
        length = sum(marks)
        start = len(row) - length
        if length == 0:
            raise ConfigError(f"Row {i} of input_ids is empty: give the model at least one token to continue.")
        if any(marks[:start]):
            raise ConfigError(
                f"The attention_mask of row {i} has zeros that are not on the left, but an answer continues the last "
                "token: set tokenizer.padding_side = 'left'."
            )
        if places is not None and places[i][start:] != list(range(length)):
            raise ConfigError(f"The position_ids of row {i} do not count its tokens from 0: leave position_ids away.")
        prompts.append(row[start:])
    return prompts


def write(core: Core, driver: Driver, asked: Asked, pulls: Sequence[tuple[Pull, ...]]) -> Any:
    """Write the answers of a batch; return what ``generate`` returns.

    Args:
        core: what is loaded.
        driver: does the steps.
        asked: what is asked for.
        pulls: for each of the B rows, what it asks of each guide.

    Raises:
        ConfigError: the config gives an end-of-sequence token but nothing to pad finished answers with.
        PromptTooLongError: a prompt fills a context, or the batch does not fit the memory for keys and values.
        NumericalError: a model gave NaN.
    """
    ids, width = asked.input_ids, asked.input_ids.shape[1]
    batch = Batch(core, asked.prompts, pulls)
    longest = asked.criteria.max_length
    limit = batch.room if longest is None else min(batch.room, max(1, longest - width))
    pad = _padding(asked)
    _read_beginnings(core, driver, asked.prompts, pulls)
    driver.add(batch, tokens=limit)
    kept = bool(asked.config.return_dict_in_generate)
    scores: list[Tensor] | None = [] if kept and asked.config.output_scores else None
    logits: list[Tensor] | None = [] if kept and asked.config.output_logits else None
    going = torch.ones(len(asked.prompts), dtype=torch.long, device=ids.device)
    try:
        while True:
            z = _next_logits(driver, batch, len(asked.prompts)).to(ids.device)
            if logits is not None:
                logits.append(z.clone())
            z = asked.processors(ids, z)
            if scores is not None:
                scores.append(z)
            chosen = _choose(z, sample=asked.config.do_sample)
            if pad is not None:
                chosen = torch.where(going == 1, chosen, pad)
            ids = torch.cat([ids, chosen.unsqueeze(-1)], dim=-1)
            # As without guides, criteria see the scores only where they are to be returned.
            ended = asked.criteria(ids, None if scores is None else tuple(scores))
            going = going & ~ended
            if asked.streamer is not None:
                asked.streamer.put(chosen.cpu())
            tokens, unfinished = torch.stack([chosen, going]).tolist()
            if not any(unfinished):
                break
            if ids.shape[1] - width >= limit:
                log.warning("The answers end after %d tokens, where a context ends.", limit)
                break
            # Without an end-of-sequence token transformers goes on with every answer until all are finished.
            stay = unfinished if pad is not None else [True] * len(unfinished)
            if batch.add(tokens, stay):
                driver.replace_rows(batch, batch.rows_going_on)
    finally:
        batch.cancelled = True
    if asked.streamer is not None:
        asked.streamer.end()
    return _result(asked, ids, scores, logits)


def _padding(asked: Asked) -> Tensor | None:
    """Return the token that follows finished answers; ``None`` where answers do not end by a token."""
    if not any(hasattr(criterion, "eos_token_id") for criterion in asked.criteria):
        return None
    token = getattr(asked.config, "_pad_token_tensor", None)
    token = asked.config.pad_token_id if token is None else token
    if token is None:
        raise ConfigError("Answers end by a token, but there is none to pad them with: set pad_token_id.")
    return torch.as_tensor(token, device=asked.input_ids.device, dtype=torch.long)


def _read_beginnings(core: Core, driver: Driver, prompts: Sequence[Sequence[int]], pulls: Sequence[Any]) -> None:
    """Read prompts that occur several times once, so that the rows of the batch find them in the cache."""
    if not driver.scheduler.config.enable_prefix_caching:
        return
    different = {(tuple(prompt), asked): i for i, (prompt, asked) in enumerate(zip(prompts, pulls, strict=True))}
    if len(different) == len(prompts) or max(len(prompt) for prompt in prompts) <= PAGE:
        return
    first = Batch(core, [prompts[i] for i in different.values()], [pulls[i] for i in different.values()])
    driver.add(first, tokens=1)
    try:
        _next_logits(driver, first, len(different))
    finally:
        first.cancelled = True


def _next_logits(driver: Driver, batch: Batch, size: int) -> Tensor:
    """Return z', (B, V) float32, zeros for answers that have left."""
    batch.resume()
    while batch.logits is None:
        driver.step([batch])
    if batch.error is not None:
        raise batch.error
    if len(batch.lines) == size:
        return batch.logits
    z = batch.logits.new_zeros((size, batch.logits.shape[-1]))
    z[torch.tensor(list(batch.lines), device=z.device)] = batch.logits
    return z


def _choose(z: Tensor, *, sample: bool) -> Tensor:
    """Return (B,) tokens."""
    if sample:
        return torch.multinomial(z.softmax(dim=-1), num_samples=1).squeeze(-1)
    return z.argmax(dim=-1)


def _result(asked: Asked, ids: Tensor, scores: list[Tensor] | None, logits: list[Tensor] | None) -> Any:
    if not asked.config.return_dict_in_generate:
        return ids
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    made: dict[str, Any] = {"sequences": ids}
    made |= {} if scores is None else {"scores": tuple(scores)}
    made |= {} if logits is None else {"logits": tuple(logits)}
    return GenerateDecoderOnlyOutput(**made)
