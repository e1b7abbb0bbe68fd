"""What ``trimtab evaluate`` says without writing anything: the plan of a run, and the scorers that there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.cli.console import out, print_json

if TYPE_CHECKING:
    from trimtab.cli.evaluate import EvaluateOptions
    from trimtab.evaluation.judges import Estimate
    from trimtab.evaluation.suites import Question
    from trimtab.evaluation.sweeps.run import Run


def show_plan(
    prepared: Run, options: EvaluateOptions, questions: Sequence[Question], costs: Estimate | None, *, as_json: bool
) -> None:
    """Print what will be written and how long that takes, and write nothing.

    Args:
        prepared: the run.
        options: of the command.
        questions: of a suite.
        costs: what a judge will be asked.
        as_json: print one JSON document.
    """
    from trimtab.evaluation.sweeps import store
    from trimtab.evaluation.sweeps.run import estimate_seconds, plan_jobs
    from trimtab.evaluation.sweeps.suites import later_turns

    jobs = plan_jobs(prepared)
    keys = {job.key for job in jobs}
    known = store.known_answers(options.output_dir).keys()
    pending = sum(s.kind == "guided" or s.kind == "method" for s in prepared.settings if s.weights)
    later = min(pending, 6) * len(prepared.prompts) * options.n if options.controls and options.temperature > 0 else 0
    each = len(keys) + later
    turns = round(each / len(prepared.prompts) * later_turns(questions))
    seconds = estimate_seconds(prepared) * (len(keys - known) + later + turns)
    scorers = [column.spec for column in prepared.columns]
    if as_json:
        print_json(
            {
                "settings": [setting.to_dict() for setting in prepared.settings],
                "prompts": len(prepared.prompts),
                "answers": len(keys),
                "answers_missing": len(keys - known),
                "answers_of_equal_kl_controls": later,
                "answers_of_later_turns": turns,
                "seconds_at_most": float(f"{seconds:.3g}"),  # a fast machine needs less than a tenth of a second
                "scorers": scorers,
                "judge": dataclasses.asdict(costs) if costs else None,
            }
        )
        return
    more = f", and {turns} to later turns" if turns else ""
    for setting in prepared.settings:
        out.print(f"  {setting.kind:<10} {setting.label}", markup=False)
    out.print(
        f"{len(prepared.prompts)} prompts × {options.n} samples: {len(keys)} answers, {len(keys - known)} to write; up "
        f"to {later} more for controls of equal KL, whose temperatures follow from these{more}. About "
        f"{seconds:.0f} s if no answer ends early. Scorers: {', '.join(scorers)}.",
        markup=False,
    )


def list_known(as_json: bool) -> None:
    """Print what scorers there are."""
    from rich import box
    from rich.table import Table

    from trimtab.evaluation.scorers.registry import known_scorers

    known = known_scorers()
    if as_json:
        print_json([{"usage": item.usage, **item.about.to_dict()} for item in known])
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("scorer", "what it measures (higher is better)", "range", "licence"):
        table.add_column(name, overflow="fold")
    for item in known:
        about = item.about
        table.add_row(item.usage, about.measures, f"{about.low:g} to {about.high:g} {about.unit}", about.licence)
    out.print(table)
