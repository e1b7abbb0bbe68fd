"""A scalar reward model as a scorer: one that 'trimtab train --method scalar' made, or any sequence classifier."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ModelError
from trimtab.evaluation.scorers.common import About, prompts_for, scoring_dtype
from trimtab.evaluation.scorers.independence import pair_hashes, training_pairs
from trimtab.models import Text, load_tokenizer, resolve_folder
from trimtab.models.loading import resolve_device, resolve_dtype
from trimtab.rewards.scalar.artifact import load_scalar
from trimtab.rewards.scalar.manifest import SCALAR_FILE
from trimtab.rewards.scalar.sequences import ConversationEncoder, Encode, longest_input, rewards_of

log = logging.getLogger("trimtab")


@dataclass
class RewardScorer:
    """The one number that a sequence classifier gives a prompt with an answer.

    Attributes:
        model: in eval mode, on its device.
        encode: prompt and answer to the sequence it reads.
        pad: token id of padding.
        about: what the number means.
    """

    model: Any = field(repr=False)
    encode: Encode = field(repr=False)
    pad: int
    about: About
    cut: int = 0
    scored: int = 0

    @property
    def notices(self) -> tuple[str, ...]:
        """How many sequences were cut so far; nothing if none was."""
        if not self.cut:
            return ()
        return (f"{self.cut} of {self.scored} texts were longer than {self.about.name} reads, and lost a part.",)

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> NDArray[np.float64]:
        """Return the reward of each answer, (N,), nats.

        Raises:
            ConfigError: the prompts are missing or are not as many as the answers.
            ModelError: the model has neither one nor two outputs.
        """
        asked = prompts_for(answers, prompts)
        if not len(answers):
            return np.zeros(0)
        sequences = [self.encode(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]
        cut = sum(sequence.cut for sequence in sequences)
        self.cut += cut
        self.scored += len(sequences)
        if cut:
            log.warning("%s", self.notices[0])
        return rewards_of(self.model, sequences, self.pad).double().numpy()


def load_reward(name: str, *, device: str = "auto") -> RewardScorer:
    """Load a reward model: a folder that 'trimtab train --method scalar' wrote, another local folder, or a hub id.

    Args:
        name: folder or hub id; safetensors only, never code from the folder.
        device: ``"auto"`` (CUDA if there is one), or a torch device.

    Raises:
        ModelError: it is missing, unsafe, or not a sequence classifier of one or two outputs.
        GuideError: a folder of ours is damaged, or made for another base.
    """
    folder = Path(name).expanduser()
    return _load_ours(name, folder, device) if (folder / SCALAR_FILE).is_file() else _load_classifier(name, device)


def _load_ours(name: str, folder: Path, device: str) -> RewardScorer:
    base, encoder, manifest = load_scalar(folder, dtype=scoring_dtype(device), device=device)
    data, found = manifest.data, manifest.accuracy
    objective = manifest.objective
    about = About(
        objective.name,
        f"Bradley–Terry reward of a head on {manifest.base.id}, trained by trimtab"
        + (f" on {data.comparisons} pairs" if data else ""),
        licence=manifest.license or "",
        name=f"reward:{name}",
        fitted_on=(data.sha256,) if data else (),
        fitted_on_pairs=pair_hashes(training_pairs(folder, data.sha256)) if data else frozenset(),
        labelled_by=data.labelled_by if data else None,
        accuracy=found["value"] if found else None,
        accuracy_on=f"{found['n']} held-out pairs (95 % interval {found['low']:.3f} to {found['high']:.3f})"
        if found
        else "",
    )
    return RewardScorer(base.model, encoder, manifest.pad_token_id, about)


def _load_classifier(name: str, device: str) -> RewardScorer:
    from transformers import AutoModelForSequenceClassification

    folder = resolve_folder(name)
    tokenizer = load_tokenizer(str(folder))
    try:
        found: Any = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=resolve_dtype(scoring_dtype(device), device),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many classes here; each means the folder cannot be used
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{name!r} cannot be loaded as a sequence classifier: {reason}") from error
    model, loading = found
    if loading["missing_keys"]:
        raise ModelError(
            f"{name!r} is not a reward model: it has no weights for {', '.join(sorted(loading['missing_keys']))[:200]}"
            ", so its scores would be noise. Train one with 'trimtab train --method scalar'."
        )
    outputs = int(model.config.num_labels)
    if outputs not in (1, 2):
        raise ModelError(
            f"{name!r} has {outputs} outputs, and a reward is one number: use a reward model (num_labels 1), or a "
            "classifier of two classes, the second the better."
        )
    model = model.to(resolve_device(device)).eval()
    pad = padding_id(model, tokenizer)
    what = "reward" if outputs == 1 else f"log-odds of {model.config.id2label.get(1, 'class 1')!r}"
    about = About(
        "reward", f"{what} by {name}; what it was trained on is not recorded", licence="", name=f"reward:{name}"
    )
    return RewardScorer(model, ConversationEncoder(tokenizer, longest_input(model, tokenizer)), pad, about)


def padding_id(model: Any, tokenizer: Any) -> int:
    """Return the id to pad with, and make sure that the model knows it: it reads an answer at the last other token."""
    candidates = (model.config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((int(value) for value in candidates if value is not None), 0)
    model.config.pad_token_id = pad
    return pad
