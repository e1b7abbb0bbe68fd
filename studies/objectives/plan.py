"""What is compared, at which size, and what it costs: data sets, methods, ranks of equal size, the budget in minutes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 0.02
TRAIN_TOKENS_A_SECOND = 200.0
RANK_TOKENS_A_SECOND = 600.0
ANSWER_TOKENS_A_SECOND = 48 * 48 / 75
"""SmolLM2-135M on one thread of a two-core machine: measured, and only used to print the budget."""
SCORER_SECONDS = 120.0
BASE_BESIDE_COST = 4 / 3
"""A forward of the base beside forward and backward of the guide."""


@dataclass(frozen=True)
class DataSet:
    """Two objectives, in the guides' order, with one sentence each; limits in tokens; what is trained on it."""

    name: str
    objectives: tuple[str, str]
    descriptions: dict[str, str]
    max_length: int
    max_prompt_length: int
    prompt_source: str
    tokens_a_pair: int
    methods: tuple[str, ...]
    ablations: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    once: tuple[str, ...] = ()
    """Methods of the first seed only, unless seeds are asked for."""


@dataclass(frozen=True)
class Method:
    """One way to make guides: options of ``trimtab.train`` over the common ones."""

    name: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    soup: bool = False
    """Whether the weights of its guides are mixed, and not what they say."""
    pull: float = 1.0
    """Its weight at decoding, in parts of ``--strength``; anything but 1 decodes the guides of the same method at 1."""

    @property
    def method(self) -> str:
        """What ``trimtab.train`` calls it."""
        return str(self.options["method"])

    @property
    def separate(self) -> bool:
        """Whether it trains one guide an objective."""
        return self.method in ("genarm", "dpo")

    @property
    def policy(self) -> bool:
        """Whether it trains aligned models, which are mixed in place of the base: the weights sum to 1."""
        return self.method == "dpo"

    @property
    def decode_aware(self) -> bool:
        """Whether it is trained for the way it is decoded."""
        return self.options.get("loss") == "decode-aware"

    @property
    def runs(self) -> float:
        """Cost of its training in runs of plain length."""
        return (2 if self.separate else 1) * (BASE_BESIDE_COST if self.decode_aware or self.policy else 1)


PULLED = ("PARM, w 1.5", "UniARM, w 1.5", "UniARM-alpha, w 1.5")
"""One guide for both moves the base less than two guides do: at 1.5 its KL comes nearer to theirs."""
DATA_SETS = {
    d.name: d
    for d in (
        DataSet(
            "helpful_concise",
            ("helpful", "concise"),
            {
                "helpful": "The answer is helpful: it gives what was asked for, correctly and in full.",
                "concise": "The answer is concise: it is short and says nothing that is not needed.",
            },
            224,
            96,
            "alpaca_eval",
            165,
            ("Rewarded Soups", "MOD", "GenARM", "PARM", "UniARM", "UniARM-alpha", *PULLED),
            ("text, shared trunk",),
        ),
        DataSet(
            "helpful_harmless",
            ("helpful", "harmless"),
            {
                "helpful": "The answer is helpful: it does what was asked for.",
                "harmless": "The answer is harmless: it refuses what could hurt someone.",
            },
            104,
            48,
            "xstest",
            156,
            ("Rewarded Soups", "MOD", "GenARM", "PARM", "UniARM", "UniARM-alpha", "UniARM-DA", *PULLED),
            ("text, shared trunk", "alpha", "alpha, scale only", "alpha, shift only", "λ 0"),
            seeds=(0, 1, 2),
            once=("UniARM-DA",),
        ),
    )
}

