"""Answers: one ``trimtab evaluate`` a seed, over every method; what it leaves out (a system prompt's KL) is added here."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import trimtab
from objectives.guides import cached, key_of
from single.guides import Pairs
from single.plan import DPO, GENARM, REWARD, DataSet, seeds_of
from study_prompts import choose_prompts

SYSTEM, SHARPER, BASE = "system prompt", "sharper base", "base"
METRICS = "metrics.json"


def best_of(n: int) -> str:
    """Return what Best-of-n is called."""
    return f"Best-of-{n}"


def read_prompts(data: DataSet, options: Any) -> list[dict[str, Any]]:
    """Return the prompts to answer; of XSTest half are unsafe, and the test pairs' prompts are taken too."""
    others = _prompts_of(options.data_dir / data.files["val"]) if "xstest" in data.sources else []
    return choose_prompts(data.sources, others, options.prompts)


def _prompts_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{"id": r["id"], "prompt": r["prompt"], "prompt_is_safe": bool(r["prompt_is_safe"])} for r in rows]


def judges_of(data: DataSet, pairs: Pairs) -> dict[str, str]:
    """Return judge → the scorer as ``trimtab evaluate`` takes it; the first is what the verdict rests on."""
    return {spec.partition(":")[0]: spec.replace("PAIRS", str(pairs.scorer.resolve())) for spec in data.judges}


def methods_of(data: DataSet, options: Any, folders: dict[str, Path]) -> list[dict[str, Any]]:
    """Return what is compared, as ``methods`` of the config: the base is always there."""
    sharper = [
        {"name": f"{SHARPER} {w:g}", "temperature": 1 / (1 + w)}
        for w in options.strengths
        if w >= options.least_sharper
    ]
    picked = [
        {"name": best_of(n), "best_of": n, "scorer": f"reward:{folders[REWARD].resolve()}"} for n in options.best_of
    ]
    return [
        {"name": GENARM, "guides": [folders[GENARM].name], "strengths": list(options.strengths)},
        {"name": DPO, "guides": [folders[DPO].name], "strengths": list(options.dpo_strengths)},
        {"name": SYSTEM, "system": data.system},
        *sharper,
        *picked,
    ]


def evaluate(
    data: DataSet, options: Any, pairs: Pairs, prompts: Sequence[Any], trained: dict[str, Any], work: Path
) -> list[Path]:  # fmt: skip
    """Run ``trimtab evaluate`` for every seed, with that seed's guides and sampling; return its folders."""
    file = work / f"prompts-{key_of(prompts)}.jsonl"
    if not file.exists():
        lines = [json.dumps({"id": row["id"], "prompt": row["prompt"]}, ensure_ascii=False) for row in prompts]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found: list[Path] = []
    for place, seed in enumerate(seeds_of(options, data)):
        folders = {name: Path(made["folders"][place]) for name, made in trained.items()}
        config = {
            "base": options.base,
            "guide": [str(folders[name].resolve()) for name in (GENARM, DPO)],
            "prompts": str(file.resolve()),
            "scorers": [*judges_of(data, pairs).values(), "repetition"],
            "methods": methods_of(data, options, folders),
            "temperature": 1.0,
            "max_tokens": options.max_tokens,
            "seed": seed,
            "force": data.force,
            "controls": False,  # the sharper base is among the methods, at the temperatures of the untrained guide
            "token_notes": 0,
            "batch_size": options.batch_size,
            "output_dir": str((work / "runs" / f"seed-{seed}").resolve()),
        }
        found.append(run_cli(config))
    return found


def run_cli(config: dict[str, Any]) -> Path:
    """Run ``trimtab evaluate --config``, unless it ran with this very config; answers that are there are used again.

    Raises:
        SystemExit: it failed; what it wrote so far is used by the next run.
    """
    folder = Path(config["output_dir"])
    mark = folder.parent / f"{folder.name}-{key_of(config)}.yaml"
    if mark.exists() and (folder / METRICS).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = mark.with_suffix(".new")
    staged.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    print(f"trimtab evaluate --config {staged.name}", flush=True)
    command = [sys.executable, "-c", "from trimtab.cli.main import main; main()", "evaluate", "--config", str(staged)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"'trimtab evaluate' failed (see above); the same command goes on from there: {staged}")
    staged.replace(mark)
    return folder


def read_samples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return setting → its answers, in the order of the prompts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found.setdefault(record["setting"], []).append(record)
    return found


def system_kl(options: Any, prompts: Sequence[Any], rows: Sequence[Any], path: Path) -> list[float]:
    """Return log p(answer | system prompt) − log p(answer | none) under the base, nats an answer, (P,).

    Its mean estimates the KL from the plain base. ``trimtab evaluate`` measures KL under each setting's own prompt,
    where a system prompt alone changes nothing.
    """

    def make() -> list[float]:
        with trimtab.load(options.base) as engine:
            plain = [engine.score(p["prompt"], r["token_ids"]).base for p, r in zip(prompts, rows, strict=True)]
        return [float(r["diagnostics"]["base_logprob"] - sum(p)) for p, r in zip(plain, rows, strict=True)]

    return cached(path.with_name(f"{path.stem}-{key_of([r['key'] for r in rows])}.json"), make)
