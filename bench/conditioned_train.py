"""Training speed of guides for several objectives beside a plain LoRA of the same rank: same pairs, batch and dtype.

    python bench/conditioned_train.py [--data FILE] [--steps 6] [--repeats 5]

The methods take turns (A B C A B C …) in one process, each in a fresh copy of the model, so that whatever else the machine
does meets all of them. Reported are pairs a CPU second (wall time on a GPU) as ratios to plain LoRA, min / median / max over
the rounds. The first objective is the data's; the second, "concise", is made from the lengths of the answers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from trimtab.preferences import Label, read_comparisons, response_text, write_comparisons
from trimtab.training import train
from trimtab.training.trainer import GuideTrainer

METHODS: dict[str, dict[str, Any]] = {
    "LoRA (genarm)": {"method": "genarm", "objective": "first"},
    "PBLoRA (parm)": {"method": "parm"},
    "PBLoRA, α per example": {"method": "parm", "alpha_per": "example"},
    "MoSLoRA (uniarm)": {"method": "uniarm"},
    "MoSLoRA, α per batch": {"method": "uniarm", "alpha_per": "batch"},
    "LoRA, decode-aware": {"method": "genarm", "objective": "first", "loss": "decode-aware"},
    "MoSLoRA, decode-aware": {"method": "uniarm", "loss": "decode-aware"},
}
REFERENCE = "LoRA (genarm)"


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        data = labelled(options, Path(folder))
        chosen = {name: method for name, method in METHODS.items() if not options.only or name in options.only}
        rates: dict[str, list[float]] = {name: [] for name in chosen}
        for repeat in range(options.repeats):
            for number, (name, method) in enumerate(chosen.items()):
                rates[name].append(measure(method, data, Path(folder) / f"{repeat}-{number}", options))
                print(f"round {repeat + 1}, {name}: {rates[name][-1]:.3f} pairs a second", file=sys.stderr, flush=True)
    print(table(rates))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = resources.files("trimtab") / "data" / "instruction_polite_train.jsonl.gz"
    parser.add_argument("--data", default=str(sample), help="pairs")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after one that is not timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), help=f"some methods, {REFERENCE!r} among them")
    options = parser.parse_args()
    if options.only and REFERENCE not in options.only:
        parser.error(f"--only must name {REFERENCE!r}, which the others are compared with")
    torch.set_num_threads(options.threads)
    return options


def labelled(options: argparse.Namespace, folder: Path) -> Path:
    """Write the pairs with a second label; the shorter answer is the more concise."""
    rows = read_comparisons(options.data, limit=options.batch * (options.steps + 1)).comparisons
    made = []
    for row in rows:
        gap = len(response_text(row.response_b)) - len(response_text(row.response_a))
        labels = {"first": next(iter(row.labels.values())), "concise": Label((gap > 0) - (gap < 0))}
        made.append(type(row)(row.prompt, row.response_a, row.response_b, labels, id=row.id))
    path = folder / "pairs.jsonl"
    write_comparisons(path, made)
    return path


def measure(method: dict[str, Any], data: Path, output: Path, options: argparse.Namespace) -> float:
    """Return pairs a CPU second of the steps after the first."""
    marks: list[float] = []
    step = GuideTrainer.training_step
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time

    def timed(self: GuideTrainer, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append(clock())
        return result

    GuideTrainer.training_step = timed  # type: ignore[method-assign]
    try:
        train(
            data=[str(data)],
            base=options.base,
            output_dir=str(output),
            per_device_train_batch_size=options.batch,
            max_steps=options.steps + 1,
            max_length=options.max_length,
            max_prompt_length=min(256, options.max_length // 2),
            save_strategy="no",
            notify=lambda line: None,
            **method,
        )
    finally:
        GuideTrainer.training_step = step  # type: ignore[method-assign]
    return options.batch * (len(marks) - 1) / (marks[-1] - marks[0])


def table(rates: dict[str, list[float]]) -> str:
    """Return a Markdown table."""
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}",
        "",
        "| adapter (method) | pairs a second, median | ÷ plain LoRA, min / median / max |",
        "|---|---|---|",
    ]
    for name, found in rates.items():
        ratios = [rate / reference for rate, reference in zip(found, rates[REFERENCE], strict=True)]
        shown = " / ".join(f"{value:.2f}" for value in (min(ratios), statistics.median(ratios), max(ratios)))
        lines.append(f"| {name} | {statistics.median(found):.2f} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