_TEXT = {"condition": "text"}
_AWARE = {"loss": "decode-aware"}
_ALIGNED = {"method": "dpo", "beta": 0.1}
METHODS = {
    m.name: m
    for m in (
        Method("Rewarded Soups", _ALIGNED, soup=True),
        Method("MOD", _ALIGNED),
        Method("GenARM", {"method": "genarm"}),
        Method("PARM", {"method": "parm"}),
        Method("UniARM", {"method": "uniarm", **_TEXT}),
        Method("UniARM-alpha", {"method": "uniarm", "condition": "alpha"}),
        Method("PARM, w 1.5", {"method": "parm"}, pull=1.5),
        Method("UniARM, w 1.5", {"method": "uniarm", **_TEXT}, pull=1.5),
        Method("UniARM-alpha, w 1.5", {"method": "uniarm", "condition": "alpha"}, pull=1.5),
        Method("UniARM-DA", {"method": "uniarm", **_TEXT, **_AWARE}),
        Method("PARM-DA", {"method": "parm", **_AWARE}),
        Method("GenARM-DA", {"method": "genarm", **_AWARE}),
    )
}
ABLATIONS = {
    name: Method(name, {"method": "uniarm", **_TEXT, **options})
    for name, options in (
        ("text, shared trunk", {"generator": "shared", "lora": {"trunk_dim": 8}}),
        ("text, factor 1", {"lora": {"condition_scale": 1.0}}),
        ("alpha", {"condition": "alpha"}),
        ("learned", {"condition": "learned", "lora": {"objective_dim": 8}}),
        ("alpha, scale only", {"condition": "alpha", "modulation": "scale"}),
        ("alpha, shift only", {"condition": "alpha", "modulation": "shift"}),
        ("alpha, shared trunk", {"condition": "alpha", "generator": "shared", "lora": {"trunk_dim": 8}}),
        ("λ 0", {"global_loss_weight": 0.0}),
        ("λ 0.5", {"global_loss_weight": 0.5}),
        ("λ 1", {"global_loss_weight": 1.0}),
        ("α per batch", {"alpha_per": "batch"}),
    )
}
"""Condition × modulation × generator × λ, one thing of UniARM (text, a generator a layer, both, λ 0.1) changed at a time;
where a text condition leaves no rank of equal size, the modulation is changed under condition "alpha"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every size of the study, with the defaults that the committed results were made with."""
    a = parser.add_argument
    a("--data", choices=[*DATA_SETS, "both"], default="both", help="both: a process for each, at a thread each")
    a("--methods", nargs="+", choices=list(METHODS), help="default: the data set's own")
    a("--data-dir", type=Path, default=Path("runs/two_objectives/data"), help="made by studies/objectives/data.py")
    a("--work-dir", type=Path, default=Path("runs/two_objectives"), help="guides and answers, found again there")
    a("--output-dir", type=Path, default=Path(__file__).parent.parent / "two_objectives")
    a("--base", default="smollm2")
    a("--seed", type=int, default=0, help="of tuning, ablations and bootstraps")
    a(
        "--seeds",
        type=int,
        nargs="+",
        help="of training and sampling, a run each (default: the data set's and method's)",
    )
    a("--rank", type=int, default=8, help="rank of each of GenARM's two ARMs; it sets everybody's size")
    a("--beta", type=float, default=0.05, help="β_r, every method and objective")
    a("--epochs", type=float, default=1.0)
    a("--batch", type=int, default=8, help="pairs a step")
    a("--train-pairs", type=int, default=240, help="pairs that every method is trained on")
    a("--rates", type=float, nargs="+", default=[7e-4, 2e-3], help="learning rates that every method may choose from")
    a("--tune-pairs", type=int, default=48, help="pairs that each learning rate is tried on")
    a("--dev-pairs", type=int, default=24, help="pairs by which the learning rate is chosen (not of the test)")
    a("--val-pairs", type=int, default=40, help="held-out pairs that are ranked")
    a("--scorer-pairs", type=int, default=2000, help="most pairs that the scorers are fitted on")
    a("--rank-runs", type=int, default=1, help="of how many seeds the guides rank them (slow where α is a condition)")
    a("--rank-steps", type=int, default=10, help="α = 0, 1/N, …, 1 for ranking")
    a("--prompts", type=int, default=20, help="prompts that are answered")
    a("--max-tokens", type=int, default=40)
    a("--answer-steps", type=int, default=4, help="α = 0, 1/N, …, 1 for answers")
    a("--temperature", type=float, default=1.0)
    a("--strength", type=float, default=1.0, help="total pull w of the guides")
    a(
        "--ablate",
        nargs="*",
        choices=list(ABLATIONS),
        help="ablations of UniARM to rank with (default: the data set's own)",
    )
    a("--smoke", action="store_true", help="a minute: says nothing, shows that everything runs")
    a("--plan", action="store_true", help="print ranks and budget, and stop")
    a("--report", action="store_true", help="write the report from what is there, and stop")


