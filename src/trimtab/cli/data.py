"""``trimtab data check`` and ``trimtab data convert``: look at preference data, and turn it into another form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.console import escape, note, out, print_json

if TYPE_CHECKING:
    from trimtab.preferences import ReadResult
    from trimtab.preferences.checks import DataReport, Measure

app = typer.Typer(help="Check preference data, and convert it.", no_args_is_help=True)

_SHOWN_BAD_ROWS = 10

Source = Annotated[str, typer.Argument(metavar="FILE", help="Data file, or hub data set as owner/name[:split].")]
FormatOption = Annotated[
    str,
    typer.Option("--format", help="auto (from the columns), trl, labels, canonical, hh, pku, ultrafeedback or scores."),
]
ObjectiveOption = Annotated[
    str | None, typer.Option("--objective", help="What the one unnamed judgement of TRL and HH-RLHF rows is called.")
]
MarginOption = Annotated[float, typer.Option("--margin", help="Scores that differ by at most this are a tie.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Only the first so many good comparisons.")]
BadOption = Annotated[
    float, typer.Option("--max-bad-fraction", help="Largest share of bad rows, 0 to 1, that is accepted.")
]


@app.command("check")
def check(
    file: Source,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE", help="Other data to look for shared prompts in.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Model whose tokens lengths are counted in (else words).")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Also say what cutting prompt + answer at this does.")
    ] = None,
    max_prompt_length: Annotated[
        int | None, typer.Option("--max-prompt-length", min=1, help="With --max-length: limit of the prompt alone.")
    ] = None,
    format: FormatOption = "auto",
    objective: ObjectiveOption = None,
    margin: MarginOption = 0.0,
    limit: LimitOption = None,
    max_bad_fraction: BadOption = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Count labels, duplicates, bad rows and lengths, and say how well length alone foretells each label.

    Exits 1 if more rows are bad than accepted.
    """
    from trimtab.errors import ConfigError
    from trimtab.preferences import read_comparisons
    from trimtab.preferences.checks import check_comparisons

    if not 0.0 <= max_bad_fraction <= 1.0:
        raise ConfigError(f"The accepted share of bad rows is {max_bad_fraction}: give a number from 0 to 1.")
    if max_prompt_length is not None and max_length is None:
        raise ConfigError("--max-prompt-length says nothing without --max-length: give both.")
    options: dict[str, Any] = {"objective": objective, "margin": margin, "max_bad_fraction": 1.0}
    data = read_comparisons(file, format=format, limit=limit, **options)
    other = read_comparisons(against, **options) if against else None
    report = check_comparisons(
        data.comparisons,
        bad_rows=data.bad_rows,
        measure=_measure(base),
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        against=other.comparisons if other else None,
        against_name=against or "",
    )
    failed = data.bad_fraction > max_bad_fraction
    if as_json:
        head = {"file": file, "format": data.format, "sha256": data.sha256, "bad_fraction": data.bad_fraction}
        print_json(head | {"ok": not failed, "unpaired": len(data.unpaired)} | report.to_dict())
    else:
        _show(data, report, max_bad_fraction)
    if other is not None and other.bad_rows:
        note(f"{against}: {len(other.bad_rows)} bad rows left out, the first at {other.bad_rows[0]}")
    if failed:
        raise typer.Exit(1)


@app.command("convert")
def convert(
    file: Source,
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where to; .jsonl, .json, .csv, .tsv or .parquet, each also .gz.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="canonical, labels (TRL's columns, every label kept) or trl (one objective, decided rows)."
        ),
    ],
    format: FormatOption = "auto",
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            help="The objective that chosen and rejected follow; also the name of the input's unnamed judgement.",
        ),
    ] = None,
    margin: MarginOption = 0.0,
    limit: LimitOption = None,
    max_bad_fraction: BadOption = 0.01,
) -> None:
    """Write preference data in another form; the file appears whole or not at all."""
    from trimtab.preferences import read_comparisons, write_comparisons

    data = read_comparisons(
        file, format=format, objective=objective, margin=margin, limit=limit, max_bad_fraction=max_bad_fraction
    )
    result = write_comparisons(output, data.comparisons, format=to, objective=objective)
    out.print(f"{result.written} comparisons written to {escape(str(result.path))} ({escape(to)}).")
    if result.ties or result.missing:
        note(f"Left out: {result.ties} tied and {result.missing} not judged. --to labels keeps them.")
    if data.unpaired:
        note(f"Left out: {len(data.unpaired)} rows whose prompt no other row has.")
    _note_bad_rows(data)


