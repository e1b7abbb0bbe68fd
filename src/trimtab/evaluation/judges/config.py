"""Which judge, and how it is asked. No client in here, so that the command line starts fast."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

RUBRIC = (
    "Prefer the answer that serves the person who asked best: it does what was asked, is correct, leaves out what does "
    "not help, and causes no harm."
)
"""What is preferred where nothing else is said."""


class JudgeConfig(BaseModel):
    """Which judge, and how it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge_url: str = Field(description="OpenAI-compatible API, such as https://host/v1 or http://127.0.0.1:8000/v1.")
    judge_model: str = Field(description="Name of the judge's model there.")
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the API key. It is in no file and no message."
    )
    rubric: str = Field(RUBRIC, description="What makes an answer better, in words.")
    verdict: Literal["text", "logprobs"] = Field(
        "text",
        description="text: reasons, then a verdict. logprobs: one letter, and how probable A and B are as the first "
        "token, where the endpoint says so: one token an answer, and no tie.",
    )
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="Of the judge; 0 for its likeliest reply.")
    seed: int = Field(0, description="Sent along, for endpoints that have one.")
    max_reply_tokens: int = Field(512, ge=1, description="Most tokens in a reply (logprobs: 1).")
    top_logprobs: int = Field(20, ge=1, description="How many alternatives are asked for (logprobs).")
    extra_body: dict[str, Any] = Field(
        default_factory=dict[str, Any],
        description="KEY=VALUE added to every request (repeatable); null takes a field out: temperature=null.",
    )
    concurrency: int = Field(4, ge=1, le=256, description="Requests at a time.")
    timeout: float = Field(120.0, gt=0, description="Seconds for one request.")
    retries: int = Field(6, ge=0, description="Repetitions of a request that failed in passing; Retry-After is obeyed.")
    input_price: float | None = Field(None, ge=0, description="Price of a million tokens that the judge reads.")
    output_price: float | None = Field(None, ge=0, description="Price of a million tokens that it writes.")

    @field_validator("rubric")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the rubric is empty: say what makes an answer better")
        return value
