"""Prompt and answer as one sequence of token ids, and the one number a sequence classifier makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from trimtab.errors import ModelError
from trimtab.models.chat import Message, Text, render_prompt
from trimtab.models.loading import context_length

_TOKENS_A_FORWARD = 8192
_MOST_A_FORWARD = 64


class TokenSequence(NamedTuple):
    """One prompt with one answer.

    Attributes:
        ids: token ids.
        types: token types for encoders that tell a first text (0) from a second (1); ``None`` for other models.
        cut: whether something was left out to make it fit.
    """

    ids: list[int]
    types: list[int] | None = None
    cut: bool = False


Encode = Callable[[Text, str], TokenSequence]
"""Prompt and answer to one sequence."""


def padded(sequences: Sequence[TokenSequence], pad: int) -> dict[str, Tensor]:
    """Return the tensors of one forward, (N, L), padded on the right: ids, mask, and types where there are any."""
    longest = max(len(s.ids) for s in sequences)
    shape = (len(sequences), longest)
    ids, mask, types = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long), torch.zeros(shape).long()
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        if sequence.types is not None:
            types[row, : len(sequence.ids)] = torch.tensor(sequence.types)
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch | ({"token_type_ids": types} if sequences[0].types is not None else {})


def reward_of(logits: Tensor) -> Tensor:
    """Return a classifier's reward, (N,) float32: its one logit, or of two the log-odds of the second, in nats.

    Args:
        logits: (N, 1) or (N, 2).

    Raises:
        ModelError: it has another number of outputs.
    """
    wide = logits.float()
    if wide.shape[-1] == 1:
        return wide.squeeze(-1)
    if wide.shape[-1] == 2:
        return wide[:, 1] - wide[:, 0]
    raise ModelError(
        f"This classifier has {wide.shape[-1]} outputs, and a reward is one number: use a reward model (num_labels 1), "
        "or a classifier of two classes, the second the better."
    )


def rewards_of(model: Any, sequences: Sequence[TokenSequence], pad: int) -> Tensor:
    """Return the reward of each sequence without gradients, (N,) float32 on the CPU; like lengths go together."""
    result = torch.zeros(len(sequences))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for rows in _batches(order, sequences):
                batch = padded([sequences[i] for i in rows], pad)
                logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits
                result[rows] = reward_of(logits).cpu()
    finally:
        model.train(was_training)
    return result


def _batches(order: Sequence[int], sequences: Sequence[TokenSequence]) -> list[list[int]]:
    """Part the rows, shortest first, into forwards of a bounded number of tokens, padding included."""
    batches: list[list[int]] = []
    for i in order:
        width = len(sequences[i].ids)
        fits = batches and (len(batches[-1]) + 1) * width <= _TOKENS_A_FORWARD and len(batches[-1]) < _MOST_A_FORWARD
        if fits:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def longest_input(model: Any, tokenizer: Any) -> int:
    """Return the most tokens that a model and its tokenizer take."""
    return min(context_length(model.config), int(min(tokenizer.model_max_length, 2**31)))


class ConversationEncoder:
    """Writes prompt and answer as a foreign reward model reads them.

    With a chat template: the whole conversation through it (a plain prompt becomes a user's turn). Without one: an
    encoder's pair of texts, else one text after the other and the end token. What does not fit loses the prompt's
    beginning.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max = max_length
        self._pairs = tokenizer.sep_token_id is not None and tokenizer.cls_token_id is not None

    def __call__(self, prompt: Text, answer: str) -> TokenSequence:
        """Return the sequence of ``answer`` to ``prompt``."""
        if getattr(self._tokenizer, "chat_template", None):
            return self._templated(prompt, answer)
        return self._pair(prompt, answer) if self._pairs else self._joined(prompt, answer)

    def _templated(self, prompt: Text, answer: str) -> TokenSequence:
        turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        turns.append({"role": "assistant", "content": answer})
        text = cast("str", self._tokenizer.apply_chat_template(turns, tokenize=False))
        ids = self._ids(text, add_special_tokens=False)
        return TokenSequence(ids[-self._max :], None, len(ids) > self._max)

    def _pair(self, prompt: Text, answer: str) -> TokenSequence:
        first = _question(self._tokenizer, prompt)
        whole = self._tokenizer(first, answer)
        cut = len(whole["input_ids"]) > self._max
        if cut:
            self._tokenizer.truncation_side = "left"
            room = self._max - len(self._ids(answer, add_special_tokens=False))
            way = "only_first" if room > 4 else "longest_first"
            whole = self._tokenizer(first, answer, truncation=way, max_length=self._max)
        types = whole.get("token_type_ids")
        return TokenSequence(list(whole["input_ids"]), None if types is None else list(types), cut)

    def _joined(self, prompt: Text, answer: str) -> TokenSequence:
        text = render_prompt(self._tokenizer, prompt)
        space = "" if isinstance(prompt, str) else " "
        ids = self._ids(text) + self._ids(space + answer, add_special_tokens=False)
        ids += [] if self._tokenizer.eos_token_id is None else [int(self._tokenizer.eos_token_id)]
        return TokenSequence(ids[-self._max :], None, len(ids) > self._max)

    def _ids(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return cast("list[int]", self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


def _question(tokenizer: Any, prompt: Text) -> str:
    """Return a prompt as an encoder reads it: a lone question as it is, a conversation with its roles."""
    if not isinstance(prompt, str) and len(prompt) == 1:
        return prompt[0]["content"]
    return render_prompt(tokenizer, prompt)
