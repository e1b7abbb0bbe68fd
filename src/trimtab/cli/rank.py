"""``trimtab rank``: how well a guide ranks held-out pairs, beside the untrained model and length alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.console import note, out, print_json

if TYPE_CHECKING:
    from trimtab.rewards.ranking import Accuracy, RankReport


def rank_command(
    guide: Annotated[str, typer.Option(help="The guide's folder.")],
    data: Annotated[list[str], typer.Option(help="Held-out preference pairs: files or hub data sets (repeatable).")],
    objective: Annotated[
        str | None, typer.Option(help="Label to compare with; default: the guide's own, if the data has it.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The guide's base, if it lies elsewhere now.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N comparisons.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs in one forward.")] = 16,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Rank held-out pairs with a guide, with the untrained model, and by length alone.

    A sum of log-probabilities prefers short answers, so the guide's accuracy means something only beside the other two,
    and on the pairs whose answers are of like length (within 10 %). Intervals are Wilson's, 95 %.
    """
    from trimtab.cli.quiet import quiet_libraries

    with quiet_libraries():
        from trimtab.preferences import read_comparisons
        from trimtab.preferences.records import Comparison
        from trimtab.rewards.held_out import rank_guide
        from trimtab.rewards.manifest import read_manifest

        name = objective or read_manifest(guide).objective_names[0]
        comparisons: list[Comparison] = []
        for source in data:
            rest = None if limit is None else limit - len(comparisons)
            if rest != 0:
                comparisons += read_comparisons(source, objective=name, limit=rest).comparisons
        report, prepared = rank_guide(
            guide, comparisons, objective=objective, base=base, source=", ".join(data), batch_size=batch_size
        )
    note(f"Ranked {prepared.summary}.")
    if json:
        print_json(report.to_dict())
    else:
        show_report(report)


def show_report(report: RankReport) -> None:
    """Print the report as a table."""
    from rich.table import Table

    matched = report.matched_guide.n if report.matched_guide else 0
    table = Table(title=f"Held-out ranking accuracy on '{report.objective}' (95 % interval)", title_justify="left")
    table.add_column("")
    table.add_column(f"all {report.n} pairs")
    table.add_column(f"{matched} pairs of like length")
    table.add_row("guide", str(report.guide), _shown(report.matched_guide))
    table.add_row("untrained model", str(report.untrained), _shown(report.matched_untrained))
    table.add_row(f"length alone ({report.length_rule} wins)", str(report.length), "-")
    out.print(table)
    out.print(
        f"Guide against untrained: {report.gain:+.3f}; only the guide right {report.only_guide_right}, only the "
        f"untrained right {report.only_untrained_right}, exact McNemar p = {report.p_value:.2g}. "
        f"Mean reward margin {report.mean_margin:.3f} (untrained {report.untrained_margin:.3f}).",
        markup=False,
    )


def _shown(accuracy: Accuracy | None) -> Any:
    return "-" if accuracy is None else str(accuracy)