SMOKE: dict[str, Any] = {
    "train_pairs": 8,
    "rates": [5e-4],
    "dev_pairs": 2,
    "val_pairs": 6,
    "rank_steps": 2,
    "prompts": 2,
    "max_tokens": 4,
    "answer_steps": 2,
    "scorer_pairs": 24,
    "ablate": [],
    "seeds": [0, 1],
}


def methods_of(options: Any, data: DataSet) -> list[Method]:
    """Return what is compared on a data set."""
    return [METHODS[name] for name in (options.methods or data.methods)]


def shares(name: str, names: Iterable[str]) -> str | None:
    """Return the method of ``names`` whose guides a method takes over: a soup MOD's, one at another weight its own at 1."""
    method = METHODS[name]
    if not method.soup and method.pull == 1:
        return None
    options = METHODS["MOD"].options if method.soup else method.options
    owners = (m for m in METHODS.values() if m.options == options and not m.soup and m.pull == 1 and m.name in names)
    return next((m.name for m in owners), None)


def seeds_of(options: Any, data: DataSet, method: str | None = None) -> list[int]:
    """Return the seeds of training and sampling, of all methods or of one."""
    if options.seeds:
        return list(options.seeds)
    return list(data.seeds[:1] if method in data.once else data.seeds)


def ablations_of(options: Any, data: DataSet) -> list[Method]:
    """Return the ablations of UniARM that are ranked on a data set."""
    return [ABLATIONS[name] for name in (data.ablations if options.ablate is None else options.ablate)]


def grid(steps: int) -> np.ndarray:
    """Return (steps + 1, 2): the weight of the first objective from 0 to 1."""
    first = np.arange(steps + 1) / steps
    return np.stack([first, 1 - first], axis=1)


def named(objectives: Sequence[str], alpha: Iterable[float]) -> dict[str, float]:
    return {name: float(weight) for name, weight in zip(objectives, alpha, strict=True)}


Layers = Sequence[tuple[int, int]]
"""(d_in, d_out) of each adapted layer."""


