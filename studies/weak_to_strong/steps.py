"""The study's steps in order."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from study_arguments import command_of, parsed
from weak_to_strong.answers import prompts_of, write_all
from weak_to_strong.judging import judge
from weak_to_strong.plan import SMOKE, Guide, add_arguments, guides, print_plan
from weak_to_strong.report import write_report
from weak_to_strong.speed import measure
from weak_to_strong.training import Trainer, cost, ranking, read_pairs


def locate(options: Any) -> None:
    """Name the two models, which are fetched and converted on the first call."""
    from weak_to_strong import models

    options.small = options.small or str(models.folder("qwen2.5-coder-0.5b"))
    options.large = options.large or str(models.folder("qwen2.5-coder-1.5b"))


def trained_row(trainer: Trainer, guide: Guide, folder: Path, options: Any, pairs: Any) -> dict[str, Any]:
    """Return what a guide took and how it ranks."""
    tried = {f"{rate:g}": loss for rate, loss in trainer.tried(guide.method).items()}
    return {**cost(folder), "dev_loss": tried, "ranking": ranking(guide, folder, options, pairs)}


def main(arguments: list[str], description: str | None = None) -> None:
    options = parsed(arguments, description, add_arguments, SMOKE)
    if 1.0 not in options.strengths:
        raise SystemExit(
            "--strengths: 1 must be among them, where a policy on its own weights is the fine-tune itself."
        )
    pairs = read_pairs(options)
    if options.plan:
        print_plan(options, pairs.counts)
        return
    locate(options)
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    trainer = Trainer(options, pairs)
    wanted = [g for g in guides(options) if not options.train_only or g.name in options.train_only]
    folders = {guide.name: trainer.train(guide) for guide in wanted}
    if options.train_only:
        return
    prompts = prompts_of(pairs.val, options.prompts)
    measured = options.work_dir / "speed.json"
    if options.speed:
        measured.write_text(json.dumps(measure(options, folders, prompts)), encoding="utf-8")
    records = write_all(options, folders, prompts)
    trained = {g.name: trained_row(trainer, g, folders[g.name], options, pairs) for g in wanted}
    result = {
        "counts": {**pairs.counts, "prompts": len(prompts)},
        "trained": trained,
        **judge(options, pairs, records),
        "speed": json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else None,
        "options": {k: v for k, v in vars(options).items() if not isinstance(v, Path) and k not in ("small", "large")},
        "models": {"small": Path(options.small).name, "large": Path(options.large).name},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__.split('+')[0]}",
        "command": command_of("weak_to_strong/study.py", arguments),
        "minutes": (time.monotonic() - started) / 60,
    }
    write_report(result, records, options.output_dir)
    print(f"Wrote {options.output_dir / 'RESULTS.md'}.")
