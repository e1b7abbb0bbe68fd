"""One objective: GenARM beside DPO, Best-of-N and a system prompt, all made from the same pairs, on one frozen base.

Run ``python studies/one_objective.py``; whatever is done is found again in ``--work-dir``, so a run that was cut off goes
on where it was. ``--plan`` prints the budget, ``--smoke`` runs everything in a few minutes at a size that says nothing. The
pairs of ``--data harmless`` have to be made first, by ``studies/objectives/data.py``; polite ones are in the package.

For each data set: every method is tuned and trained on the same pairs, at several seeds; held-out pairs are ranked; prompts
are answered and scored by ``trimtab evaluate``, once a seed; rewards are compared at equal KL to the base, with intervals
over seeds and prompts.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from objectives.guides import key_of
from single.answers import SYSTEM, evaluate, judges_of, read_prompts, read_samples, system_kl
from single.guides import Trainer, read_pairs
from single.plan import DATA_SETS, SMOKE, DataSet, add_arguments, print_plan, seeds_of
from single.ranking import judge_accuracy, rank_all
from single.report import write_report
from single.results import compare
from single.runtime import measure
from study_arguments import command_of, parsed

HERE = Path(__file__).parent
SAMPLES = 8


def run(data: DataSet, options: Any) -> dict[str, Any] | None:
    """Do everything for one data set; with ``--only train`` stop when the guides are there."""
    work = options.work_dir / data.name
    pairs = read_pairs(data, options, work)
    trained = Trainer(data, options, pairs, work).all(options.methods if options.only == "train" else None)
    if options.only == "train":
        return None
    prompts = read_prompts(data, options)
    judges = judges_of(data, pairs)
    folders = evaluate(data, options, pairs, prompts, trained, work)
    runs = [read_samples(folder) for folder in folders]
    for samples, folder in zip(runs, folders, strict=True):
        found = system_kl(options, prompts, samples[SYSTEM], folder.parent / f"{folder.name}-system.json")
        for record, kl in zip(samples[SYSTEM], found, strict=True):
            record["diagnostics"]["kl"] = kl / record["tokens"]
    asked = [not row["prompt_is_safe"] if data.asks_unsafe else True for row in prompts]
    return {
        "data": data.name,
        "counts": pairs.counts,
        "seeds": list(seeds_of(options, data)),
        "system": data.system,
        "trained": {name: {k: v for k, v in made.items() if k != "folders"} for name, made in trained.items()},
        "ranking": rank_all(data, options, pairs, trained, work),
        "judges": judge_accuracy(data, judges, pairs, work),
        **compare(runs, judges, asked),
        "runtime": measure(options, prompts, trained, work),
        "seconds": [json.loads((f / "metrics.json").read_text())["seconds"] for f in folders],
        "samples": samples_of(prompts, runs[0]),
        "options": {k: v for k, v in vars(options).items() if not isinstance(v, Path)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__.split('+')[0]}",
    }


def samples_of(prompts: list[dict[str, Any]], samples: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return some answers of the first seed; what a base answers to unsafe prompts is not ours to publish."""
    shown = [i for i, row in enumerate(prompts) if row.get("prompt_is_safe", True)][:SAMPLES]
    return [
        {
            "id": prompts[i]["id"],
            "prompt": prompts[i]["prompt"][-1]["content"],
            "answers": {setting: rows[i]["response"] for setting, rows in samples.items()},
        }
        for i in shown
    ]


def main(arguments: list[str]) -> None:
    options = parsed(arguments, __doc__, add_arguments, SMOKE)
    if options.plan:
        print_plan(options)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    results: list[dict[str, Any]] = []
    for name in options.data:
        saved = options.work_dir / name / f"result-{key_of(sizes_of(options))}.json"
        if not (options.report and saved.exists()):
            result = run(DATA_SETS[name], options)
            if result is None:
                continue
            saved.write_text(json.dumps(result), encoding="utf-8")
        results.append(json.loads(saved.read_text(encoding="utf-8")))
    if results:
        command = command_of("one_objective.py", arguments)
        write_report(results, options.output_dir, HERE / "one_objective_intro.md", command)
        print(f"Wrote {options.output_dir / 'README.md'}.")


def sizes_of(options: Any) -> dict[str, Any]:
    """Return the options that decide a result."""
    apart = ("data", "plan", "report", "only", "methods")
    return {k: v for k, v in vars(options).items() if k not in apart and not isinstance(v, Path)}


if __name__ == "__main__":
    main(sys.argv[1:])
