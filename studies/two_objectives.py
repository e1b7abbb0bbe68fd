"""Two objectives at once: Rewarded Soups, MOD, GenARM, PARM and UniARM at equal size, data and tuning, on conflicting labels.

Run ``python studies/two_objectives.py`` after ``studies/objectives/data.py`` has made the pairs; ``--plan`` prints ranks and
the minutes that two CPU cores need. Whatever is done is found again in ``--work-dir``. ``--smoke`` runs everything in
minutes at a size that says nothing.

For each data set: learning rates are tried for every method and chosen by one criterion; guides are trained, once with
each seed; held-out pairs are ranked over a grid of preferences α; prompts are answered over a grid with
``guidance={objective: weight}`` and scored by scorers that are not the guides; fronts are compared by hypervolume and MIP
with bootstrap intervals over seeds and prompts.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from objectives.answers import answer_methods, describe, fluency, make_scorers, read_prompts, reward_cubes, unguided
from objectives.claims import EARLIER
from objectives.data import FOLDER
from objectives.guides import Pairs, Trainer, key_of, read_pairs, untrained
from objectives.plan import (
    DATA_SETS,
    METHODS,
    SMOKE,
    DataSet,
    ablations_of,
    add_arguments,
    choose_rank,
    grid,
    layers_of,
    methods_of,
    print_plan,
    seeds_of,
)
from objectives.ranking import margins, rank_all
from objectives.report import gains, plain, write_report
from study_arguments import command_of, parsed
from trimtab.evaluation.fronts import summarise_fronts
from trimtab.models import load_base

HERE = Path(__file__).parent
BASELINE = "GenARM"
CONTROL = "untrained"
SAMPLES = 6


def run(data: DataSet, options: Any, layers: Any, width: int) -> dict[str, Any]:
    """Do everything for one data set."""
    started = time.monotonic()
    work = options.work_dir / data.name
    pairs = read_pairs(data, options, work)
    trainer = Trainer(data, options, pairs, work, layers, width)
    trained = {method.name: trainer.method(method) for method in methods_of(options, data)}
    result = {
        "data": data.name,
        "objectives": list(data.objectives),
        "counts": pairs.counts,
        "trained": trained,
        **rank_methods(data, options, pairs, trained, work),
        **answer_and_score(data, options, pairs, trained, work, trainer),
        "ablations": ablate(data, options, pairs, trainer, trained, work),
        "training_minutes": trainer.seconds() / 60,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__.split('+')[0]}",
    }
    result["minutes"] = (time.monotonic() - started) / 60
    return result


def rank_methods(data: DataSet, options: Any, pairs: Pairs, trained: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return pair accuracy over the grid."""
    alphas = grid(options.rank_steps)
    found: dict[str, np.ndarray] = {}
    for name, made in trained.items():
        if METHODS[name].pull != 1:  # a weight does not change which answer a guide ranks higher
            continue
        print(f"{data.name}: ranking with {name}", flush=True)
        folders = [{k: Path(v) for k, v in run["folders"].items()} for run in made["runs"][: options.rank_runs]]
        found[name] = np.stack([margins(data, METHODS[name], f, pairs.val, alphas, options, work) for f in folders])
    return {"rank_alphas": alphas.tolist(), "ranking": rank_all(data, pairs.val, found, alphas, options, work)}


def answer_and_score(
    data: DataSet, options: Any, pairs: Pairs, trained: dict[str, Any], work: Path, trainer: Trainer
) -> dict[str, Any]:
    """Return fronts by each set of scorers, and KL, words and tokens of each method and α."""
    control = untrained(control_of(trained), options.base, work / "guides" / "untrained")
    prompts = read_prompts(data, pairs, options)
    alphas = grid(options.answer_steps)
    answers = answer_methods(data, trained, control, prompts, alphas, options, work)
    fluent = fluency(answers, prompts, unguided(options.base), work / "fluency.json")
    fronts: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for name, scorers in make_scorers(data, pairs, work).items():
        described[name] = describe(scorers, pairs.val)
        cubes = reward_cubes(scorers, answers, prompts)
        over = {
            baseline: summarise_fronts(alphas, cubes, baseline=baseline, seed=options.seed)
            for baseline in cubes
            if baseline in ("base", CONTROL, *EARLIER)
        }
        fronts[name] = {
            method: {**plain(summary), "over": {baseline: gains(found[method]) for baseline, found in over.items()}}
            for method, summary in over[BASELINE].items()
        }
    samples = [
        {
            "prompt": prompt["prompt"][-1]["content"],
            "answers": {
                f"{m} {alphas[g][0]:g}": runs[0][g]["texts"][i]
                for m, runs in answers.items()
                for g in (0, len(alphas) - 1)
            },
        }
        for i, prompt in enumerate(prompts)
        if prompt.get("prompt_is_safe", True)  # what a base answers to unsafe prompts is not ours to publish
    ][:SAMPLES]
    return {
        "prompts": len(prompts),
        "answer_alphas": alphas.tolist(),
        "scorers": described,
        "fronts": fronts,
        "beside": {method: {**beside(runs), "fluency": fluent[method]} for method, runs in answers.items()},
        "samples": samples,
    }


