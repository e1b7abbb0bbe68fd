"""``trimtab demo``: train a small guide on real preferences and see it steer, in minutes, on a CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from trimtab.cli.console import escape, note, out
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.evaluation.scorers import BagOfWordsScorer
    from trimtab.models import Base, Message
    from trimtab.preferences import Comparison

OBJECTIVE = "polite"
TRAIN_PAIRS = 320
STRENGTHS = (0.0, 1.0, 2.0)
MAX_TOKENS = 40
SCORED_PROMPTS = 24
SHOWN_PROMPTS = (
    "What is the boiling point of water?",
    "Give me a synonym for 'angry'.",
    "Why is the sky blue?",
    "Tell someone that their meeting was moved to Friday.",
    "What should I cook tonight?",
)


def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the guide is written.")] = Path("trimtab-demo"),
    base: Annotated[str, typer.Option(help="The model to steer: 'smollm2', a folder or a hub id.")] = "smollm2",
    pairs: Annotated[int, typer.Option(min=8, max=600, help="Preference pairs to train on.")] = TRAIN_PAIRS,
    prompts: Annotated[int, typer.Option(min=2, max=100, help="Held-out prompts to score.")] = SCORED_PROMPTS,
    seed: Annotated[int, typer.Option(help="Seed of the training run.")] = 0,
) -> None:
    """Train a small guide on real preference pairs and show plain and guided answers side by side.

    Two CPU cores need about five minutes; nothing is fetched from a model hub.
    """
    started = time.monotonic()
    guide = _guide_folder(output_dir)
    train_rows, held_out = load_sample()
    guide_rows, scorer_rows = train_rows[:pairs], train_rows[pairs:]
    note(f"1/4 Base model: {base} (frozen)")
    loaded = _load_base(base)
    note(f"2/4 Training a guide on {len(guide_rows)} pairs, objective '{OBJECTIVE}', into {guide}")
    report = _train(loaded, guide_rows, held_out, guide, seed)
    note(f"3/4 Fitting a scorer that is not the guide: words only, {len(scorer_rows)} pairs the guide never saw")
    scorer = _fit_scorer(scorer_rows)
    note(f"4/4 Answering {prompts} held-out prompts at strength {', '.join(f'{s:g}' for s in STRENGTHS)}")
    shown: list[list[Message]] = [[{"role": "user", "content": p}] for p in SHOWN_PROMPTS]
    asked = [*shown, *_prompts_of(held_out, prompts)]
    answers = _answer(loaded, guide, asked)
    out.print()
    out.print(report)
    out.print(_answer_table([a[: len(shown)] for a in answers]))
    out.print(_score_table(scorer, scorer.accuracy(held_out), [a[len(shown) :] for a in answers]))
    _explain(guide, base, time.monotonic() - started)


def load_sample() -> tuple[list[Comparison], list[Comparison]]:
    """Return the packaged sample's (train, val) comparisons."""
    from trimtab.preferences import read_comparisons

    folder = resources.files("trimtab") / "data"
    with resources.as_file(folder) as path:
        train = read_comparisons(path / "instruction_polite_train.jsonl.gz")
        held_out = read_comparisons(path / "instruction_polite_val.jsonl.gz")
    return train.comparisons, held_out.comparisons


def _guide_folder(output_dir: Path) -> Path:
    guide = output_dir / "guide"
    if guide.exists() and any(guide.iterdir()):
        raise ConfigError(f"{guide} exists already: remove it, or write elsewhere with --output-dir.")
    return guide


def _prompts_of(comparisons: Sequence[Comparison], count: int) -> list[list[Message]]:
    return [c.prompt for c in comparisons if not isinstance(c.prompt, str)][:count]


def _answer_table(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Table:
    """A block of rows a prompt: one line a strength, so that it reads well in a narrow terminal."""
    table = Table(title="Plain and guided answers (greedy)", show_lines=False, expand=False, pad_edge=False)
    table.add_column("strength", justify="right", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for i, prompt in enumerate(prompts):
        table.add_row("", f"[bold]{escape(prompt)}[/bold]")
        for strength, texts in zip(STRENGTHS, answers, strict=True):
            name = "0 (plain)" if strength == 0 else f"{strength:g}"
            table.add_row(name, escape(" ".join(texts[i].split())), end_section=strength == STRENGTHS[-1])
    return table
