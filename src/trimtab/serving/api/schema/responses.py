"""What clients get. These models describe answers; the large ones are sent without going through them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Finish = Literal["stop", "length", "abort"]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Applied(_Said):
    """The guidance that was applied."""

    weights: dict[str, float] = Field(description="Guide → weight w, strength included.")
    preferences: dict[str, dict[str, float]] = Field(description="Guide that takes a preference → objective → α.")
    strength: float = Field(description="What multiplied the weights.")
    preset: str | None = Field(description="Preset that this is, by the model's name; null where the request differs.")


class NumberedToken(_Said):
    """A token that might have been written."""

    token: str
    token_id: int
    logprob: float = Field(description="Nats.")


class ObjectiveScore(_Said):
    """What one objective alone thinks of a token."""

    logprob: float | None = Field(
        description="log π_r at this objective alone, nats; null for a policy, whose score is a log-ratio already."
    )
    log_ratio: float | None = Field(description="The same less the base's; of a policy log π − log π_ref.")


class TokenNote(_Said):
    """What base, guides and objectives think of a token."""

    token: str
    token_id: int
    logprob: float = Field(description="Of the guided distribution, nats.")
    base_logprob: float | None = Field(description="Of the base, nats.")
    kl: float | None = Field(description="KL(guided ‖ base) where the token was drawn, nats.")
    guides: dict[str, float] = Field(description="Guide → its score, nats: log π_r, of a policy log π − log π_ref.")
    objectives: dict[str, ObjectiveScore]
    top: list[NumberedToken] = Field(description="Likeliest tokens of the guided distribution.")
    base_top: list[NumberedToken] = Field(description="Likeliest tokens of the base.")


class TokenNotes(_Said):
    """What is reported where guidance.rewards or guidance.top asks for it."""

    tokens: list[TokenNote]


class CachedTokens(_Said):
    """Of the tokens of the prompt."""

    cached_tokens: int


class Usage(_Said):
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TopLogprob(_Said):
    """A token that might have been written."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token that was written."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Said):
    """Log-probabilities under guided decoding, before temperature and cuts."""

    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(_Said):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class _Choice(_Said):
    index: int
    finish_reason: Finish
    guidance: TokenNotes | None = None
    token_ids: list[int] | None = None


class ChatChoice(_Choice):
    """One of the n answers."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class _Answer(_Said):
    id: str
    created: int
    model: str
    usage: Usage
    guidance: Applied


class ChatCompletion(_Answer):
    """The answer to ``POST /v1/chat/completions``."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = None


class CompletionLogprobs(_Said):
    """Log-probabilities under guided decoding; with echo, the prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Choice):
    """One of the answers: n to each prompt, prompt by prompt."""

    text: str
    logprobs: CompletionLogprobs | None
    prompt_token_ids: list[int] | None = None


class Completion(_Answer):
    """The answer to ``POST /v1/completions``."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class Model(_Said):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="The served model, without a preset.")
    parent: str | None
    max_model_len: int


class ModelList(_Said):
    """The answer to ``GET /v1/models``."""

    object: Literal["list"]
    data: list[Model]


class GuideObjective(_Said):
    """Something that a guide rewards."""

    name: str
    description: str
    direction: Literal["maximize", "minimize"]


class GuideInfo(_Said):
    """A guide that is loaded."""

    name: str
    kind: Literal["arm", "policy"] = Field(description="'policy': an aligned model, whose score is log π − log π_ref.")
    objectives: list[GuideObjective]
    recommended_weight: float
    conditioned: bool = Field(description="Whether it follows a preference over its objectives.")


class PresetInfo(_Said):
    """Guidance with a name."""

    weights: dict[str, float]
    strength: float
    description: str | None = None


class Guides(_Said):
    """The answer to ``GET /v1/guides``."""

    base: str
    model: str
    guides: list[GuideInfo]
    presets: dict[str, PresetInfo]
    default: PresetInfo | None = Field(description="What the model's bare name applies; null: recommended weights.")
    limits: dict[str, float]


class Changed(_Said):
    """The answer to a change of guidance."""

    id: str
    guidance: Applied
    from_token: int = Field(description="How many tokens of the first answer were written before.")


class Ended(_Said):
    """The answer to the end of a generation."""

    id: str
    object: Literal["generation.deleted"]
    deleted: Literal[True]


class Tokenized(_Said):
    """The answer to ``POST /tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Said):
    """The answer to ``POST /detokenize``."""

    prompt: str


class TokenizerInfo(_Said):
    """The answer to ``GET /tokenizer_info``."""

    tokenizer_class: str
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | dict[str, Any] | None


class ErrorDetail(_Said):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Said):
    """An answer that is an error."""

    error: ErrorDetail
