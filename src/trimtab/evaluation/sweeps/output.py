"""Writing numbers, plots and report into the run's folder."""

from __future__ import annotations

import json

from trimtab.evaluation.report.page import page
from trimtab.evaluation.report.plots import write_plots
from trimtab.evaluation.sweeps import store
from trimtab.evaluation.sweeps.run import Result


def write_outputs(folder: store.RunFolder, result: Result, *, shown_prompts: int = 64) -> None:
    """Write ``metrics.json``, ``report.html`` and the plots; each whole or not at all.

    Args:
        folder: the run's folder, locked.
        result: what it came to.
        shown_prompts: most prompts whose answers the report shows.

    Raises:
        OutputError: a file cannot be written.
        ConfigError: matplotlib is not installed.
    """
    write_report(folder, result, shown_prompts=shown_prompts)
    write_plots(result.metrics, folder.write)


def write_report(folder: store.RunFolder, result: Result, *, shown_prompts: int = 64) -> None:
    """Write ``metrics.json``, ``report.html`` and a judge's verdicts; the plots do not change with a judge.

    Args:
        folder: the run's folder, locked.
        result: what it came to.
        shown_prompts: most prompts whose answers the report shows.

    Raises:
        OutputError: a file cannot be written.
    """
    folder.write_lines(store.VERDICTS, result.judged)
    folder.write(store.METRICS, json.dumps(result.metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    shown = page(result.metrics, result.samples, result.tokens, judged=result.judged, shown_prompts=shown_prompts)
    folder.write(store.REPORT, shown)
