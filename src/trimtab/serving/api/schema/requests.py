"""The bodies of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from trimtab.decoding.config import MAX_STOPS, Sampling
from trimtab.engine.guidance import Guidance
from trimtab.models import Text
from trimtab.serving.api.schema.fields import (
    MAX_IDS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_PROMPTS,
    MAX_TEXT,
    MAX_TOKEN_ID,
    MAX_TOKENS,
    Biases,
    Content,
    Name,
    Stops,
    Strict,
    TokenId,
    check_text,
    is_token_ids,
    refuse_unsupported,
    refused,
    unsupported_fields,
)

Weights = Annotated[
    dict[Name, Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]],
    Field(max_length=64, description="Objective, guide or GUIDE/OBJECTIVE → weight; what is not named has weight 0."),
]
Strength = Annotated[
    float, Field(ge=-1e6, le=1e6, allow_inf_nan=False, description="Multiplies every weight; 0 is the base, exactly.")
]


class GuidanceChange(Strict):
    """New guidance for an answer that is being written; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    weights: Weights | None = None
    strength: Strength | None = None

    def over(self, before: Guidance) -> Guidance:
        """Return the guidance with what is given here replaced, the weights as a whole."""
        given = {name: getattr(self, name) for name in ("weights", "strength")}
        return before.model_copy(update={name: value for name, value in given.items() if value is not None})


class GuidanceRequest(GuidanceChange):
    """What an answer is steered towards, and what is reported of it."""

    rewards: bool | None = Field(None, description="Report for each token what base, guides and objectives think.")
    top: int | None = Field(
        None, ge=0, le=100, description="How many of the likeliest tokens to report for each token."
    )


class StreamOptions(Strict):
    """What a stream says beside the answer."""

    include_usage: bool | None = Field(None, description="Send the usage in a last chunk without choices.")


# name → values that change nothing; any other would change the answer, and this server cannot honour it
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "structured_outputs": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "truncate_prompt_tokens": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "logits_processors": ([],),
}
_PREFIXES = ("guided_",)
_CHAT_ONLY: Mapping[str, tuple[Any, ...]] = {**UNSUPPORTED, "echo": (False,)}


class Drawing(Strict):
    """How answers are drawn; common to chat and completions."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED

    model: Name | None = Field(None, description="The served model, or NAME:plain or NAME:PRESET. Default: the first.")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Keep the likeliest tokens that reach this probability.")
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKEN_ID, description="Keep so many tokens; 0 and -1 keep all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Keep tokens this likely, relative to the likeliest.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="Above 1: repeat less.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Taken off tokens the answer has.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Likewise, for each time it has them.")
    logit_bias: Biases = Field(None, description="Token id → what is added to its logit, −100 to 100.")
    n: int | None = Field(None, ge=1, le=128, description="Answers to each prompt.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Same seed, same request: same answer.")
    stop: Stops = Field(None, description="Texts before which the answer ends.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Tokens that end the answer."
    )
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="Fewest tokens before the answer may end.")
    ignore_eos: bool | None = Field(None, description="Go on past the end-of-answer token.")
    stream: bool | None = Field(None, description="Send the answer in pieces, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    return_token_ids: bool | None = Field(None, description="Give the ids of prompt and answer too.")
    user: Name | None = Field(None, description="Accepted, and not used.")
    guidance: GuidanceRequest | None = Field(
        None, description="What to steer towards; over what the model's name says."
    )

    @model_validator(mode="before")
    @classmethod
    def _only_supported(cls, value: Any) -> Any:
        return refuse_unsupported(cls.unsupported, _PREFIXES, value)

    @model_validator(mode="after")
    def _stream_options_belong_to_streams(self) -> Drawing:
        if self.stream_options is not None and not self.stream:
            raise refused("is only for streams: set stream to true.", at="stream_options")
        return self

    def sampling(self, max_tokens: int) -> Sampling:
        """Return how to draw."""
        names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        names += ("n", "seed", "stop", "min_tokens", "ignore_eos")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given |= {"top_k": self.top_k if self.top_k != -1 else 0, "max_tokens": max_tokens}
        if self.logit_bias:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        if self.stop_token_ids:
            given["stop_token_ids"] = tuple(self.stop_token_ids)
        if given["stop"] is not None:
            given["stop"] = tuple(given["stop"])
        return Sampling(**{name: value for name, value in given.items() if value is not None})


def _content(value: Any) -> Any:
    """Return a message's content as one text: a text, or the texts of its parts."""
    if not isinstance(value, list):
        return value
    parts = cast("list[Any]", value)
    if not 1 <= len(parts) <= MAX_PARTS:
        raise refused(f"has {len(parts)} parts: send 1 to {MAX_PARTS}.")
    texts: list[str] = []
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            raise refused(
                'is not a part: a part is {"type": "text", "text": …}.'.replace("{", "").replace("}", ""), at=str(index)
            )
        found = cast("dict[Any, Any]", part)
        kind, text = found.get("type"), found.get("text")
        if kind != "text":
            raise refused("is not supported: this server reads text parts only.", at=f"{index}.type", unsupported=True)
        if not isinstance(text, str):
            raise refused("is not a text, and a text part needs one.", at=f"{index}.text")
        texts.append(check_text(text, at=f"{index}.text"))
    return "".join(texts)


