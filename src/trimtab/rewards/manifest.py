"""``guide.json``: what a guide rewards, on which base and tokenizer, and how it was made.

The file lies beside the adapter in a guide's folder. Its JSON schema is part of the public surface: unknown keys are
refused (a misspelt key must not be ignored), and a file of a newer schema asks for a newer trimtab.
"""

from __future__ import annotations

import json
import math
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trimtab._version import __version__
from trimtab.errors import GuideError, did_you_mean
from trimtab.models import Base

GUIDE_FILE = "guide.json"
SCHEMA_VERSION = 1
MAX_JSON_BYTES = 16 * 2**20
"""Real files are kilobytes; a larger one is refused before it is parsed."""

_RESERVED = "=,"  # they separate names in --weights name=w,name=w


def _objective_name(name: str) -> str:
    if not name.strip() or name != name.strip() or not name.isprintable() or any(c in name for c in _RESERVED):
        raise ValueError("a name needs printable characters, none of '=' and ',', and no space at its ends")
    return name


def _distinct(objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
    names = [objective.name for objective in objectives]
    if len(set(names)) < len(names):
        raise ValueError(f"each objective needs a name of its own, got {names}")
    return objectives


def _file_names(files: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(PurePath(f).name if PurePath(f).is_absolute() else f for f in files)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(_Model):
    """One named preference dimension."""

    name: Annotated[str, AfterValidator(_objective_name)] = Field(description="Name used in weights and in labels.")
    direction: Literal["maximize", "minimize"] = Field(
        default="maximize", description="Whether more of it is better; 'minimize' for costs."
    )
    description: str = Field(default="", description="One sentence on what is preferred.")
    beta: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="β_r of this objective, where it is not the guide's."
    )


class BaseRef(_Model):
    """The base model a guide was trained on."""

    id: str = Field(min_length=1, description="Name the base was loaded by: 'smollm2', a hub id or a folder.")
    revision: str | None = Field(default=None, description="Hub revision, if one was asked for.")
    fingerprint: str = Field(description="Hash of the base's weights; independent of dtype and place.")
    architecture: str = Field(description="Model class, such as LlamaForCausalLM.")

    @classmethod
    def of(cls, base: Base) -> BaseRef:
        """Return the reference to a loaded base."""
        model = base.model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        return cls(id=base.id, revision=base.revision, fingerprint=base.fingerprint, architecture=type(inner).__name__)


class DataRef(_Model):
    """The preference data a guide was trained on."""

    sha256: str = Field(description="SHA-256 over the training files.")
    files: Annotated[tuple[str, ...], AfterValidator(_file_names)] = Field(
        default=(), description="Names of the files or hub data sets; folders of the training machine are left out."
    )
    comparisons: int = Field(ge=0, description="Number of comparisons trained on.")
    labelled_by: str | None = Field(
        default=None, description="Who or what labelled them: 'people', a judge's name, a scorer's; null if not known."
    )


class GuideManifest(_Model):
    """The content of ``guide.json``."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, description="Version of this schema.")
    kind: Literal["arm", "policy"] = Field(
        default="arm",
        description="'arm': an autoregressive reward model, whose score is log π_r; 'policy': an aligned language "
        "model (DPO), whose score is log π − log π_ref, π_ref the base it was trained on.",
    )
    adapter: Literal["lora", "moslora", "pblora", "full"] = Field(
        default="lora",
        description="'lora': a PEFT adapter on the base; 'moslora', 'pblora': one conditioned on a preference over the "
        "objectives; 'full': a whole fine-tuned model.",
    )
    objectives: Annotated[tuple[Objective, ...], AfterValidator(_distinct)] = Field(
        min_length=1, description="What is rewarded, in the order a preference vector counts them."
    )
    conditions_on_strength: bool = Field(
        default=False,
        description="Whether a guide conditioned on a preference is also told its pull w, as log w beside α.",
    )
    beta: float = Field(gt=0, allow_inf_nan=False, description="β_r, the scale of the reward in the training loss.")
    weight: float = Field(
        default=1.0, allow_inf_nan=False, description="Recommended weight w of the guide's score (the papers' 1/β)."
    )
    base: BaseRef = Field(description="The base it was trained on.")
    tokenizer_hash: str = Field(description="Hash of the tokenizer's (token, id) pairs.")
    eos_token_id: int = Field(ge=0, description="The token that ended answers in training.")
    chat_template: str | None = Field(
        default=None, description="Chat template of the training prompts; null for plain text."
    )
    data: DataRef | None = Field(default=None, description="What it was trained on, where known.")
    training: dict[str, Any] = Field(
        default_factory=dict, description="Settings worth showing: method, learning rate, epochs, seed."
    )
    metrics: dict[str, Any] = Field(
        default_factory=dict, description="Held-out results, with the untrained model's and length's beside them."
    )
    license: str | None = Field(default=None, description="Licence identifier for the model card, such as apache-2.0.")
    weights_sha256: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of each weights file; filled when the guide is saved."
    )
    library_version: str = Field(default=__version__, description="Version of trimtab that wrote it.")

    @property
    def objective_names(self) -> tuple[str, ...]:
        """The objectives' names, in their stored order."""
        return tuple(objective.name for objective in self.objectives)

    @property
    def decoded_weight(self) -> float | None:
        """The weight w under which a guide that was trained for decoding ranks as it was taught; else ``None``."""
        return self.weight if self.training.get("loss") == "decode-aware" else None

    @property
    def betas(self) -> tuple[float, ...]:
        """β_r of each objective."""
        return tuple(objective.beta or self.beta for objective in self.objectives)

    def to_json(self) -> str:
        """Return the text of ``guide.json``; numbers that are not finite become null."""
        content = finite(self.model_dump(mode="json"))
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(folder: str | Path) -> GuideManifest:
    """Return what a guide's folder says about itself.

    Raises:
        GuideError: there is no such folder or no ``guide.json`` in it, or it is damaged, of a newer schema, or has
            a key that this version does not know.
    """
    folder = Path(folder)
    path = folder / GUIDE_FILE
    if not folder.is_dir():
        raise GuideError(f"There is no guide folder {str(folder)!r}: name the --output-dir of 'trimtab train'.")
    if not path.is_file():
        raise GuideError(_missing(folder))
    content = read_json(path)
    version = content.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise GuideError(
            f"{path} was written by a newer trimtab ({content.get('library_version', 'unknown')!r}, schema {version}; "
            f"this is {__version__}, schema {SCHEMA_VERSION}): upgrade with 'pip install -U trimtab'."
        )
    try:
        return GuideManifest.model_validate(content)
    except ValidationError as error:
        raise GuideError(f"{path} cannot be used: {_describe(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file from a folder that is not trusted: bounded size, plain JSON only.

    Raises:
        GuideError: it is unreadable, too large, not JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise GuideError(f"{path} has {size} bytes, far too many for its purpose: the guide is damaged or hostile.")
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, GuideError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise GuideError(f"{path} is damaged ({reason}): copy the guide's folder again, or train it again.") from error
    if not isinstance(content, dict):
        raise GuideError(f"{path} is damaged (not a JSON object): copy the guide's folder again, or train it again.")
    return cast("dict[str, Any]", content)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _missing(folder: Path) -> str:
    if (folder / "scalar.json").is_file():
        return (
            f"{str(folder)!r} is a scalar reward model: it judges whole answers (the scorer reward:{folder}) and "
            "cannot guide, which takes a number for every token."
        )
    if (folder / "adapter_config.json").is_file():
        return (
            f"{str(folder)!r} is a PEFT adapter but not a guide: it has no {GUIDE_FILE}, so its base, tokenizer and "
            "objective are unknown. Train it with 'trimtab train', or write the file with trimtab.rewards.save_guide."
        )
    return f"{str(folder)!r} is not a guide: it has no {GUIDE_FILE}. Name the --output-dir of 'trimtab train'."


def _describe(error: ValidationError) -> str:
    """Return the first finding as one line; an unknown key comes with the nearest known one."""
    findings = error.errors()
    first = next((f for f in findings if f["type"] == "extra_forbidden"), findings[0])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}.{did_you_mean(str(first['loc'][-1]), _known_keys(first['loc'][:-1]))}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "missing" else f" (got {str(first['input'])[:80]!r})"
    return f"{where!r}: {message}{got}."


def _known_keys(parents: tuple[int | str, ...]) -> list[str]:
    kinds: dict[str, type[BaseModel]] = {"base": BaseRef, "data": DataRef, "objectives": Objective}
    model = kinds.get(str(parents[0]), GuideManifest) if parents else GuideManifest
    return list(model.model_fields)


def finite(value: Any) -> Any:
    """Return a JSON value in which numbers that are not finite are null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in cast("list[Any]", value)]
    return value
