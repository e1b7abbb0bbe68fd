"""``scalar.json``: what a scalar reward model scores, on which base, how it reads, and how it was made.

Strict like ``guide.json``: unknown keys are refused, and a file of a newer schema asks for a newer trimtab.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab._version import __version__
from trimtab.errors import GuideError
from trimtab.rewards.manifest import BaseRef, DataRef, Objective, finite, read_json
from trimtab.validation import validation_line

SCALAR_FILE = "scalar.json"
SCHEMA_VERSION = 1


class ScalarManifest(BaseModel):
    """The content of ``scalar.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, description="Version of this schema.")
    kind: Literal["scalar"] = Field(default="scalar", description="One number for a whole answer.")
    adapter: Literal["lora", "full"] = Field(
        default="lora", description="'lora': a PEFT adapter with a head, on the base; 'full': a whole model."
    )
    objective: Objective = Field(description="What is scored.")
    base: BaseRef = Field(description="The backbone it was trained on; its fingerprint leaves the head out.")
    tokenizer_hash: str = Field(description="Hash of the tokenizer's (token, id) pairs.")
    pad_token_id: int = Field(ge=0, description="The padding token; never the one that ends an answer.")
    end_token_id: int = Field(ge=0, description="The token that ends an answer: a causal model's state there is read.")
    segments: bool = Field(description="Whether prompt and answer have token types of their own, as in BERT.")
    chat_template: str | None = Field(default=None, description="Chat template of the prompts; null for plain text.")
    max_length: int = Field(ge=2, description="Most tokens of prompt and answer; an answer loses its end.")
    max_prompt_length: int = Field(ge=1, description="Most tokens of the prompt; it loses its beginning.")
    data: DataRef | None = Field(default=None, description="What it was trained on, where known.")
    training: dict[str, Any] = Field(default_factory=dict, description="Settings worth showing.")
    metrics: dict[str, Any] = Field(default_factory=dict, description="Held-out results, with length's beside them.")
    license: str | None = Field(default=None, description="Licence identifier for the model card.")
    weights_sha256: dict[str, str] = Field(default_factory=dict, description="SHA-256 of each weights file.")
    library_version: str = Field(default=__version__, description="Version of trimtab that wrote it.")

    @property
    def accuracy(self) -> dict[str, Any] | None:
        """The held-out accuracy with its interval (``value``, ``low``, ``high``, ``n``), if it was measured."""
        return self.metrics.get("held_out", {}).get("guide")

    def to_json(self) -> str:
        """Return the text of ``scalar.json``; numbers that are not finite become null."""
        return json.dumps(finite(self.model_dump(mode="json")), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_scalar(folder: str | Path) -> ScalarManifest:
    """Return what a scalar reward model's folder says about itself.

    Raises:
        GuideError: there is no ``scalar.json``, or it is damaged, of a newer schema, or has an unknown key.
    """
    path = Path(folder) / SCALAR_FILE
    if not path.is_file():
        raise GuideError(f"{str(folder)!r} is not a scalar reward model of trimtab: it has no {SCALAR_FILE}.")
    content = read_json(path)
    version = content.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise GuideError(
            f"{path} was written by a newer trimtab (schema {version}; this is {__version__}, schema "
            f"{SCHEMA_VERSION}): upgrade with 'pip install -U trimtab'."
        )
    try:
        return ScalarManifest.model_validate(content)
    except ValidationError as error:
        raise GuideError(f"{path} cannot be used: {validation_line(error)[:300]}") from error
