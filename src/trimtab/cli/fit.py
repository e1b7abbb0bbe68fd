"""``trimtab fit``: a preference vector from a handful of a user's own comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.console import note, out, print_json
from trimtab.cli.output import check_writable, write_whole

if TYPE_CHECKING:
    from trimtab.rewards.fit_report import PreferenceFit
    from trimtab.rewards.ranking import Accuracy

_ROUGH = 0.1  # of the margins' size; by then the curve between the points is worth a second look


_Guides = Annotated[
    list[str], typer.Option(help="Folder of a guide for several objectives, or of one guide an objective (repeatable).")
]
_EvalData = Annotated[
    list[str] | None, typer.Option(help="Other pairs of the user, to report accuracies on (repeatable).")
]
_Resolution = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=8,
        help="Score a conditioned guide at the weights 0, 1/N, …, 1; default: 4, or less for many objectives.",
    ),
]
_Output = Annotated[
    Path | None, typer.Option(help="Write guides and weights here as YAML, for --config of generate and chat.")
]


def fit_command(
    comparisons: Annotated[list[str], typer.Argument(help="The user's preference pairs: files or hub data sets.")],
    guide: _Guides,
    objective: Annotated[
        str | None, typer.Option(help="Which label is the user's; may be left out if the data has only one.")
    ] = None,
    eval_data: _EvalData = None,
    base: Annotated[str | None, typer.Option(help="The guides' base, if it lies elsewhere now.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N comparisons.")] = None,
    regularisation: Annotated[
        float, typer.Option(help="How strongly equal weights are assumed before any pair is seen.")
    ] = 0.5,
    folds: Annotated[int, typer.Option(min=0, help="Folds of the cross-validation; 0 leaves it out.")] = 10,
    resolution: _Resolution = None,
    seed: Annotated[int, typer.Option(help="Seed of the folds and intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs in one forward.")] = 16,
    output: _Output = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Find the weights of several objectives that explain a user's own choices.

    Scores the pairs with each guide and maximises the likelihood of the choices over all mixtures of the objectives,
    drawn a little towards equal weights. Accuracies are shown beside what costs nothing, and each weight with its 95 %
    interval, so that too few pairs are seen to be too few.
    """
    if output is not None:
        check_writable(output)
    from trimtab.cli.quiet import quiet_libraries
    from trimtab.cli.rank import read_data

    with quiet_libraries():
        from trimtab.rewards.fitting import fit

        pairs = read_data(comparisons, objective, limit)
        others = read_data(eval_data, objective, None) if eval_data else None
        found = fit(
            pairs,
            guide,
            objective=objective,
            eval_data=others,
            base=base,
            regularisation=regularisation,
            folds=folds,
            resolution=resolution,
            seed=seed,
            batch_size=batch_size,
            notify=note,
        )
    if output is not None:
        write_whole(output, _as_config(found, guide, base))
        note(f"Wrote {output}.")
    if json:
        print_json(found.to_dict())
    else:
        _show(found, guide)


def _as_config(found: PreferenceFit, guides: Sequence[str], base: str | None) -> str:
    import yaml

    from trimtab.rewards.manifest import read_manifest

    content: dict[str, Any] = {
        "base": base or read_manifest(guides[0]).base.id,
        "guide": list(guides),
        "weights": found.paste,
    }
    return f"# Fitted by trimtab to {found.pairs} pairs.\n" + yaml.safe_dump(content, sort_keys=False)


def _show(found: PreferenceFit, guides: Sequence[str]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title="Fitted preference", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("objective", "preference", "95 % interval", "weight"):
        table.add_column(column)
    for name, alpha in found.alpha.items():
        low, high = found.intervals[name]
        table.add_row(name, f"{alpha:.3f}", f"[{low:.3f}, {high:.3f}]", f"{found.weights[name]:g}")
    out.print(table)
    out.print(_accuracies(found))
    out.print(found.verdict, markup=False)
    held_out = found.held_out_log_likelihood
    out.print(
        f"Mean log-likelihood of a choice: {found.log_likelihood:.3f} nats"
        + (f", held out {held_out:.3f}" if held_out is not None else "")
        + "; a coin has -0.693.",
        markup=False,
    )
    if found.surface_error > _ROUGH:
        out.print(
            f"Between the points that were scored, margins are off by {found.surface_error:.0%} of their size: "
            "use a larger --resolution.",
            markup=False,
        )
    shown = " ".join(f"--guide {guide}" for guide in guides)
    out.print("Next, with a --strength of your choice:", markup=False)
    out.print(f"  trimtab generate {shown} --weights {found.paste} --prompt 'Your question'", markup=False)


def _accuracies(found: PreferenceFit) -> Any:
    from rich import box
    from rich.table import Table

    title = f"Accuracy on the user's {found.pairs} pairs (95 % interval)"
    title += f"; held out: {found.folds}-fold cross-validation" if found.folds else ""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    with_eval = found.rows[0].eval
    table.add_column("")
    table.add_column("these pairs")
    if found.folds:
        table.add_column("held out")
    if with_eval:
        table.add_column(f"{with_eval.n} other pairs")
    for row in found.rows:
        cells = [row.pairs, *([row.held_out] if found.folds else []), *([row.eval] if with_eval else [])]
        table.add_row(row.name, *(_cell(cell) for cell in cells))
    return table


def _cell(accuracy: Accuracy | None) -> str:
    return "-" if accuracy is None else str(accuracy)
