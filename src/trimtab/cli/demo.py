"""``trimtab demo``: train a small guide on real preferences and see it steer, in minutes, on a CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.progress import Progress
from rich.table import Table

from trimtab.cli.console import escape, note, out, progress_console
from trimtab.cli.quiet import quiet_libraries
from trimtab.cli.rank import show_report
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trimtab.evaluation.scorers import BagOfWordsScorer
    from trimtab.models import Text
    from trimtab.preferences import Comparison
    from trimtab.rewards.ranking import RankReport

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

    Two CPU cores need about three minutes; nothing is fetched from a model hub.
    """
    started = time.monotonic()
    guide = _guide_folder(output_dir)
    train_rows, held_out = load_sample()
    guide_rows, scorer_rows = train_rows[:pairs], train_rows[pairs:]
    with quiet_libraries():
        note(f"[1/4] The base, which stays frozen: {base}")
        _prepare(base)
        note(f"[2/4] Training a guide on {len(guide_rows)} preference pairs, objective '{OBJECTIVE}'")
        report = _train(base, guide_rows, held_out, guide, seed)
        note(f"[3/4] Fitting a scorer that is not the guide, on {len(scorer_rows)} other pairs")
        scorer = _fit_scorer(scorer_rows)
        strengths = ", ".join(f"{strength:g}" for strength in STRENGTHS)
        note(f"[4/4] Answering {len(SHOWN_PROMPTS) + prompts} prompts at strengths {strengths}")
        shown: list[Text] = [[{"role": "user", "content": p}] for p in SHOWN_PROMPTS]
        answers = _answer(base, guide, [*shown, *_prompts_of(held_out, prompts)])
    out.print()
    show_report(report)
    out.print(_answer_table(SHOWN_PROMPTS, answers))
    out.print(_score_table(scorer, held_out, [texts[len(shown) :] for texts in answers]))
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


def _prepare(base: str) -> None:
    """Fetch or convert the base now, so that what follows is training and nothing else."""
    from trimtab.models import resolve_folder

    resolve_folder(base)


def _train(base: str, rows: Sequence[Comparison], held_out: Sequence[Comparison], guide: Path, seed: int) -> RankReport:
    """Train through the public function, from files, as a user would."""
    from trimtab.preferences import write_comparisons
    from trimtab.training import train

    guide.parent.mkdir(parents=True, exist_ok=True)
    files = {"train": guide.parent / "train.jsonl", "held-out": guide.parent / "held_out.jsonl"}
    write_comparisons(files["train"], rows)
    write_comparisons(files["held-out"], held_out)
    result = train(
        base=base,
        data=[str(files["train"])],
        eval_data=[str(files["held-out"])],
        objective=OBJECTIVE,
        output_dir=str(guide),
        save_strategy="no",
        seed=seed,
        notify=note,
    )
    if result.report is None:
        raise ConfigError("The held-out sample is empty: reinstall trimtab.")
    return result.report


def _fit_scorer(rows: Sequence[Comparison]) -> BagOfWordsScorer:
    from trimtab.evaluation.scorers import BagOfWordsScorer

    return BagOfWordsScorer.fit(rows, OBJECTIVE)


def _prompts_of(comparisons: Sequence[Comparison], count: int) -> list[Text]:
    return [c.prompt for c in comparisons][:count]


def _answer(base: str, guide: Path, prompts: Sequence[Text]) -> list[list[str]]:
    """Return the greedy answers, one list a strength, all written in shared batches."""
    from trimtab.engine import load

    guidance = [strength for strength in STRENGTHS for _ in prompts]
    with Progress(console=progress_console, transient=True) as bar, load(base, guides=[guide]) as engine:
        task = bar.add_task("Answering", total=len(guidance))
        generations = engine.generate(
            [*prompts] * len(STRENGTHS),
            guidance=guidance,
            sampling={"temperature": 0, "max_tokens": MAX_TOKENS},
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    texts = [" ".join(g.text.split()) + (" …" if g.finish_reason == "length" else "") for g in generations]
    return [texts[i : i + len(prompts)] for i in range(0, len(texts), len(prompts))]


def _answer_table(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Table:
    """One block a prompt, one line a strength, so that it reads well in a narrow terminal."""
    table = Table(title="Plain and guided answers (greedy)", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("strength", justify="right", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for i, prompt in enumerate(prompts):
        table.add_row("", f"[bold]{escape(prompt)}[/bold]")
        for strength, texts in zip(STRENGTHS, answers, strict=True):
            last = strength == STRENGTHS[-1]
            table.add_row(_name(strength), escape(texts[i]), end_section=last)
    return table


def _score_table(scorer: BagOfWordsScorer, held_out: Sequence[Comparison], answers: Sequence[Sequence[str]]) -> Table:
    from trimtab.evaluation.scorers import bootstrap_interval

    table = Table(
        title=f"How polite a scorer that is not the guide finds the answers to {len(answers[0])} held-out prompts",
        caption=f"The scorer knows words only and was fitted on pairs the guide never saw; of the held-out pairs it "
        f"ranks {scorer.accuracy(held_out):.0%} right. Equal length: each answer and its plain one cut to the shorter "
        "of the two. Intervals: 95 %, bootstrap over prompts. Decoding is greedy, so an untrained guide would answer "
        "exactly as strength 0 does. More strength is not better for ever: read the answers above.",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for column in ("strength", "reward", "gain over plain", "at equal length", "words"):
        table.add_column(column, justify="right")
    for strength, texts in zip(STRENGTHS, answers, strict=True):
        rewards = scorer.score(texts)
        gains = [rewards - scorer.score(answers[0]), _gain_at_equal_length(scorer, texts, answers[0])]
        intervals = [(gain.mean(), *bootstrap_interval(gain)) for gain in gains]
        parts = [f"{mean:+.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in intervals]
        shown = ["", ""] if strength == 0 else parts
        words = sum(len(text.split()) for text in texts) / len(texts)
        table.add_row(_name(strength), f"{rewards.mean():+.2f}", *shown, f"{words:.0f}")
    return table


def _gain_at_equal_length(scorer: BagOfWordsScorer, texts: Sequence[str], plain: Sequence[str]) -> NDArray[np.float64]:
    """Return the gains when both answers are cut to the words of the shorter one: longer must not mean better."""
    lengths = [min(len(a.split()), len(b.split())) for a, b in zip(texts, plain, strict=True)]
    first, second = ([" ".join(t.split()[:n]) for t, n in zip(side, lengths, strict=True)] for side in (texts, plain))
    return scorer.score(first) - scorer.score(second)


def _name(strength: float) -> str:
    return "0 (plain)" if strength == 0 else f"{strength:g}"


def _explain(guide: Path, base: str, seconds: float) -> None:
    out.print(f"Done in {seconds / 60:.1f} minutes. The guide is a folder: {escape(str(guide))}\n")
    out.print("[bold]Steer with it yourself:[/bold]")
    out.print(f"  trimtab chat --base {escape(base)} --guide {escape(str(guide))} --strength 2")
    out.print("\n[bold]The same on your own model and data:[/bold]")
    for line in (
        "trimtab data check PAIRS.jsonl --against HELD_OUT.jsonl",
        "trimtab train --method genarm --base MODEL --data PAIRS.jsonl --eval-data HELD_OUT.jsonl \\",
        "              --objective NAME --output-dir runs/guide",
        "trimtab rank --guide runs/guide --data HELD_OUT.jsonl",
        "trimtab generate --base MODEL --guide runs/guide --strength 1 --prompt 'Your question'",
    ):
        out.print(f"  {line}", markup=False)
