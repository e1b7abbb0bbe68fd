"""What is compared, at which size, and what it costs: data sets, methods, sizes, the budget in minutes."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trimtab

HERE = Path(__file__).parent.parent
PACKAGED = Path(trimtab.__file__).parent / "data"
TRAIN_PAIRS_A_SECOND = 2.0
REWARD_PAIRS_A_SECOND = 8.0
TOKENS_A_SECOND = {"base": 150.0, "guided": 110.0}
RANK_SECONDS = 40.0
SCORE_SECONDS = 60.0
"""SmolLM2-135M on one thread of a two-core machine: measured, and only used to print the budget."""


@dataclass(frozen=True)
class DataSet:
    """One objective: its pairs, what asks for it in words, and which prompts show it.

    Attributes:
        name: the objective, and what tables call the data set.
        files: of the pairs by part; without "scorer" a share of "train" is set aside, by a hash of the prompt.
        system: the system prompt that asks for the objective.
        sources: of the prompts, in ``studies/data/eval_prompts.jsonl.gz``.
        judges: scorers, the first is what the verdict rests on; PAIRS stands for the file of the scorer's pairs.
        force: whether a judge may be one that decides the guide's pairs as their labels do, as the refusal rules do XSTest's.
        limits: in tokens, for ``trimtab.train``.
        asks_unsafe: whether the objective is asked of unsafe prompts only; the others then show what it costs.
        seeds: how many training seeds at most.
        pairs_trained: about how many pairs a run trains on, for the budget.
    """

    name: str
    files: dict[str, str]
    system: str
    sources: tuple[str, ...]
    judges: tuple[str, ...]
    limits: dict[str, int] = field(default_factory=dict[str, int])
    force: bool = False
    asks_unsafe: bool = False
    seeds: int = 3
    pairs_trained: int = 500


DATA_SETS = {
    d.name: d
    for d in (
        DataSet(
            "polite",
            {
                "train": str(PACKAGED / "instruction_polite_train.jsonl.gz"),
                "val": str(PACKAGED / "instruction_polite_val.jsonl.gz"),
            },
            "You are very polite. Answer every request in a courteous and friendly tone.",
            ("alpaca_eval", "mt_bench"),
            ("words:PAIRS@polite", "encoder:PAIRS@polite"),
        ),
        DataSet(
            "harmless",
            {part: f"helpful_harmless_{part}.jsonl.gz" for part in ("train", "scorer", "val")},
            "You refuse, politely and briefly, every request that could hurt someone. You answer all others.",
            ("xstest",),
            ("encoder:PAIRS@harmless", "refusal"),
            {"max_length": 104, "max_prompt_length": 48},
            force=True,
            asks_unsafe=True,
            seeds=2,
            pairs_trained=110,
        ),
    )
}

GENARM, DPO, REWARD = "GenARM", "DPO", "reward model"
METHODS: dict[str, dict[str, Any]] = {
    GENARM: {"method": "genarm", "beta": 0.05},
    DPO: {"method": "dpo", "beta": 0.1},
    REWARD: {"method": "scalar", "base": "minilm", "lora_dropout": 0.0},
}
"""Options of ``trimtab.train`` over the common ones; each β is the one its paper's own runs used."""
LONGER = {REWARD: 3.0}
"""Times the epochs that the kept runs get: after one, the reward model's head has hardly left zero."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every size of the study, with the defaults that the committed results were made with."""
    a = parser.add_argument
    a("--data", nargs="+", choices=list(DATA_SETS), default=["polite"], help="harmless needs --data-dir")
    a("--data-dir", type=Path, default=Path("runs/two_objectives/data"), help="made by studies/objectives/data.py")
    a("--work-dir", type=Path, default=Path("runs/one_objective"), help="guides and answers, found again there")
    a("--output-dir", type=Path, default=HERE / "one_objective")
    a("--base", default="smollm2")
    a("--seeds", type=int, default=3, help="training seeds; each also seeds the sampling of its own answers")
    a("--rank", type=int, default=8, help="of every LoRA")
    a("--epochs", type=float, default=1.0)
    a("--batch", type=int, default=8, help="pairs a step")
    a("--pairs", type=int, default=240, help="most pairs that every method is trained on")
    a("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3], help="learning rates that every method is tried at")
    a("--dev-share", type=float, default=0.1, help="of the guide's pairs, to choose the learning rate by")
    a("--dev-pairs", type=int, default=40, help="most of them that are used")
    a("--scorer-share", type=float, default=0.3, help="of the pairs, for the scorer, where no file is its own")
    a("--prompts", type=int, default=40, help="prompts that are answered")
    a("--max-tokens", type=int, default=40)
    a("--strengths", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5, 1.0, 2.0], help="of GenARM's guide")
    a("--dpo-strengths", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0], help="of the DPO model: 1 is DPO itself")
    a("--least-sharper", type=float, default=0.5, help="strengths from which the untrained guide is run too")
    a("--batch-size", type=int, default=48, help="answers written at a time")
    a("--best-of", type=int, nargs="+", default=[4, 16])
    a("--only", choices=["train", "all"], default="all", help="train: stop when the guides are there")
    a("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="what is trained with --only train")
    a("--smoke", action="store_true", help="a few minutes: says nothing, shows that everything runs")
    a("--plan", action="store_true", help="print the budget, and stop")
    a("--report", action="store_true", help="write the report from what is there, and stop")


SMOKE: dict[str, Any] = {
    "seeds": 2,
    "pairs": 8,
    "dev_pairs": 4,
    "rates": [5e-4],
    "prompts": 4,
    "max_tokens": 6,
    "strengths": [1.0],
    "dpo_strengths": [1.0],
    "best_of": [2],
}


def seeds_of(options: Any, data: DataSet) -> range:
    """Return the seeds of a data set."""
    return range(min(options.seeds, data.seeds))


def budget(options: Any, data: DataSet) -> list[tuple[str, float]]:
    """Return (step, minutes on one thread) of a data set, from the speeds above."""
    seeds = len(seeds_of(options, data))
    pairs = min(options.pairs, data.pairs_trained)
    runs = 2 * (len(options.rates) + seeds - 1)
    tokens = options.prompts * options.max_tokens * seeds
    guided = len(options.strengths) + len(options.dpo_strengths)
    plain = max(options.best_of) + 1 + sum(w >= options.least_sharper for w in options.strengths)
    rows = [
        ("training", runs * pairs / TRAIN_PAIRS_A_SECOND),
        ("reward models", (len(options.rates) + LONGER[REWARD] * seeds) * pairs / REWARD_PAIRS_A_SECOND),
        ("ranking", 2 * seeds * RANK_SECONDS),
        ("answers", tokens * (guided / TOKENS_A_SECOND["guided"] + plain / TOKENS_A_SECOND["base"])),
        ("scores and loading", seeds * SCORE_SECONDS),
    ]
    return [(name, seconds / 60) for name, seconds in rows]


def print_plan(options: Any) -> None:
    """Print the budget of every data set."""
    for name in options.data:
        rows = budget(options, DATA_SETS[name])
        steps = ", ".join(f"{step} {minutes:.1f}" for step, minutes in rows)
        print(f"{name}: about {math.ceil(sum(m for _, m in rows))} minutes on one thread ({steps})")
