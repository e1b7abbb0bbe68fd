"""Training: equal data, equal size, and one learning rate a method, chosen by one criterion on pairs of no other use."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from objectives.plan import DataSet, Method, choose_rank, grid, seeds_of
from objectives.ranking import margins, mixed_signs
from trimtab.preferences import Comparison, read_comparisons, write_comparisons
from trimtab.preferences.splitting import split_by_hash

DEV_SHARE = 0.15


@dataclass(frozen=True)
class Pairs:
    """A data set's pairs: a file to train on, one to tune on, and what is held out."""

    train: Path
    tune: Path
    dev: list[Comparison]
    val: list[Comparison]
    scorer: list[Comparison]
    counts: dict[str, int]


def read_pairs(data: DataSet, options: Any, work: Path) -> Pairs:
    """Divide the pairs: "dev" is taken from "train" by prompt; subsets are the first rows in order of a hash of the id."""
    parts = {
        part: read_comparisons(options.data_dir / f"{data.name}_{part}.jsonl.gz").comparisons
        for part in ("train", "scorer", "val")
    }
    train, dev = split_by_hash(parts["train"], DEV_SHARE, salt="dev")
    train = shuffled(train)[: options.train_pairs]
    work.mkdir(parents=True, exist_ok=True)
    files = {"train": train, "tune": train[: options.tune_pairs]}
    paths = {name: work / f"{name}-{len(rows)}.jsonl" for name, rows in files.items()}
    for name, rows in files.items():
        write_comparisons(paths[name], rows)
    dev, val = shuffled(dev)[: options.dev_pairs], shuffled(parts["val"])[: options.val_pairs]
    scorer = shuffled(parts["scorer"])[: options.scorer_pairs]
    counts = {**{k: len(v) for k, v in files.items()}, "dev": len(dev), "val": len(val), "scorer": len(scorer)}
    return Pairs(paths["train"], paths["tune"], dev, val, scorer, counts)


def shuffled(rows: Sequence[Comparison]) -> list[Comparison]:
    """Return the rows in an order that depends on nothing but their ids."""
    return sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).hexdigest())


