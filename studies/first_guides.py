"""Two first guides, "polite" and "harmless": how well they rank, and what they do to the text of a frozen base.

Run ``python studies/first_guides.py``; two CPU cores need about an hour, most of it the training on HH-RLHF. Results go to
``studies/first_guides/`` (``README.md``, ``results.json``, ``samples.jsonl``); guides and splits to ``--work-dir``, where a second
run finds them again.

For each objective: comparisons are divided by a hash of the prompt into some for the guide and some for a scorer that is
not the guide (a Bradley–Terry model over words); the guide is trained and ranked on held-out pairs; then the base
answers prompts plain, with the UNTRAINED guide (the control: at w = 1 that is the squared base, so plainly a sharper
base), and with the trained guide, at temperature 1 with the same seeds, and greedily.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trimtab
from trimtab.evaluation.scorers import BagOfWordsScorer, bootstrap_interval
from trimtab.models import load_base
from trimtab.preferences import Comparison, read_comparisons, write_comparisons
from trimtab.preferences.splitting import split_by_hash
from trimtab.rewards import load_guide_model, read_manifest, save_guide

HERE = Path(__file__).parent
SAMPLE = Path(trimtab.__file__).parent / "data"
MAX_TOKENS = 48
MAX_PROMPT_CHARACTERS = 300
SEED = 0
STRENGTHS = (1.0, 2.0)


@dataclass(frozen=True)
class Study:
    """One objective: its data, how it is trained, and which prompts show it.

    ``scorer_share`` of the comparisons fit the scorer. Without ``sources`` the study ranks and does not generate: a scorer of
    words says too little of "harmless" to judge by.
    """

    objective: str
    train: Path
    held_out: Path
    scorer_share: float
    sources: tuple[str, ...]
    options: dict[str, Any]


STUDIES = (
    Study(
        "polite",
        SAMPLE / "instruction_polite_train.jsonl.gz",
        SAMPLE / "instruction_polite_val.jsonl.gz",
        0.3,
        ("alpaca_eval", "mt_bench"),
        {},
    ),
    Study(
        "harmless",
        HERE / "data" / "hh_harmless_train.jsonl.gz",
        HERE / "data" / "hh_harmless_val.jsonl.gz",
        0.3,
        (),
        {"beta": 0.01, "max_length": 320, "max_prompt_length": 128},
    ),
)


def run_or_load(study: Study, work: Path, count: int) -> dict[str, Any]:
    """Return what an earlier run left in the work folder, or run."""
    saved = work / study.objective / "result.json"
    if not saved.exists():
        saved.parent.mkdir(parents=True, exist_ok=True)
        result = run_study(study, work, count)
        saved.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return json.loads(saved.read_text(encoding="utf-8"))


def run_study(study: Study, work: Path, count: int) -> dict[str, Any]:
    """Train, rank, generate and score one objective."""
    folder = work / study.objective
    folder.mkdir(parents=True, exist_ok=True)
    guide_rows, scorer_rows = read_comparisons(study.train).comparisons, list[Comparison]()
    if study.scorer_share:
        guide_rows, scorer_rows = split_by_hash(guide_rows, study.scorer_share, salt="scorer")
    held_out = read_comparisons(study.held_out).comparisons
    write_comparisons(folder / "guide.jsonl", guide_rows)
    started = time.monotonic()
    trained = folder / "trained"
    if not (trained / "guide.json").exists():
        trimtab.train(
            data=[str(folder / "guide.jsonl")],
            eval_data=[str(study.held_out)],
            objective=study.objective,
            output_dir=str(trained),
            save_strategy="no",
            seed=SEED,
            overwrite_output_dir=True,
            notify=print,
            **study.options,
        )
    manifest = read_manifest(trained)
    scorer = BagOfWordsScorer.fit(scorer_rows, study.objective) if scorer_rows else None
    prompts = read_prompts(study.sources, count) if study.sources else []
    settings: list[dict[str, Any]] = []
    if prompts and scorer:
        settings = generate_all(trained, make_untrained(trained, folder / "untrained"), prompts, scorer)
    return {
        "objective": study.objective,
        "pairs": {"guide": len(guide_rows), "scorer": len(scorer_rows), "held_out": len(held_out)},
        "training": manifest.training,
        "ranking": manifest.metrics["held_out"],
        "scorer_accuracy": scorer.accuracy(held_out) if scorer else None,
        "prompts": {"sources": study.sources, "count": len(prompts)},
        "settings": settings,
        "minutes": (time.monotonic() - started) / 60,
    }


def make_untrained(trained: Path, folder: Path) -> Path:
    """Write the control: the same guide with its LoRA's B at zero, as it was before training."""
    if not (folder / "guide.json").exists():
        manifest = read_manifest(trained)
        model = load_guide_model(trained, load_base("smollm2"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
        save_guide(folder, model, manifest.model_copy(update={"metrics": {}}))
    return folder


def read_prompts(sources: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return ``count`` short evaluation prompts of the named sources, spread evenly over the file."""
    with gzip.open(HERE / "data" / "eval_prompts.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["source"] in sources]
    rows = [row for row in rows if len(row["prompt"][-1]["content"]) <= MAX_PROMPT_CHARACTERS]
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def generate_all(
    trained: Path, untrained: Path, prompts: Sequence[dict[str, Any]], scorer: BagOfWordsScorer
) -> list[dict[str, Any]]:
    """Answer every prompt in every setting; return one row a setting."""
    table: list[dict[str, Any]] = []
    texts = [row["prompt"] for row in prompts]
    with trimtab.load("smollm2", guides={"trained": trained, "untrained": untrained}) as engine:
        plain: dict[str, Any] = {}
        for decoding, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            for guide, strength in settings_of(decoding):
                weights = {"trained": 0.0, "untrained": 0.0} | ({guide: strength} if guide else {})
                answers = engine.generate(
                    texts,
                    guidance=weights,
                    sampling={"temperature": temperature, "max_tokens": MAX_TOKENS, "seed": SEED},
                    max_batch_size=32,
                )
                rewards = scorer.score([a.text for a in answers])
                if guide is None:
                    plain[decoding] = rewards
                table.append(
                    {
                        "decoding": decoding,
                        "guide": guide or "none",
                        "strength": strength,
                        "reward": float(rewards.mean()),
                        "gain": float((rewards - plain[decoding]).mean()),
                        "gain_interval": bootstrap_interval(rewards - plain[decoding]),
                        "rewards": [round(float(r), 4) for r in rewards],
                        "words": float(np.mean([len(a.text.split()) for a in answers])),
                        "kl": kl_to_base(engine, texts, answers, weights) if decoding == "sampled" else None,
                        "answers": [a.text for a in answers],
                    }
                )
                print(decoding, guide, strength, {k: table[-1][k] for k in ("reward", "gain", "words", "kl")})
    return table


def settings_of(decoding: str) -> list[tuple[str | None, float]]:
    """Return (guide, strength); greedy answers of the untrained guide are the base's own, so they are left out."""
    guides = ("untrained", "trained") if decoding == "sampled" else ("trained",)
    return [(None, 0.0), *((g, s) for g in guides for s in STRENGTHS)]


def kl_to_base(engine: Any, texts: Sequence[Any], answers: Sequence[Any], weights: dict[str, float]) -> float:
    """Estimate KL(guided ‖ base) in nats a token: mean of log p_guided − log π_base over the sampled tokens."""
    if not any(weights.values()):
        return 0.0
    total, tokens = 0.0, 0
    for text, answer in zip(texts, answers, strict=True):
        score = engine.score(text, answer.token_ids, guidance=weights)
        total += sum(score.combined) - sum(score.base)
        tokens += len(score.combined)
    return total / tokens


def write_report(results: Sequence[dict[str, Any]], folder: Path, command: str) -> None:
    """Write README.md, results.json and samples.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [(HERE / "first_guides_intro.md").read_text(encoding="utf-8").rstrip(), ""]
    for result in results:
        lines += section(result)
    lines += [
        "## How it was run",
        "",
        f"`{command}`, seed {SEED}, {MAX_TOKENS} tokens at most, {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__.split('+')[0]}. Every answer is in `samples.jsonl`.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
    slim = [
        {**r, "settings": [{k: v for k, v in s.items() if k not in ("answers", "rewards")} for s in r["settings"]]}
        for r in results
    ]
    (folder / "results.json").write_text(json.dumps(slim, indent=1) + "\n", encoding="utf-8")
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for result in results:
            prompts = (
                read_prompts(result["prompts"]["sources"], result["prompts"]["count"]) if result["settings"] else []
            )
            for i, row in enumerate(prompts):
                answers = {
                    f"{s['decoding']}/{s['guide']}/{s['strength']:g}": s["answers"][i] for s in result["settings"]
                }
                record = {
                    "objective": result["objective"],
                    "id": row["id"],
                    "prompt": row["prompt"],
                    "answers": answers,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def section(result: dict[str, Any]) -> list[str]:
    """Return one objective's part of the report."""
    r, pairs = result["ranking"], result["pairs"]

    def shown(accuracy: dict[str, float] | None) -> str:
        return "–" if accuracy is None else f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"

    matched = (r["matched_guide"] or {"n": 0})["n"]
    lines = [
        f"## {result['objective'].capitalize()}",
        "",
        f"Guide: {pairs['guide']} pairs, β_r {result['training']['beta']:g}, learning rate "
        f"{result['training']['learning_rate']:g}. "
        + (
            f"Scorer: {pairs['scorer']} other pairs; it ranks {result['scorer_accuracy']:.1%} of the {pairs['held_out']} "
            "held-out pairs right."
            if pairs["scorer"]
            else ""
        ),
        "",
        f"| held-out ranking accuracy [95 %] | all {r['n']} pairs | {matched} pairs of like length |",
        "|---|---|---|",
        f"| guide | **{shown(r['guide'])}** | {shown(r['matched_guide'])} |",
        f"| untrained model | {shown(r['untrained'])} | {shown(r['matched_untrained'])} |",
        f"| length alone ({r['length_rule']} wins) | {shown(r['length'])} | – |",
        "",
        f"Only the guide right: {r['only_guide_right']}, only the untrained model: {r['only_untrained_right']}; exact McNemar "
        f"p = {r['p_value']:.2g}.",
        "",
    ]
    if not result["settings"]:
        return lines
    lines += [
        f"Answers to {result['prompts']['count']} prompts ({', '.join(result['prompts']['sources'])}):",
        "",
        "| decoding | guide | w | mean reward by the scorer | gain over plain [95 %] | KL to base, nats a token | words |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in result["settings"]:
        low, high = s["gain_interval"]
        shown_gain = f"{s['gain']:+.2f} [{low:+.2f}, {high:+.2f}]" if s["guide"] != "none" else ""
        kl = "" if s["kl"] is None else f"{s['kl']:.2f}"
        lines.append(
            f"| {s['decoding']} | {s['guide']} | {s['strength']:g} | {s['reward']:+.2f} | {shown_gain} | {kl} | {s['words']:.0f} |"
        )
    lines += ["", "Trained against untrained at the same weight (the control that matters), sampled:", ""]
    by_key = {(s["decoding"], s["guide"], s["strength"]): np.array(s["rewards"]) for s in result["settings"]}
    for strength in STRENGTHS:
        gain = by_key["sampled", "trained", strength] - by_key["sampled", "untrained", strength]
        low, high = bootstrap_interval(gain)
        lines.append(f"- w = {strength:g}: {gain.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=["polite", "harmless", "both"], default="both")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/first_guides"))
    parser.add_argument("--output-dir", type=Path, default=HERE / "first_guides")
    parser.add_argument("--prompts", type=int, default=48)
    options = parser.parse_args()
    chosen = [s for s in STUDIES if options.objective in ("both", s.objective)]
    results = [run_or_load(study, options.work_dir, options.prompts) for study in chosen]
    write_report(results, options.output_dir, "python studies/first_guides.py")


if __name__ == "__main__":
    main()