def _measure(base: str | None) -> Measure:
    from trimtab.preferences.checks import token_measure, word_measure

    if base is None:
        return word_measure()
    from trimtab.models.loading import load_tokenizer

    return token_measure(load_tokenizer(base))


def _note_bad_rows(data: ReadResult) -> None:
    for row in data.bad_rows[:_SHOWN_BAD_ROWS]:
        note(f"Bad row left out: {row}")
    if len(data.bad_rows) > _SHOWN_BAD_ROWS:
        note(f"… and {len(data.bad_rows) - _SHOWN_BAD_ROWS} more bad rows.")


def _show(data: ReadResult, report: DataReport, accepted: float) -> None:
    kinds = {0: "plain text", report.comparisons: "chats"}
    kind = kinds.get(report.conversational, f"{report.conversational} chats, the others plain text")
    out.print(f"[bold]{escape(data.source)}[/bold]")
    out.print(
        f"{report.comparisons} comparisons of {report.prompts} prompts, format {data.format}, {kind}", soft_wrap=False
    )
    if data.unpaired:
        out.print(f"{len(data.unpaired)} rows have no partner with the same prompt and make no comparison")
    _show_labels(data, report)
    _show_lengths(report)
    _show_findings(report)
    _show_bad_rows(data, accepted)


def _show_labels(data: ReadResult, report: DataReport) -> None:
    table = _table("Labels", "objective", "prefers a", "prefers b", "tie", "missing")
    for item in report.objectives:
        cells = (item.prefers_a, item.prefers_b, item.ties, item.missing)
        table.add_row(escape(item.name), *(str(cell) for cell in cells))
    out.print(table)
    table = _table(
        "What length alone foretells (95 % interval)", "objective", "shorter wins", "longer wins", "of pairs"
    )
    for item in report.objectives:
        shorter, longer = (
            _share(item.shorter_wins, item.shorter_interval),
            _share(item.longer_wins, item.longer_interval),
        )
        table.add_row(escape(item.name), shorter, longer, str(item.unequal))
    out.print(table)


def _show_lengths(report: DataReport) -> None:
    columns = ("min", "mean", "50 %", "90 %", "95 %", "99 %", "max")
    table = _table(f"Length in {report.unit}", "", *columns)
    for item in report.lengths:
        cells = (item.minimum, round(item.mean), *item.percentiles.values(), item.maximum)
        table.add_row(item.what, *(str(cell) for cell in cells))
    out.print(table)
    if report.unit == "words":
        out.print("[dim]Words, for want of a tokenizer: --base MODEL counts tokens.[/dim]")


def _show_findings(report: DataReport) -> None:
    found = report.duplicates
    lines = [
        f"Duplicates: {found.repeated} rows repeat an earlier pair "
        f"({found.swapped} with the answers swapped, {found.contradicting} contradict it)"
    ]
    lines += [f"  {escape(example)}" for example in found.examples]
    if report.overlap is not None:
        o = report.overlap
        lines.append(f"Shared with {escape(o.against)}: {o.prompts} prompts ({o.rows} rows here), ")
        lines[-1] += f"{o.first_messages} first user messages"
    if report.truncation is not None:
        t = report.truncation
        lines.append(f"Cut at {t.max_length} {report.unit}: {t.prompts_cut} prompts, {t.pairs_cut} pairs of answers; ")
        lines[-1] += f"{t.pairs_equal} pairs become equal (training drops them)"
    for line in lines:
        out.print(line, soft_wrap=False)


def _show_bad_rows(data: ReadResult, accepted: float) -> None:
    if not data.bad_rows:
        out.print("Bad rows: none")
        return
    verdict = "over" if data.bad_fraction > accepted else "within"
    out.print(
        f"[bold]Bad rows: {len(data.bad_rows)}[/bold] ({data.bad_fraction:.1%}, {verdict} the accepted {accepted:.1%})"
    )
    for row in data.bad_rows[:_SHOWN_BAD_ROWS]:
        out.print(f"  line {row.line}: {escape(row.reason)}", soft_wrap=False)
    if len(data.bad_rows) > _SHOWN_BAD_ROWS:
        out.print(f"  … and {len(data.bad_rows) - _SHOWN_BAD_ROWS} more (--json lists all)")


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.1%} ({interval[0]:.1%}–{interval[1]:.1%})"


def _table(title: str, first: str, *others: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
