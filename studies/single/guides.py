"""Training: equal pairs, equal LoRA, and one learning rate a method, chosen by its own loss on pairs of no other use."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trimtab
from objectives.guides import key_of, shuffled, slug
from single.plan import LONGER, METHODS, DataSet, seeds_of
from trimtab.preferences import Comparison, read_comparisons, write_comparisons
from trimtab.preferences.splitting import split_by_hash


@dataclass(frozen=True)
class Pairs:
    """A data set's pairs, no prompt in two parts, each part in a file of its own."""

    train: Path
    dev: Path
    scorer: Path
    val: Path
    counts: dict[str, int]


def read_pairs(data: DataSet, options: Any, work: Path) -> Pairs:
    """Divide the pairs by a hash of the prompt; only those that the objective decides are kept."""
    parts: dict[str, list[Comparison]] = {}
    for part, name in data.files.items():
        path = Path(name) if Path(name).is_absolute() else options.data_dir / name
        if not path.exists():
            raise SystemExit(
                f"There are no pairs at {path}: make them with studies/objectives/data.py (studies/data/README.md says "
                f"how), name their folder with --data-dir, or leave {data.name!r} out with --data."
            )
        parts[part] = [c for c in read_comparisons(path).comparisons if c.oriented(data.name) is not None]
    if "scorer" not in parts:
        parts["train"], parts["scorer"] = split_by_hash(parts["train"], options.scorer_share, salt="scorer")
    parts["train"], parts["dev"] = split_by_hash(parts["train"], options.dev_share, salt="dev")
    parts["train"] = shuffled(parts["train"])[: options.pairs]
    parts["dev"] = shuffled(parts["dev"])[: options.dev_pairs]
    work.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for part, rows in parts.items():
        paths[part] = work / f"{part}-{key_of(len(rows), [row.id for row in rows])}.jsonl"
        if not paths[part].exists():
            write_comparisons(paths[part], rows)
    return Pairs(**paths, counts={part: len(rows) for part, rows in parts.items()})


class Trainer:
    """Trains what is not there yet: a guide's folder is named after everything that decides it."""

    def __init__(self, data: DataSet, options: Any, pairs: Pairs, work: Path) -> None:
        self.data, self.options, self.pairs, self.work = data, options, pairs, work

    def all(self, methods: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """Tune and train every method at every seed; return method → folders by seed, and how it was tuned."""
        return {name: self.method(name) for name in methods or METHODS}

    def method(self, name: str) -> dict[str, Any]:
        """Try every learning rate with the first seed, on all pairs; take the one of the least dev loss for all seeds."""
        first, *others = seeds_of(self.options, self.data)
        tried = {rate: self.train(name, rate, first, tune=True) for rate in self.options.rates}
        losses = {rate: _notes(folder)["dev_loss"] for rate, folder in tried.items()}
        rate = min(losses, key=lambda r: (losses[r], r))
        longer = LONGER.get(name, 1.0)
        kept = tried[rate] if longer == 1.0 else self.train(name, rate, first, epochs=longer)
        folders = [kept, *(self.train(name, rate, seed, epochs=longer) for seed in others)]
        print(f"{self.data.name}: {name}, learning rate {rate:g} (dev loss {losses})", flush=True)
        return {
            "folders": [str(folder) for folder in folders],
            "rate": rate,
            "dev_loss": {f"{r:g}": loss for r, loss in losses.items()},
            "seconds": [_notes(folder)["seconds"] for folder in folders],
        }

    def train(self, name: str, rate: float, seed: int, *, tune: bool = False, epochs: float = 1.0) -> Path:
        """Return the folder of a guide (or reward model), trained if it is not there.

        Args:
            name: of the method.
            rate: learning rate.
            seed: of the training.
            tune: whether its dev loss is taken.
            epochs: times the epochs of the study.
        """
        values: dict[str, Any] = {
            "base": self.options.base,
            "objective": self.data.name,
            "lora_r": self.options.rank,
            "learning_rate": rate,
            "num_train_epochs": self.options.epochs * epochs,
            "per_device_train_batch_size": self.options.batch,
            "warmup_steps": 0.1,
            "seed": seed,
            **self.data.limits,
            **METHODS[name],
        }
        key = key_of(values, self.pairs.train.read_text(encoding="utf-8"), self.pairs.dev.name if tune else "")
        folder = self.work / "guides" / f"{slug(name)}-{seed}-{key}"
        if (folder / "study.json").exists():
            return folder
        print(f"{self.data.name}: training {name}, seed {seed}, learning rate {rate:g}", flush=True)
        started = time.monotonic()
        result = trimtab.train(
            data=[str(self.pairs.train)],
            save_strategy="no",
            output_dir=str(folder),
            overwrite_output_dir=True,
            notify=lambda _: None,
            **values,
            **({"eval_data": [str(self.pairs.dev)], "eval_strategy": "epoch"} if tune else {}),
        )
        losses = [row["eval_loss"] for row in result.history if "eval_loss" in row]
        notes = {"seconds": time.monotonic() - started, "dev_loss": losses[-1] if losses else None}
        (folder / "study.json").write_text(json.dumps(notes), encoding="utf-8")
        print(notes, flush=True)
        return folder


def _notes(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "study.json").read_text(encoding="utf-8"))
