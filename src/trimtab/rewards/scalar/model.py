"""The network of a scalar reward model: transformers' sequence classifier with one output, on a backbone of choice."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from trimtab.errors import ModelError
from trimtab.models import Base, Text, load_tokenizer, resolve_folder
from trimtab.models.loading import resolve_device, resolve_dtype, weights_fingerprint
from trimtab.rewards.encoding import EncodedPair, PairEncoder
from trimtab.rewards.scalar.sequences import TokenSequence, longest_input


def load_backbone(
    name: str, *, revision: str | None = None, dtype: str = "auto", device: str = "auto"
) -> tuple[Base, tuple[str, ...]]:
    """Load a model as a sequence classifier of one output that has no opinion yet: its last layer is zero.

    A causal model's answer is read at its last token, an encoder's at its first (through its pooler).

    Args:
        name: ``"smollm2"``, ``"minilm"`` (the packaged sentence encoder), a local folder, or a hub id.
        revision: hub revision.
        dtype: as in :func:`trimtab.models.load_base`.
        device: likewise.

    Returns:
        The model (as a :class:`Base`, whose fingerprint leaves the head out) and the modules that are not in its
        files: the head.

    Raises:
        ModelError: the model is missing or unsafe, or cannot be a sequence classifier.
    """
    from torch import nn
    from transformers import AutoModelForSequenceClassification

    folder = resolve_folder(name, revision=revision)
    tokenizer = load_tokenizer(name, revision=revision)
    try:
        with _without_load_report():
            found: Any = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=1,
                dtype=resolve_dtype(dtype, device),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many classes here; each means the folder cannot be used
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{name!r} cannot carry a scalar head: {reason}") from error
    model, loading = found
    fresh = tuple(sorted({key.rpartition(".")[0] for key in loading["missing_keys"]}))
    for path in fresh:
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear) and module.out_features == 1:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    _end_with_a_token(tokenizer, name)
    model.config.pad_token_id = choose_padding(model.config, tokenizer, name)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    # As it lies on disk: the classifier that is read with must be built on the same backbone.
    print_of = weights_fingerprint(model.base_model)
    model.eval().requires_grad_(False)
    base = Base(model.to(resolve_device(device)), tokenizer, name, revision, folder, None, loaded_fingerprint=print_of)
    return base, fresh


@contextmanager
def _without_load_report() -> Generator[None]:
    """Keep transformers from printing what is missing: the head always is, and it is asked for by name."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _end_with_a_token(tokenizer: Any, name: str) -> None:
    """Let an encoder's answers end as it separates texts: [CLS] prompt [SEP] answer [SEP]."""
    if tokenizer.eos_token_id is None:
        if tokenizer.sep_token_id is None:
            raise ModelError(f"The tokenizer of {name!r} has no token to end an answer with: set its eos_token.")
        tokenizer.eos_token = tokenizer.sep_token


def choose_padding(config: Any, tokenizer: Any, name: str) -> int:
    """Return a padding token that ends no answer: transformers reads a sequence at its last token that is not it.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
    own = [getattr(config, "pad_token_id", None), tokenizer.pad_token_id, tokenizer.unk_token_id]
    turns = set(tokenizer(getattr(tokenizer, "chat_template", None) or "", add_special_tokens=False)["input_ids"])
    spare = [i for i in sorted(tokenizer.all_special_ids) if i not in turns]
    for token in [*own, *spare]:
        if token is not None and token >= 0 and token not in ends:
            return int(token)
    raise ModelError(
        f"The tokenizer of {name!r} has no token to pad with but the one that ends answers: set another pad_token."
    )


def uses_segments(base: Base) -> bool:
    """Return whether the model tells prompt and answer apart by token types."""
    return int(getattr(base.model.config, "type_vocab_size", 0) or 0) > 1


def limits(base: Base, max_length: int, max_prompt_length: int) -> tuple[int, int]:
    """Return the lengths that a model of a shorter context can keep; its prompt then gets half of it at most."""
    room = longest_input(base.model, base.tokenizer)
    if room >= max_length:
        return max_length, max_prompt_length
    return room, min(max_prompt_length, room // 2)


class ScalarEncoder(PairEncoder):
    """Encodes pairs and single answers as a scalar reward model reads them, the same way in training and in scoring."""

    def __init__(
        self, base: Base, *, chat_template: str | None, segments: bool, max_length: int, max_prompt_length: int
    ) -> None:
        super().__init__(
            base.tokenizer, chat_template=chat_template, max_length=max_length, max_prompt_length=max_prompt_length
        )
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self._first = base.tokenizer.cls_token_id
        self._segments = segments

    def encode(self, prompt: Text, response_a: Text, response_b: Text, *, id: str = "") -> EncodedPair:
        """Return the pair's token ids; a prompt that lost its beginning still starts with an encoder's first token."""
        pair = super().encode(prompt, response_a, response_b, id=id)
        if pair.prompt_truncated and self._first is not None:
            pair.prompt_ids[0] = int(self._first)
        return pair

    def __call__(self, prompt: Text, answer: str) -> TokenSequence:
        """Return the sequence of one answer."""
        return self.sequences(self.encode(prompt, answer, answer))[0]

    def sequences(self, pair: EncodedPair) -> tuple[TokenSequence, TokenSequence]:
        """Return a pair's two sequences."""
        return self._one(pair, pair.a_ids, pair.a_truncated), self._one(pair, pair.b_ids, pair.b_truncated)

    def _one(self, pair: EncodedPair, answer: list[int], cut: bool) -> TokenSequence:
        types = [0] * len(pair.prompt_ids) + [1] * len(answer) if self._segments else None
        return TokenSequence([*pair.prompt_ids, *answer], types, cut or pair.prompt_truncated)
