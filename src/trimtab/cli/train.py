"""``trimtab train``: from preference pairs to a guide's folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli.console import note, out, print_json
from trimtab.cli.options import command_from, config_file, flag, resolve_config
from trimtab.training.config import TrainConfig

if TYPE_CHECKING:
    from trimtab.training.run import TrainResult

_EXTRA = [config_file(), flag("json", "Print the result as one JSON document.", "--json")]


def _run(given: dict[str, Any], config: Path | None, json: bool) -> None:
    """Train a guide (or a scalar reward model) on preference pairs and write its folder.

    The guide is a LoRA (or with --full-finetune a whole model) whose log-probability is the reward. With --method parm
    or uniarm it serves several objectives and is told at each use how much of each is wanted. With --method scalar
    the result is no guide but a judge: one number for a whole answer, for 'trimtab evaluate'. With --eval-data,
    held-out pairs are ranked before and after training.
    """
    resolved = resolve_config(TrainConfig, given, config)
    from trimtab.cli.quiet import quiet_libraries

    with quiet_libraries():
        from trimtab.training.run import train

        result = train(resolved, notify=note)
    if json:
        print_json(_as_json(result))
        return
    _show(result, resolved)


def _as_json(result: TrainResult) -> dict[str, Any]:
    return {
        "output_dir": str(result.output_dir),
        "objectives": list(result.objectives),
        "pairs": result.pairs,
        "metrics": result.metrics,
        "held_out": {name: report.to_dict() for name, report in result.reports.items()},
    }


def _show(result: TrainResult, config: TrainConfig) -> None:
    from trimtab.cli.rank import show_report

    if config.method == "scalar":
        _show_scalar(result)
        return
    seconds = result.metrics["wall_seconds"]
    loss = result.metrics.get("train_loss", float("nan"))
    out.print(
        f"Trained on {result.pairs} pairs in {seconds:.0f} s; mean loss {loss:.3f}. "
        f"The guide for {', '.join(map(repr, result.objectives))} is in {result.output_dir}",
        markup=False,
    )
    for report in result.reports.values():
        show_report(report)
    guide, base = shlex.quote(str(result.output_dir)), shlex.quote(config.base)
    held_out = shlex.quote(config.eval_data[0]) if config.eval_data else "FILE"
    out.print("Next:", markup=False)
    weights = ",".join(f"{name}={1 / len(result.objectives):.2g}" for name in result.objectives)
    steer = f" --weights {shlex.quote(weights)}" if config.conditioned else ""
    out.print(f"  trimtab rank --guide {guide} --data {held_out}", markup=False)
    out.print(f"  trimtab generate --base {base} --guide {guide}{steer} --prompt 'Your question'", markup=False)


def _show_scalar(result: TrainResult) -> None:
    name, folder = result.objectives[0], result.output_dir
    loss = result.metrics.get("train_loss", float("nan"))
    out.print(
        f"Trained on {result.pairs} pairs in {result.metrics['wall_seconds']:.0f} s; mean loss {loss:.3f}. The reward "
        f"model for {name!r} is in {folder}",
        markup=False,
    )
    report = result.report
    if report is not None:
        matched = f"; on {report.matched_guide.n} of like length {report.matched_guide}" if report.matched_guide else ""
        out.print(
            f"Of {report.n} held-out pairs it ranks {report.guide} right{matched}; length alone {report.length} (the "
            f"{report.length_rule} answer wins).",
            markup=False,
        )
    out.print("It judges and does not guide: name it among the scorers, as", markup=False)
    out.print(f"  --scorers {shlex.quote(f'reward:{folder}')}", markup=False)


train_command = command_from(TrainConfig, _run, extra=_EXTRA)