def beside(runs: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Return KL to the base in nats a token, tokens and words of each α, over all runs."""
    at = [[run[g] for run in runs] for g in range(len(runs[0]))]
    return {
        "kl": [sum(sum(a["log_ratio"]) for a in each) / max(1, sum(sum(a["tokens"]) for a in each)) for each in at],
        "tokens": [float(np.mean([a["tokens"] for a in each])) for each in at],
        "words": [float(np.mean([[len(text.split()) for text in a["texts"]] for a in each])) for each in at],
    }


def control_of(trained: dict[str, Any]) -> Path:
    """Return a plain LoRA's folder to make the untrained control of; any is the same once B is zero."""
    plain_guides = [made for name, made in trained.items() if METHODS[name].method == "genarm"]
    if not plain_guides:
        raise SystemExit("The untrained control is made of GenARM's guide: name GenARM among --methods.")
    return Path(next(iter(plain_guides[0]["runs"][0]["folders"].values())))


def ablate(
    data: DataSet, options: Any, pairs: Pairs, trainer: Trainer, trained: dict[str, Any], work: Path
) -> dict[str, Any]:
    """Train UniARM with one thing changed at a time, at UniARM's learning rate, and rank at three preferences."""
    first = seeds_of(options, data)[0]
    rate = trained["UniARM"]["rate"] if "UniARM" in trained else options.rates[0]
    alphas = grid(2)
    found: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, int]] = {}
    methods = ablations_of(options, data)
    if not methods:
        return {}
    if "UniARM" in trained:
        own = trained["UniARM"]
        sizes["UniARM"] = own["rank"], own["parameters"]
        folders = {name: Path(folder) for name, folder in own["runs"][0]["folders"].items()}
        found["UniARM"] = margins(data, METHODS["UniARM"], folders, pairs.val, alphas, options, work)[None]
    for method in methods:
        sizes[method.name] = choose_rank(method, options.rank, trainer.layers, trainer.width)
        folders = trainer.train(method, sizes[method.name][0], rate, pairs.train, first)
        found[method.name] = margins(data, method, folders, pairs.val, alphas, options, work)[None]
    ranked = rank_all(data, pairs.val, found, alphas, options, work)
    return {name: {**ranked[name], "rank": rank, "parameters": size} for name, (rank, size) in sizes.items()}


def run_both(options: Any, arguments: list[str]) -> None:
    """Run the data sets side by side, a process and a thread each.

    Raises:
        SystemExit: one of them failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, *arguments, "--data", name] for name in DATA_SETS]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    if any([process.wait() for process in processes]):
        raise SystemExit("A data set failed (see above); the other's work is kept, and the same command continues.")


def main(arguments: list[str]) -> None:
    options = parsed(arguments, __doc__, add_arguments, SMOKE)
    chosen = list(DATA_SETS) if options.data == "both" else [options.data]
    saved = {name: options.work_dir / name / f"result-{key_of(sizes_of(options))}.json" for name in chosen}
    if not options.report:
        missing = [n for n in chosen if not (options.data_dir / f"{n}_train.jsonl.gz").exists()]
        if missing and not options.plan:
            raise SystemExit(
                f"{options.data_dir} has no pairs for {', '.join(missing)}: make them with studies/objectives/data.py "
                f"(it writes to {FOLDER}), or name their folder with --data-dir."
            )
        layers, width = layers_of(load_base(options.base))
        if options.data == "both" or options.plan:
            print_plan(options, layers, width)
        if options.plan:
            return
        if options.data == "both":
            run_both(options, arguments)
        else:
            result = run(DATA_SETS[options.data], options, layers, width)
            saved[options.data].write_text(json.dumps(result), encoding="utf-8")
    absent = [str(path) for path in saved.values() if not path.exists()]
    if absent:
        raise SystemExit(f"There is no result of these options yet: {', '.join(absent)}.")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in saved.values()]
    command = command_of("two_objectives.py", arguments)
    target = options.output_dir if options.data == "both" else options.work_dir / options.data / "report"
    write_report(results, target, HERE / "two_objectives_intro.md", command)
    print(f"Wrote {target / 'README.md'}.")


def sizes_of(options: Any) -> dict[str, Any]:
    """Return the options that decide a result."""
    apart = ("data", "data_dir", "work_dir", "output_dir", "plan", "report")
    return {key: value for key, value in vars(options).items() if key not in apart}


if __name__ == "__main__":
    main(sys.argv[1:])
