"""``trimtab rank``: how well guides rank held-out pairs, beside the untrained model and length alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.console import note, out, print_json
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.rewards.mixed_ranking import MixedRanking
    from trimtab.rewards.ranking import Accuracy, RankReport


def rank_command(
    guide: Annotated[
        list[str], typer.Option(help="The guide's folder; several plain guides of one objective each (repeatable).")
    ],
    data: Annotated[list[str], typer.Option(help="Held-out preference pairs: files or hub data sets (repeatable).")],
    objective: Annotated[
        str | None, typer.Option(help="Label to compare with; default: the guide's own, if the data has it.")
    ] = None,
    preference: Annotated[
        list[str] | None,
        typer.Option(
            help="Rank at this mixture of the guides' objectives, such as helpful=0.7,harmless=0.3 (repeatable); "
            "default for guides of several objectives: each alone."
        ),
    ] = None,
    grid: Annotated[
        int | None, typer.Option(min=1, help="Rank at every mixture whose weights are multiples of 1/N.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The guide's base, if it lies elsewhere now.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N comparisons.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs in one forward.")] = 16,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Rank held-out pairs with a guide, with the untrained model, and by length alone.

    A sum of log-probabilities prefers short answers, so the guide's accuracy means something only beside the other two,
    and on the pairs whose answers are of like length (within 10 %). Intervals are Wilson's, 95 %. At a mixture of
    objectives, the right answer is the one that the weighted labels prefer.
    """
    from trimtab.cli.quiet import quiet_libraries

    shared: dict[str, Any] = {"base": base, "source": ", ".join(data), "batch_size": batch_size}
    with quiet_libraries():
        from trimtab.rewards.held_out import rank_guide
        from trimtab.rewards.manifest import read_manifest
        from trimtab.rewards.margins import CONDITIONED
        from trimtab.rewards.mixed_ranking import rank_preferences

        manifest = read_manifest(guide[0])
        if len(guide) > 1 or manifest.adapter in CONDITIONED:
            asked: Any = _preferences(objective, preference, grid)
            rankings = rank_preferences(guide, read_data(data, objective, limit), asked, grid=grid, **shared)
            _show_rankings(guide, rankings, json)
            return
        if preference or grid:
            raise ConfigError(
                f"The guide {guide[0]!r} has one objective and takes no preference: leave --preference and --grid "
                "out, or name a guide for each objective."
            )
        comparisons = read_data(data, objective or manifest.objective_names[0], limit)
        report, prepared = rank_guide(guide[0], comparisons, objective=objective, **shared)
    note(f"Ranked {prepared.summary}.")
    if json:
        print_json(report.to_dict())
    else:
        show_report(report)


def read_data(data: Sequence[str], objective: str | None, limit: int | None) -> list[Any]:
    """Return the comparisons of several sources, the first ``limit`` of them."""
    from trimtab.preferences import read_comparisons

    comparisons: list[Any] = []
    for source in data:
        rest = None if limit is None else limit - len(comparisons)
        if rest != 0:
            comparisons += read_comparisons(source, objective=objective, limit=rest).comparisons
    return comparisons


def _preferences(objective: str | None, preference: list[str] | None, grid: int | None) -> list[Any] | None:
    if objective is None:
        return preference
    if preference or grid:
        raise ConfigError("--objective ranks on one objective, --preference and --grid at mixtures: give one of them.")
    return [{objective: 1.0}]


def show_report(report: RankReport) -> None:
    """Print the report as a table."""
    from rich import box
    from rich.table import Table

    matched = report.matched_guide.n if report.matched_guide else 0
    table = Table(
        title=f"Held-out ranking accuracy on '{report.objective}' (95 % interval)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
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


def _show_rankings(guides: Sequence[str], rankings: Sequence[MixedRanking], as_json: bool) -> None:
    """Print one line a preference, and the mean over them."""
    if as_json:
        print_json({"guides": list(guides), "rankings": [ranking.to_dict() for ranking in rankings]})
        return
    from rich import box
    from rich.table import Table

    table = Table(
        title="Held-out ranking accuracy at each preference (95 % interval)", title_justify="left", box=box.SIMPLE_HEAD
    )
    names = [name for name in rankings[0].preference if any(ranking.preference[name] for ranking in rankings)]
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for column in ("pairs", "guide", "untrained", "length alone", "at like length", "p"):
        table.add_column(column, overflow="fold")
    for ranking in rankings:
        table.add_row(*(f"{ranking.preference[name]:.4g}" for name in names), *_line(ranking))
    out.print(table)
    reports = [ranking.report for ranking in rankings if ranking.report]
    left_out = [f"{ranking.rows - (ranking.report.n if ranking.report else 0)}" for ranking in rankings]
    out.print(
        f"Of {rankings[0].rows} rows {' or '.join(dict.fromkeys(left_out))} are left out: not judged on an objective "
        "with a weight, weighted labels that cancel, or equal answers. At like length: the guide, then the untrained "
        "model, on the pairs whose answers differ by 10 % of their tokens at most. p: exact McNemar, guide against "
        "untrained.",
        markup=False,
    )
    if len(reports) > 1:
        means = [
            sum(values) / len(reports)
            for values in zip(*((r.guide.value, r.untrained.value, r.length.value) for r in reports), strict=True)
        ]
        out.print(
            "Mean over preferences: guide {:.3f}, untrained {:.3f}, length alone {:.3f}.".format(*means), markup=False
        )


def _line(ranking: MixedRanking) -> list[str]:
    report = ranking.report
    if report is None:
        return ["0", "-", "-", "-", "-", "-"]
    matched = "-"
    if report.matched_guide and report.matched_untrained:
        matched = f"{report.matched_guide.value:.3f}, {report.matched_untrained.value:.3f} (n={report.matched_guide.n})"
    length = f"{report.length.value:.3f} ({report.length_rule})"
    untrained, p_value = f"{report.untrained.value:.3f}", f"{report.p_value:.2g}"
    return [str(report.n), str(report.guide), untrained, length, matched, p_value]


def _shown(accuracy: Accuracy | None) -> Any:
    return "-" if accuracy is None else str(accuracy)