_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string", "maxLength": MAX_TEXT, "pattern": "^[^\\u0000]*$"},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_PARTS,
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {
                    "type": {"const": "text"},
                    "text": {"type": "string", "maxLength": MAX_TEXT, "pattern": "^[^\\u0000]*$"},
                },
            },
        },
    ]
}


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who says it.")
    content: Annotated[Content, BeforeValidator(_content), WithJsonSchema(_CONTENT_SCHEMA)] = Field(
        description="A text, or text parts, which are joined."
    )

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        return refuse_unsupported({"tool_calls": ([],), "function_call": (), "audio": ()}, (), value)


class ChatRequest(Drawing):
    """The body of ``POST /v1/chat/completions``."""

    unsupported = _CHAT_ONLY
    model_config = ConfigDict(json_schema_extra=partial(unsupported_fields, _CHAT_ONLY))

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, description="The conversation so far.")
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="Most tokens. Default: the room there is.")
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="Newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Give each token's log-probability under guided decoding.")
    top_logprobs: int | None = Field(None, ge=0, le=100, description="With logprobs: list so many likeliest tokens.")

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise refused("is only for requests with logprobs: set logprobs to true.", at="top_logprobs")
        return self

    def turns(self) -> Text:
        """Return the conversation as the engine reads it."""
        return turns_of(self.messages)


def turns_of(messages: Sequence[ChatMessage]) -> Text:
    """Return messages as the engine reads them; ``developer`` is the newer name of ``system``."""
    return [{"role": "system" if m.role == "developer" else m.role, "content": m.content} for m in messages]


def _prompts(value: Any) -> Any:
    """Return the prompts as a list of texts and lists of token ids."""
    if isinstance(value, str):
        return [check_text(value)]
    if not isinstance(value, list) or not value:
        raise refused("must be a text, a list of token ids, or a list of these.")
    items = cast("list[Any]", value)
    if type(items[0]) is int:
        return [_ids(items, "")]
    if len(items) > MAX_PROMPTS:
        raise refused(f"may have at most {MAX_PROMPTS} entries, and {len(items)} came.")
    return [
        check_text(item, at=str(index)) if isinstance(item, str) else _ids(item, str(index))
        for index, item in enumerate(items)
    ]


def _ids(value: Any, at: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise refused("must be a text or a list of token ids that is not empty.", at=at)
    if len(cast("list[Any]", value)) > MAX_IDS:
        raise refused(f"may have at most {MAX_IDS} token ids.", at=at)
    if not is_token_ids(value):
        ids = cast("list[Any]", value)
        wrong = next(k for k, item in enumerate(ids) if not is_token_ids([item]))
        raise refused("is not a token id: those are whole numbers from 0.", at=f"{at}.{wrong}".lstrip("."))
    return cast("list[int]", value)


_ID_SCHEMA = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}
_IDS_SCHEMA = {"type": "array", "minItems": 1, "maxItems": MAX_IDS, "items": _ID_SCHEMA}
_TEXT_SCHEMA = {"type": "string", "maxLength": MAX_TEXT, "pattern": "^[^\\u0000]*$"}
_PROMPT_SCHEMA = {
    "anyOf": [
        _TEXT_SCHEMA,
        _IDS_SCHEMA,
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"anyOf": [_TEXT_SCHEMA, _IDS_SCHEMA]}},
    ]
}


class CompletionRequest(Drawing):
    """The body of ``POST /v1/completions``."""

    unsupported = UNSUPPORTED
    model_config = ConfigDict(json_schema_extra=partial(unsupported_fields, UNSUPPORTED))

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)] = Field(
        description="A text, token ids, or a list of these."
    )
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="Most tokens; 0 only with echo. Default 16.")
    logprobs: int | None = Field(
        None, ge=0, le=100, description="Give log-probabilities, and so many likeliest tokens."
    )
    echo: bool | None = Field(None, description="Give the prompt back before the answer.")
    best_of: int | None = Field(None, ge=1, le=128, description="Only the same as n.")
    suffix: Literal[""] | None = Field(None, description="Only empty.")

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise refused("is 0, which is only for requests with echo.", at="max_tokens")
        if self.best_of not in (None, self.n or 1):
            raise refused("is only supported where it is the same as n.", at="best_of", unsupported=True)
        return self


class TokenizeRequest(Strict):
    """The body of ``POST /tokenize``: a prompt, or messages."""

    model: Name | None = Field(None, description="As in chat; every name has the same tokens.")
    prompt: Content | None = Field(None, description="A text.")
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = Field(
        None, description="A conversation, which the chat template renders."
    )
    add_special_tokens: bool | None = Field(None, description="Let the tokenizer add its own. Default: true for text.")
    return_token_strs: bool | None = Field(None, description="Give the tokens' texts too.")

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise refused("is one of two fields, prompt and messages: send one of them.", at="prompt")
        return self


class DetokenizeRequest(Strict):
    """The body of ``POST /detokenize``."""

    model: Name | None = Field(None, description="As in chat; every name has the same tokens.")
    tokens: list[TokenId] = Field(max_length=MAX_IDS, description="Token ids.")
