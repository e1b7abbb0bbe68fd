"""Training: the same pairs, LoRA and learning rates for GenARM and DPO; the rate is chosen on the small model."""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objectives.guides import cached, key_of, shuffled
from trimtab.preferences import Comparison, read_comparisons, write_comparisons
from trimtab.preferences.splitting import split_by_hash
from weak_to_strong.plan import BATCH, BETAS, MAX_LENGTH, MAX_PROMPT_LENGTH, OBJECTIVE, SAMPLE, Guide


@dataclass(frozen=True)
class Pairs:
    """The pairs by use; no prompt has two. ``train``, ``tune`` (a part of it) and ``dev`` are files."""

    train: Path
    tune: Path
    dev: Path
    scorer: list[Comparison]
    val: list[Comparison]
    counts: dict[str, int]


def read_pairs(options: Any) -> Pairs:
    """Divide the packaged pairs by a hash of the prompt."""
    options.work_dir.mkdir(parents=True, exist_ok=True)
    rest, scorer = split_by_hash(read("train"), options.scorer_share, salt="scorer")
    rest, dev = split_by_hash(rest, 0.12, salt="dev")
    train = shuffled(rest)[: options.pairs]
    rows = {"train": train, "tune": train[: options.tune_pairs], "dev": shuffled(dev)[: options.dev_pairs]}
    files = {name: options.work_dir / f"{name}-{len(found)}.jsonl" for name, found in rows.items()}
    for name, found in rows.items():
        write_comparisons(files[name], found)
    val = read("val")
    counts = {**{name: len(found) for name, found in rows.items()}, "scorer": len(scorer), "val": len(val)}
    return Pairs(files["train"], files["tune"], files["dev"], scorer, val, counts)


def read(part: str) -> list[Comparison]:
    return read_comparisons(SAMPLE / f"instruction_{OBJECTIVE}_{part}.jsonl.gz").comparisons


class Trainer:
    """Trains what is not there yet; a guide's folder is named after everything that decides it."""

    def __init__(self, options: Any, pairs: Pairs) -> None:
        self.options, self.pairs = options, pairs

    def train(self, guide: Guide) -> Path:
        """Return the folder of a guide, at the learning rate that its method chose on the small model."""
        return self._run(guide, self.rate(guide.method), self.pairs.train)

    def rate(self, method: str) -> float:
        """Return the learning rate of the least loss on the dev pairs."""
        tried = self.tried(method)
        return min(tried, key=lambda rate: (tried[rate], rate))

    def tried(self, method: str) -> dict[float, float]:
        """Return learning rate → the method's own loss on the dev pairs after one pass over the tuning pairs."""
        guide = Guide(method, "small", self.options.seeds[0])
        folders = {rate: self._run(guide, rate, self.pairs.tune, self.pairs.dev) for rate in self.options.rates}
        return {rate: cost(folder)["dev_loss"] for rate, folder in folders.items()}

    def _run(self, guide: Guide, rate: float, file: Path, dev: Path | None = None) -> Path:
        base = getattr(self.options, guide.size)
        values: dict[str, Any] = {
            "method": guide.method,
            "objective": OBJECTIVE,
            "beta": BETAS[guide.method],
            "learning_rate": rate,
            "warmup_steps": 0.1,
            "num_train_epochs": 1.0,
            "per_device_train_batch_size": BATCH,
            "max_length": MAX_LENGTH,
            "max_prompt_length": MAX_PROMPT_LENGTH,
            "seed": guide.seed,
            "save_strategy": "no",
            "logging_steps": 4,
        }
        texts = [path.read_text(encoding="utf-8") for path in (file, dev) if path]
        stem = f"{guide.name}-{file.stem}-{key_of(values, Path(base).name, texts)}"
        folder = self.options.work_dir / "guides" / stem
        if (folder / "study.json").exists():
            return folder
        if dev:
            values |= {"eval_data": [str(dev)], "eval_strategy": "epoch"}
        values |= {"base": str(base), "data": [str(file)], "output_dir": str(folder), "overwrite_output_dir": True}
        print(f"{time.strftime('%H:%M')} training {stem}", flush=True)
        # A process of its own, so that its peak of memory and its time are the training's and nothing else's.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(measured_run, values).result()
        print(f"{time.strftime('%H:%M')} {stem}: {found}", flush=True)
        (folder / "study.json").write_text(json.dumps({**found, "rate": rate}), encoding="utf-8")
        return folder


def measured_run(values: dict[str, Any]) -> dict[str, Any]:
    """Train, and return what it took: wall seconds, processor seconds (imports apart), and the peak of memory."""
    from trimtab.training.run import train

    before = resource.getrusage(resource.RUSAGE_SELF)
    result = train(notify=lambda _: None, **values)
    used = resource.getrusage(resource.RUSAGE_SELF)
    losses = [row["eval_loss"] for row in result.history if "eval_loss" in row]
    return {
        "train_seconds": result.metrics["wall_seconds"],
        "cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,
        "dev_loss": losses[-1] if losses else None,
        "steps": result.history[-1].get("step"),
    }


def cost(folder: Path) -> dict[str, Any]:
    """Return what training a folder took."""
    return json.loads((folder / "study.json").read_text(encoding="utf-8"))


def ranking(guide: Guide, folder: Path, options: Any, pairs: Pairs) -> dict[str, Any]:
    """Return the held-out ranking of a guide beside its model untrained and length alone."""
    from trimtab.rewards.held_out import rank_guide

    def rank() -> dict[str, Any]:
        report, _ = rank_guide(
            folder, pairs.val[: 6 if options.smoke else None], base=str(getattr(options, guide.size))
        )
        return report.to_dict()

    ids = key_of([row.id for row in pairs.val], options.smoke)
    return cached(options.work_dir / "ranking" / f"{folder.name}-{ids}.json", rank)
