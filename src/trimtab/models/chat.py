"""From chat turns or plain text to token ids, the same way in training, ranking and decoding.

An answer is always tokenised apart from its prompt: that is how it is generated (the prompt's tokens are fixed
before the first answer token exists), so training sees exactly the token boundaries that decoding produces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, TypeGuard, cast

from trimtab.errors import DataError, ModelError


class Message(TypedDict):
    """One chat turn, as in TRL's conversational format."""

    role: str
    content: str


Text = str | list[Message]
"""Plain text (TRL's standard form) or a list of chat turns (TRL's conversational form)."""

Prompt = Text | Sequence[int]
"""A text, or the base's token ids of one, at least one."""

_ROLE_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


def is_ids(value: object) -> TypeGuard[Sequence[int]]:
    """Return whether a value is a sequence of token ids, at least one."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        return False
    return all(isinstance(item, int) and not isinstance(item, bool) for item in cast("Sequence[object]", value))


def check_ids(ids: Sequence[int], vocabulary_size: int, base: str) -> list[int]:
    """Return token ids that a base knows.

    Raises:
        DataError: one is not in its vocabulary.
    """
    found = [int(token) for token in ids]
    for token in found:
        if not 0 <= token < vocabulary_size:
            raise DataError(
                f"There is no token {token}: the vocabulary of {base!r} has ids from 0 to {vocabulary_size - 1}."
            )
    return found


def render_prompt(tokenizer: Any, prompt: Text, *, chat_template: str | None = None) -> str:
    r"""Return the text a model reads before it answers.

    Plain text stays as it is. Chat turns go through ``chat_template`` if given, else the tokenizer's own, and end
    with its generation prompt; a tokenizer without a template gets ``User: …\n\nAssistant:`` lines.

    Raises:
        DataError: the list of turns is empty, or the template refuses it.
    """
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise DataError("The prompt has no messages: give at least one user turn.")
    template = chat_template or getattr(tokenizer, "chat_template", None)
    if template is None:
        turns = [f"{_ROLE_NAMES.get(m['role'], m['role'].capitalize())}: {m['content']}" for m in prompt]
        return "\n\n".join([*turns, "Assistant:"])
    try:
        rendered = tokenizer.apply_chat_template(
            prompt, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # Jinja errors are of many classes; all mean the template refused these turns
        raise DataError(
            f"The chat template refuses these messages ({_one_line(error)}): check roles and order."
        ) from error
    return cast("str", rendered)


def encode_prompt(tokenizer: Any, prompt: Text, *, chat_template: str | None = None) -> list[int]:
    """Return the prompt's token ids, including a BOS token where the tokenizer adds one.

    A chat template writes its own BOS, so for templated turns the tokenizer's is left out.

    Raises:
        DataError: the prompt is empty, or the template refuses it.
    """
    text = render_prompt(tokenizer, prompt, chat_template=chat_template)
    templated = not isinstance(prompt, str) and bool(chat_template or getattr(tokenizer, "chat_template", None))
    ids = cast("list[int]", tokenizer(text, add_special_tokens=not templated)["input_ids"])
    if not ids and tokenizer.bos_token_id is not None:
        ids = [int(tokenizer.bos_token_id)]
    if not ids:
        raise DataError("The prompt is empty: give the model at least one token to continue.")
    return ids


def encode_response(tokenizer: Any, response: Text, *, leading_space: bool = False) -> list[int]:
    """Return an answer's token ids, without BOS and without EOS.

    Args:
        tokenizer: a transformers tokenizer.
        response: plain text, or chat turns whose contents are joined by a newline.
        leading_space: put a space first if there is none, as after ``Assistant:`` where no template is used.
    """
    text = response if isinstance(response, str) else "\n".join(turn["content"] for turn in response)
    if leading_space and text and not text[0].isspace():
        text = " " + text
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])


def needs_leading_space(tokenizer: Any, prompt: Text, *, chat_template: str | None = None) -> bool:
    """Return whether an answer to ``prompt`` starts after ``Assistant:`` (chat turns, but no template)."""
    return not isinstance(prompt, str) and not (chat_template or getattr(tokenizer, "chat_template", None))


def end_of_response_id(tokenizer: Any, prompt: Text, *, chat_template: str | None = None) -> int:
    """Return the token that ends an answer: the template's end of turn for chats, else the tokenizer's EOS.

    Some tokenizers name another EOS than the one their template closes a turn with; the guide must learn the
    token that decoding stops on, so it is read off the template itself.

    Raises:
        ModelError: the tokenizer has no EOS token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError("The tokenizer has no EOS token, so an answer could never end: set tokenizer.eos_token.")
    template = chat_template or getattr(tokenizer, "chat_template", None)
    if isinstance(prompt, str) or template is None:
        return int(eos)
    marker = "response"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
    try:
        text = cast("str", tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))
    except Exception:  # the template refuses a plain exchange: nothing can be read off it
        return int(eos)
    tail = tokenizer(text[text.rfind(marker) + len(marker) :], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return next((int(token) for token in tail if token in special), int(eos))


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every token id that ends an answer of this model: config, generation config, tokenizer, template."""
    found: set[int] = set()
    for source in (model.generation_config, model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        found.update([int(value)] if isinstance(value, int) else [int(v) for v in value or []])
    if tokenizer.eos_token_id is not None:
        found.add(end_of_response_id(tokenizer, [{"role": "user", "content": ""}]))
    return frozenset(found)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
