"""How an engine runs: how many answers at a time, how much memory for keys and values, which kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trimtab.validation import validated

Rule = Literal["coupled", "rejection"]
Speculation = Literal["auto", "off", "small", "draft", "ngram"]
Kernels = Literal["auto", "native", "torch", "generic"]


def _option(default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": "Engine"}, **limits)


class EngineConfig(BaseModel):
    """How an engine runs; the names are those of vLLM's engine arguments where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int = _option(64, "Most answers written at a time; more wait.", ge=1)
    max_num_batched_tokens: int = _option(
        512,
        "Most prompt tokens read in one step, of base and guides together: while a long prompt is read in pieces of "
        "this size, the other answers go on.",
        ge=1,
    )
    kv_cache_memory_gib: float | None = _option(
        None, "GiB for keys and values. Default: a share of the free memory.", gt=0, allow_inf_nan=False
    )
    speculation: Speculation = _option(
        "auto",
        "What drafts tokens that base and guides then check together: small (the model of a guide that is smaller than "
        "the base), draft (draft_model), ngram (earlier text), off; auto is small where there is one.",
    )
    draft_model: str | None = _option(None, "A small model with the base's tokenizer that drafts.")
    num_speculative_tokens: int = _option(4, "Most tokens drafted at a time; how many follows what is kept.", ge=1)
    acceptance: Rule = _option(
        "coupled",
        "Which drafts are kept: coupled (a seed gives the same text with and without drafts) or rejection (keeps more; "
        "the same distribution, other texts).",
    )
    speculate_up_to: int = _option(4, "Nothing is drafted while more answers than this are being written.", ge=0)
    enable_prefix_caching: bool = _option(True, "Keep what was read of equal beginnings and share it.")
    kernels: Kernels = _option(
        "auto",
        "What runs the model: auto; native (compiled for this CPU); torch; generic (transformers' own forward).",
    )


def make_engine_config(value: EngineConfig | Mapping[str, Any] | None = None) -> EngineConfig:
    """Return a validated config.

    Raises:
        ConfigError: an unknown option (the nearest known one is named), or a value that cannot work.
    """
    return value if isinstance(value, EngineConfig) else validated(EngineConfig, dict(value or {}))