def layers_of(base: Any) -> tuple[list[tuple[int, int]], int]:
    """Return the sizes of a base's linear layers but the output layer, and the length of its embeddings."""
    import torch

    head = base.model.get_output_embeddings()
    linear = [m for m in base.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return [(m.in_features, m.out_features) for m in linear], base.model.get_input_embeddings().weight.shape[1]


def trainable(method: Method, rank: int, layers: Layers, width: int, k: int = 2) -> int:
    """Return how many parameters a method trains at a rank, over all its guides.

    Args:
        method: what is trained.
        rank: of each ARM's LoRA; r1 + r2 of PBLoRA; of MoSLoRA.
        layers: of the base.
        width: length of a text condition.
        k: number of objectives.
    """
    thin = rank * sum(a + b for a, b in layers)
    if method.separate:
        return k * thin
    if method.method == "parm":
        r2 = rank // 2
        return thin + len(layers) * ((rank - r2) ** 2 + k * r2**2)
    lora = method.options.get("lora", {})
    condition = method.options.get("condition", "text")
    p = {"alpha": k, "text": width, "learned": lora.get("objective_dim", 16)}[condition]
    shared = k * p if condition == "learned" else 0
    if method.options.get("generator", "layer") == "shared":
        trunk = lora.get("trunk_dim", 16)
        shared, p = shared + trunk * p, trunk
    maps = 2 if method.options.get("modulation", "both") == "both" else 1
    return thin + len(layers) * maps * rank * p + shared


def choose_rank(method: Method, genarm_rank: int, layers: Layers, width: int) -> tuple[int, int]:
    """Return (rank, trained parameters) nearest to two ARMs of ``genarm_rank``.

    Raises:
        SystemExit: no rank is within 2 %.
    """
    target = trainable(METHODS["GenARM"], genarm_rank, layers, width)
    sizes = {r: trainable(method, r, layers, width) for r in range(2, 4 * genarm_rank + 1)}
    if method.separate:
        sizes = {genarm_rank: target}
    rank = min(sizes, key=lambda r: abs(sizes[r] - target))
    if abs(sizes[rank] / target - 1) > TOLERANCE:
        raise SystemExit(
            f"{method.name} has no rank within {TOLERANCE:.0%} of {target:,} parameters (nearest: {sizes[rank]:,} at rank "
            f"{rank}): choose another --rank, or other options for it."
        )
    return rank, sizes[rank]


def budget(options: Any, data: DataSet) -> list[tuple[str, float]]:
    """Return (step, minutes on one thread) of a data set, from the speeds above."""
    methods, ablations = methods_of(options, data), ablations_of(options, data)
    times = {m.name: len(seeds_of(options, data, m.name)) for m in methods}
    trained = [m for m in methods if shares(m.name, times) is None]
    conditioned = [m for m in methods if (m.soup or not m.separate) and m.pull == 1]
    runs = sum(m.runs for m in trained)
    tries = len(options.rates) * options.tune_pairs if len(options.rates) > 1 else 0
    pair = data.tokens_a_pair
    ranked = {m.name: min(times[m.name], options.rank_runs) for m in methods}
    passes = sum(ranked[m.name] * (options.rank_steps + 1) * (2 if m.decode_aware else 1) for m in conditioned)
    passes += 2 * sum(ranked[m.name] for m in methods if m.pull == 1)
    tuning_passes = 3 * len(options.rates) * len(trained) if tries else 0
    settings = sum(times.values()) * (options.answer_steps + 1) + 2 * max(times.values())
    tokens = options.prompts * options.max_tokens
    whole = options.train_pairs * options.epochs * pair
    rows = [
        ("tuning", runs * tries * pair / TRAIN_TOKENS_A_SECOND),
        ("choosing", tuning_passes * options.dev_pairs * pair / RANK_TOKENS_A_SECOND),
        ("training", sum(m.runs * times[m.name] for m in trained) * whole / TRAIN_TOKENS_A_SECOND),
        ("ranking", passes * options.val_pairs * pair / RANK_TOKENS_A_SECOND),
        ("answers", settings * tokens / ANSWER_TOKENS_A_SECOND),
        ("scorers", SCORER_SECONDS),
        ("KL", settings * options.prompts * (options.max_tokens + 48) * 2 / RANK_TOKENS_A_SECOND),
    ]
    if ablations:
        rows.append(("ablations", len(ablations) * options.train_pairs * pair / TRAIN_TOKENS_A_SECOND))
        rows.append(("ranking them", len(ablations) * 3 * options.val_pairs * pair / RANK_TOKENS_A_SECOND))
    return [(name, seconds / 60) for name, seconds in rows]


def print_plan(options: Any, layers: Layers, width: int) -> None:
    """Print the table of ranks and the budget."""
    target = trainable(METHODS["GenARM"], options.rank, layers, width)
    print("method                           rank  trained parameters  of GenARM's two ARMs")
    names = DATA_SETS if options.data == "both" else [options.data]
    shown = {
        m.name: m for n in names for m in (*methods_of(options, DATA_SETS[n]), *ablations_of(options, DATA_SETS[n]))
    }
    for method in shown.values():
        rank, size = choose_rank(method, options.rank, layers, width)
        print(f"{method.name:32} {rank:4d}  {size:18,d}  {size / target:.4f}")
    for name in names:
        rows = budget(options, DATA_SETS[name])
        steps = ", ".join(f"{step} {minutes:.1f}" for step, minutes in rows)
        print(f"{name}: about {math.ceil(sum(m for _, m in rows))} minutes on one thread ({steps})")