class Trainer:
    """Trains what is not there yet: a guide's folder is named after everything that decides it."""

    def __init__(self, data: DataSet, options: Any, pairs: Pairs, work: Path, layers: Any, width: int) -> None:
        self.data, self.options, self.pairs, self.work = data, options, pairs, work
        self.layers, self.width = layers, width
        self._used: set[Path] = set()

    def method(self, method: Method) -> dict[str, Any]:
        """Tune a method once and train it with each seed; return each run's folders (see :meth:`train`) and how it went."""
        rank, size = choose_rank(method, self.options.rank, self.layers, self.width)
        rates = self.options.rates
        tried = {rate: self._dev_loss(method, rank, rate) for rate in rates} if len(rates) > 1 else {rates[0]: None}
        rate = min(tried, key=lambda r: (tried[r] or 0.0, r))
        print(f"{self.data.name}: {method.name}, rank {rank}, learning rate {rate:g} (dev loss {tried})", flush=True)
        return {
            "runs": [
                self._run(method, rank, rate, size, seed) for seed in seeds_of(self.options, self.data, method.name)
            ],
            "rank": rank,
            "parameters": size,
            "rate": rate,
            "dev_loss": {f"{r:g}": loss for r, loss in tried.items()},
        }

    def _run(self, method: Method, rank: int, rate: float, size: int, seed: int) -> dict[str, Any]:
        """Train with one seed, and check the size."""
        folders = self.train(method, rank, rate, self.pairs.train, seed)
        counted = sum(trained_parameters(folder) for folder in folders.values())
        if counted != size:
            raise SystemExit(f"{method.name} has {counted:,} trained parameters, not the {size:,} that were planned.")
        seconds = sum(json.loads((f / "study.json").read_text())["seconds"] for f in folders.values())
        if method.soup:
            folders = {"": self._soup(folders)}
        return {"seed": seed, "folders": {name: str(folder) for name, folder in folders.items()}, "seconds": seconds}

    def _soup(self, folders: dict[str, Path]) -> Path:
        """Return the folder of a method's guides as one whose weights are mixed, made where absent."""
        folder = self.work / "guides" / f"soup-{key_of([f.name for f in folders.values()])}"
        if not (folder / "guide.json").exists():
            trimtab.soup(list(folders.values()), folder)
        return folder

    def _dev_loss(self, method: Method, rank: int, rate: float) -> float:
        """Return the mean of −log σ(β·margin) over dev pairs and α = 0, ½, 1, the margin turned by the mixed label.

        A soup is tuned as MOD is, by the mixed margins of its parts: the two share their policies.
        """
        alphas = grid(2)
        folders = self.train(method, rank, rate, self.pairs.tune)
        found = margins(self.data, method, folders, self.pairs.dev, alphas, self.options, self.work)
        signs = mixed_signs(self.pairs.dev, self.data.objectives, alphas)
        losses = np.logaddexp(0.0, -method.options.get("beta", self.options.beta) * signs * found)
        return float(losses[signs != 0].mean())

    def train(
        self, method: Method, rank: int, rate: float, file: Path, seed: int | None = None
    ) -> dict[str, Path]:  # fmt: skip
        """Return the folders of a method's guides by objective ("" for a conditioned guide), trained where absent."""
        seed = self.options.seed if seed is None else seed
        own = {"lora_r": rank, "learning_rate": rate, "seed": seed}
        if not method.separate:
            both = {"objectives": list(self.data.objectives), "descriptions": self.data.descriptions}
            return {"": self._train(method, {**both, **own}, file, "")}
        return {name: self._train(method, {"objective": name, **own}, file, name) for name in self.data.objectives}

    def seconds(self) -> float:
        """Return how long everything that was asked for took to train, found on disk or not."""
        return sum(json.loads((folder / "study.json").read_text())["seconds"] for folder in self._used)

    def _train(self, method: Method, own: dict[str, Any], file: Path, objective: str) -> Path:
        values: dict[str, Any] = {
            "base": self.options.base,
            "beta": self.options.beta,
            "num_train_epochs": self.options.epochs,
            "per_device_train_batch_size": self.options.batch,
            "max_length": self.data.max_length,
            "max_prompt_length": self.data.max_prompt_length,
            "warmup_steps": 0.1,
            "weight": self.options.strength,
            "save_strategy": "no",
            **method.options,
            **own,
        }
        name = "dpo" if method.policy else slug(method.name)
        stem = "-".join(filter(None, (name, objective, file.stem)))
        key = key_of(without_first_default(values), file.read_text(encoding="utf-8"))
        folder = self.work / "guides" / f"{stem}-{key}"
        done = sorted(self.work.glob(f"guides/*-{key}/study.json"))
        self._used.add(done[0].parent if done else folder)
        if done:  # under another method's name, where two share a guide
            return done[0].parent
        print(f"{self.data.name}: training {folder.name}", flush=True)
        started = time.monotonic()
        trimtab.train(
            data=[str(file)], output_dir=str(folder), overwrite_output_dir=True, notify=lambda _: None, **values
        )
        (folder / "study.json").write_text(json.dumps({"seconds": time.monotonic() - started}), encoding="utf-8")
        return folder


def without_first_default(values: dict[str, Any]) -> dict[str, Any]:
    """Return options as guides are named by: "text" was the condition before it was written out, and stays unnamed."""
    return {key: value for key, value in values.items() if (key, value) != ("condition", "text")}


def untrained(folder: Path, base: str, target: Path) -> Path:
    """Write the control: a guide as it was before training, so the base itself pulling on the base (a sharper base)."""
    import torch

    from trimtab.models import load_base
    from trimtab.rewards import load_guide_model, read_manifest, save_guide

    if not (target / "guide.json").exists():
        manifest = read_manifest(folder)
        model = load_guide_model(folder, load_base(base))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
        save_guide(target, model, manifest.model_copy(update={"metrics": {}}))
    return target


def trained_parameters(folder: Path) -> int:
    """Count the parameters in a guide's folder; a text condition's embeddings are stored but never trained."""
    from safetensors import safe_open

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    frozen = config.get("condition") == "text"
    with safe_open(str(folder / "adapter_model.safetensors"), "np") as file:
        names = [n for n in file.keys() if not (frozen and n.endswith("encoder.objectives"))]  # noqa: SIM118
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in names)


def key_of(*values: Any) -> str:
    """Return a short digest of anything JSON can write."""
    text = json.dumps([trimtab.__version__, *values], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-").replace("--", "-")


def cached(path: Path, make: Callable[[], Any]) -> Any:
    """Return what a JSON file holds, made and written on the first call."""
    if not path.exists():
        value = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".new")
        staged.write_text(json.dumps(value), encoding="utf-8")
        staged.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))
