"""Training speed and memory beside TRL's DPOTrainer: same model, data, LoRA, batch and dtype, in one run.

    python bench/train_speed.py [--data FILE] [--steps 4] [--repeats 3] [--max-length 512]

Each measurement is a process of its own, and the systems take turns (A B C A B C …), so that whatever else the machine
does meets all of them. Reported are ratios: pairs a wall second, pairs a CPU second (robust where other programs share
the cores), peak memory of the whole process while training, and that peak's increase over the loaded model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

SYSTEMS = ("trimtab", "trimtab, prompts not shared", "TRL DPOTrainer")
SMOLLM2_LORA = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}


def main() -> None:
    arguments = parse()
    if arguments.worker:
        print("RESULT " + json.dumps(WORKERS[arguments.worker](arguments)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for repeat in range(arguments.repeats):
        for name in SYSTEMS:
            results[name].append(measure(name))
            print(f"repeat {repeat + 1}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    print(table(results, arguments))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = resources.files("trimtab") / "data" / "instruction_polite_train.jsonl.gz"
    parser.add_argument("--data", default=str(sample), help="pairs in TRL's conversational form")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after one that is not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("RESULT "))


def table(results: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> str:
    reference = results["TRL DPOTrainer"]
    lines = [
        f"{Path(arguments.data).name}: {arguments.batch} pairs a step, {arguments.steps} steps, max_length "
        f"{arguments.max_length}, {arguments.dtype}, {arguments.threads} thread(s), {arguments.repeats} repeats; "
        "each cell: min / median / max of the ratio to TRL's DPOTrainer in the same round",
        "",
        "| | pairs/wall s | pairs/CPU s | peak memory | peak over loaded model |",
        "|---|---|---|---|---|",
    ]
    for name in SYSTEMS[:2]:
        cells = []
        for key in ("pairs_per_second", "pairs_per_cpu_second", "peak_mb", "increase_mb"):
            ratios = sorted(a[key] / b[key] for a, b in zip(results[name], reference, strict=True))
            cells.append(f"{ratios[0]:.2f} / {statistics.median(ratios):.2f} / {ratios[-1]:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    absolute = {
        name: {k: round(statistics.median(r[k] for r in rows), 2) for k in rows[0]} for name, rows in results.items()
    }
    return "\n".join([*lines, "", "Medians on this machine: " + json.dumps(absolute)])


class Meter:
    """Wall and CPU seconds of the timed steps, and memory; the first step is not timed."""

    def __init__(self, batch: int) -> None:
        self.batch, self.steps = batch, -1
        self.loaded = 0.0

    def ready(self) -> None:
        """Note what the loaded model takes."""
        self.loaded = memory("VmRSS")
        with contextlib.suppress(OSError):  # start the high-water mark afresh, so that loading does not count
            Path("/proc/self/clear_refs").write_text("5")

    def step_done(self) -> None:
        """Count a step; the clocks start after the first."""
        self.steps += 1
        if self.steps == 0:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

    def result(self) -> dict[str, float]:
        """Return speeds and megabytes."""
        pairs = self.steps * self.batch
        peak = memory("VmHWM")
        return {
            "pairs_per_second": round(pairs / (time.perf_counter() - self.wall), 4),
            "pairs_per_cpu_second": round(pairs / (time.process_time() - self.cpu), 4),
            "peak_mb": round(peak, 1),
            "increase_mb": round(peak - self.loaded, 1),
        }


def memory(field: str) -> float:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else float("nan")


def run_trimtab(arguments: argparse.Namespace, share: bool) -> dict[str, float]:
    from transformers import TrainerCallback

    from trimtab.training import run as training

    meter = Meter(arguments.batch)

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.ready()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step_done()

    training.ProgressBar = Watch  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            data=[arguments.data],
            base=arguments.base,
            output_dir=folder,
            max_steps=arguments.steps + 1,
            per_device_train_batch_size=arguments.batch,
            max_length=arguments.max_length,
            max_prompt_length=arguments.max_length - 1,  # as TRL: answers lose their end, prompts nothing
            share_prompt=share,
            bf16=arguments.dtype == "bfloat16",
            save_strategy="no",
        )
    return meter.result()


def run_trl(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from trimtab.models import load_base
    from trimtab.preferences import read_comparisons

    meter = Meter(arguments.batch)

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.ready()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step_done()

    base = load_base(arguments.base, dtype=arguments.dtype)
    comparisons = read_comparisons(arguments.data).comparisons
    objective = next(iter(comparisons[0].labels))
    pairs = [(c.prompt, c.oriented(objective)) for c in comparisons]
    rows = [{"prompt": p, "chosen": o[0], "rejected": o[1]} for p, o in pairs if o is not None]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            max_steps=arguments.steps + 1,
            per_device_train_batch_size=arguments.batch,
            max_length=arguments.max_length,
            beta=0.05,
            learning_rate=5e-4,
            lr_scheduler_type="cosine",
            bf16=arguments.dtype == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            model=base.model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(**SMOLLM2_LORA),
            callbacks=[Watch()],
        )
        trainer.train()
    return meter.result()


WORKERS = {
    SYSTEMS[0]: lambda arguments: run_trimtab(arguments, True),
    SYSTEMS[1]: lambda arguments: run_trimtab(arguments, False),
    SYSTEMS[2]: run_trl,
}


if __name__ == "__main__":
    if "--worker" in sys.argv:
        os.environ.setdefault("OMP_NUM_THREADS", str(parse().threads))
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main()
