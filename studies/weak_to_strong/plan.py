"""What is trained, at which size, and what it costs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import trimtab

SAMPLE = Path(trimtab.__file__).parent / "data"
OBJECTIVE = "polite"
SYSTEM = "Answer politely: be courteous, warm and respectful."
BETAS = {"genarm": 0.05, "dpo": 0.1}
"""Each method's own, from its paper; tuning chooses the learning rate."""
MAX_LENGTH, MAX_PROMPT_LENGTH, BATCH = 256, 128, 8

Size = Literal["small", "large"]


@dataclass(frozen=True)
class Guide:
    """One adapter that is trained: how, on which of the two models, from which seed."""

    method: str
    size: Size
    seed: int

    @property
    def name(self) -> str:
        """What files call it."""
        return f"{self.method}-{self.size}-{self.seed}"


def guides(options: Any) -> list[Guide]:
    """Return what is trained, in this order: the large models from the first seed only."""
    first, *others = options.seeds
    made = [Guide(method, size, first) for method in options.methods for size in ("small", "large")]
    return made + [Guide(method, "small", seed) for seed in others for method in options.methods]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every size of the study, with the defaults that the committed results were made with."""
    a = parser.add_argument
    a("--small", help="the guides' model (default: the 0.5B model of models.py)")
    a("--large", help="the base that is guided (default: the 1.5B model of models.py)")
    a("--work-dir", type=Path, default=Path("runs/weak_to_strong"), help="guides and answers, found again there")
    a("--output-dir", type=Path, default=Path(__file__).parent)
    a("--scorer-share", type=float, default=0.45, help="share of the prompts whose pairs fit the scorer only")
    a("--methods", nargs="+", choices=list(BETAS), default=list(BETAS), help="genarm is needed")
    a("--pairs", type=int, default=128, help="pairs that every guide is trained on")
    a("--tune-pairs", type=int, default=64, help="of these, pairs that each learning rate is tried on")
    a("--dev-pairs", type=int, default=32, help="pairs by which the learning rate is chosen (of no other use)")
    a("--rates", type=float, nargs="+", default=[5e-4, 1.5e-3], help="learning rates that each method chooses from")
    a("--seeds", type=int, nargs="+", default=[0, 1], help="training seeds; the large model's: the first")
    a(
        "--strengths",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 2.0],
        help="weights w of the guides; 1 must be among them",
    )
    a("--prompts", type=int, default=40, help="held-out prompts that are answered; equal ones count once")
    a("--max-tokens", type=int, default=48)
    a("--batch", type=int, default=20, help="answers written at a time")
    a("--train-only", nargs="+", metavar="NAME", help="train these guides, such as genarm-small-0, and stop")
    a("--speed", action="store_true", help="measure the speed too (wants an otherwise idle machine)")
    a("--speed-rounds", type=int, default=5, help="prompts, in each of which every way has a turn")
    a("--threads", type=int, default=1)
    a("--smoke", action="store_true", help="two minutes on SmolLM2: says nothing, shows that everything runs")
    a("--plan", action="store_true", help="print what is trained and about how long it takes, and stop")


TRAIN_SECONDS = {"small": 1.0, "large": 3.0}
"""A pair, one thread of an idle two-core machine; measured, and only used to print the budget."""
DPO_COST = 4 / 3
"""A forward of the reference beside forward and backward of the policy."""
ANSWER_SECONDS = 1.8
"""An answer of 48 tokens by the guided 1.5B model, 20 at a time, with its part of reading and judging."""


def print_plan(options: Any, counts: dict[str, int]) -> None:
    """Print what is trained and about how long it takes on one thread."""
    print(", ".join(f"{name}: {count} pairs" for name, count in counts.items()))
    total = 0.0
    for method in options.methods:
        tuning = len(options.rates) * options.tune_pairs * TRAIN_SECONDS["small"]
        print(f"tuning {method}: {tuning * (DPO_COST if method == 'dpo' else 1) / 60:.0f} minutes")
        total += tuning
    for guide in guides(options):
        seconds = options.pairs * TRAIN_SECONDS[guide.size] * (DPO_COST if guide.method == "dpo" else 1)
        print(f"{guide.name}: {seconds / 60:.0f} minutes")
        total += seconds
    guided = len(options.methods) * (2 * len(options.strengths) + len(options.seeds) - 1)
    settings = guided + len(options.strengths) + len(options.methods) + 8
    answers = settings * options.prompts * ANSWER_SECONDS
    print(f"about {settings} settings of {options.prompts} answers: {answers / 60:.0f} minutes")
    print(f"about {(total + answers) / 60:.0f} minutes in all on one thread")


SMOKE: dict[str, Any] = {
    "small": "smollm2",
    "large": "smollm2",
    "pairs": 8,
    "tune_pairs": 8,
    "dev_pairs": 2,
    "rates": [5e-4, 1e-3],
    "seeds": [0, 1],
    "prompts": 3,
    "max_tokens": 6,
    "speed_rounds": 3,
}
