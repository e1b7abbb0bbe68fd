"""A whole comparison: answers of every setting, scores, numbers, report."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trimtab._version import __version__
from trimtab.errors import ConfigError
from trimtab.evaluation.sweeps import controls, store
from trimtab.evaluation.sweeps.aggregation import SCHEMA, SCHEMA_VERSION, Table, aggregate, measured_by
from trimtab.evaluation.sweeps.config import SweepConfig
from trimtab.evaluation.sweeps.generation import Job, Planner, Prompt, base_identity, described, write_answers
from trimtab.evaluation.sweeps.scoring import Column, add_scores, make_columns, pick_best
from trimtab.evaluation.sweeps.settings import Setting, objectives_of
from trimtab.evaluation.sweeps.statistics import Answers

if TYPE_CHECKING:
    from trimtab.engine import Engine

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


@dataclass
class Run:
    """A comparison on its way.

    Attributes:
        engine: base and guides, and untrained guides where they are models of their own.
        prompts: of the run.
        settings: the base first; controls are added as they become known.
        columns: the scorers.
        config: how.
        guides: names of the guides that are judged.
        notes: sentences for the report.
        written: answers written by this process.
    """

    engine: Engine
    prompts: Sequence[Prompt]
    settings: list[Setting]
    columns: list[Column]
    config: SweepConfig
    guides: list[str]
    notes: list[str] = field(default_factory=list[str])
    written: int = 0
    pickers: dict[str, Column] = field(default_factory=dict[str, Column])

    @property
    def base(self) -> Setting:
        """The base."""
        return self.settings[0]


@dataclass(frozen=True)
class Result:
    """What a comparison came to.

    Attributes:
        metrics: the content of ``metrics.json``.
        samples: the records of ``samples.jsonl``.
        tokens: key → token notes.
        written: answers written now; the others were there.
        judged: a judge's verdict on every pair, where one was asked.
    """

    metrics: dict[str, Any]
    samples: list[store.Record]
    tokens: Mapping[str, store.Record]
    written: int
    judged: Sequence[Mapping[str, Any]] = ()


def prepare(
    engine: Engine, prompts: Sequence[Prompt], settings: Sequence[Setting], config: SweepConfig, *, device: str = "auto"
) -> Run:
    """Make scorers and the controls that are known beforehand, so that what cannot work fails before any answer.

    Args:
        engine: base and guides; not to be used by the caller any more.
        prompts: of the run.
        settings: from :func:`~trimtab.evaluation.sweeps.settings.expand`.
        config: how.
        device: for scorers that are models.

    Raises:
        ConfigError: no prompts, an unknown scorer, or one that is not independent of the guides.
    """
    if not prompts:
        raise ConfigError("There are no prompts to evaluate on: give --prompts FILE.")
    folders = [guide.folder for guide in engine.guides.values()]
    names = list(engine.guides)
    base = engine.base
    columns = make_columns(config.scorers, folders, base=base, device=device, force=config.force)
    measured_by(config, columns, objectives_of(list(engine.guides.values())))
    by_spec = {column.spec: column for column in columns}
    pickers = {
        s.scorer: by_spec.get(s.scorer) or make_columns([s.scorer], [], base=base, device=device)[0]
        for s in settings
        if s.scorer is not None
    }
    run = Run(engine, prompts, list(settings), columns, config, names, pickers=pickers)
    if not config.controls:
        run.notes.append("This run has NO CONTROLS (--no-controls): a gain may be that of a sharper base.")
        return run
    run.engine, forms, missing = controls.with_untrained_guides(engine, [p.content for p in prompts])
    untrained, more = controls.untrained_controls(settings, run.engine, forms)
    run.settings += untrained
    run.notes += [*missing, *more]
    if any(form is None for form in forms.values()) and untrained:
        run.notes.append(
            "An untrained guide on the base's own weights is the base itself, so guiding with it at weight w is the "
            "base at temperature τ/(1 + w) exactly: one and the same control under both names, run once."
        )
    if controls.NOTHING in forms.values():
        run.notes.append(
            "An untrained policy scores 0 everywhere, so what it guides is the base: the comparison with the base is "
            "that with the untrained policy."
        )
    if config.temperature == 0:
        run.notes.append(
            "At temperature 0 a sharper base writes the base's own text, so the base is its own control; KL and "
            "log-probabilities are those of the distributions at temperature 1."
        )
    return run


def carry_out(run: Run, folder: store.RunFolder, *, command: str = "", progress: Progress | None = None) -> Result:
    """Write what is missing, score everything, and work out the numbers.

    Args:
        run: from :func:`prepare`.
        folder: where answers are kept.
        command: that started it, for the report.
        progress: told how far it is.

    Returns:
        What it came to; the folder holds the samples. Report and plots are the caller's to write.
    """
    started = time.monotonic()
    planner = Planner(run.engine, run.prompts, run.config.sampling(), run.config.number, run.config.n)
    _write(run, planner, folder, run.settings, progress)
    if run.config.controls:
        more = _temperature_controls(run, planner, folder)
        run.settings += more
        _write(run, planner, folder, more, progress)
    generated = time.monotonic()
    known = folder.known()
    records = {setting.name: _records(run, planner, setting, known) for setting in run.settings}
    samples = [record for rows in records.values() for record in rows]
    add_scores(samples, run.columns, progress=lambda d, t: progress("Scoring", d, t) if progress else None)
    answers = {name: Answers(rows, run.config.n) for name, rows in records.items()}
    objectives = objectives_of([guide for name, guide in run.engine.guides.items() if name in run.guides])
    numbers = aggregate(Table(run.settings, answers, run.columns), run.config, objectives)
    folder.finish(samples)
    seconds = {"answers": generated - started, "scores": time.monotonic() - generated}
    metrics: dict[str, Any] = {
        **_head(run, command, seconds),
        **numbers,
        "suite": None,
        "judge": None,
        "notes": [*run.notes, *numbers["notes"]],
    }
    if folder.damaged:
        metrics["notes"].append(f"{folder.damaged} damaged lines of an earlier run were left out and written again.")
    return Result(metrics, samples, folder.known_tokens(), run.written)


def plan_jobs(run: Run) -> list[Job]:
    """Return every answer that is known to be needed; controls of equal KL come on top."""
    planner = Planner(run.engine, run.prompts, run.config.sampling(), run.config.number, run.config.n)
    return [job for setting in run.settings for job in _jobs(run, planner, setting)]


def _jobs(run: Run, planner: Planner, setting: Setting) -> list[Job]:
    ladder = run.config.controls and run.config.temperature > 0 and setting.kind == "base"
    return planner.jobs(setting, ladder=ladder, notes=run.config.token_notes)


def _write(
    run: Run, planner: Planner, folder: store.RunFolder, settings: Sequence[Setting], progress: Progress | None
) -> None:
    jobs = [job for setting in settings for job in _jobs(run, planner, setting)]
    total = len({job.key for job in jobs})
    run.written += write_answers(
        run.engine,
        jobs,
        folder,
        sampling_of=planner.sampling_of,
        base_temperature=run.config.temperature,
        batch_size=run.config.batch_size,
        progress=lambda done: progress("Answering", done, total) if progress else None,
    )


def _temperature_controls(run: Run, planner: Planner, folder: store.RunFolder) -> list[Setting]:
    """Return the controls of equal KL, now that KL is known; untrained ones of that temperature get the role too."""
    known = folder.known()
    rungs = [
        found
        for job in _jobs(run, planner, run.base)
        if (found := known[job.key]["diagnostics"].get("ladder_kl")) is not None
    ]
    if not rungs:
        return []

    def mean_kl(setting: Setting) -> float:
        return Answers([known[job.key] for job in planner.jobs(setting)], run.config.n).mean_kl()

    kl = {s.name: mean_kl(s) for s in run.settings if s.kind in ("guided", "method") and s.best_of == 1}
    existing = [s for s in run.settings if s.kind == "control"]
    measured = cast("list[float]", np.mean(rungs, axis=0).tolist())
    ladders: dict[str, list[float]] = {}
    for name in kl:
        # By its own untrained control only, so that a setting's controls do not depend on which others there are.
        own = [s for s in existing if not s.weights and any(r == controls.Role("untrained", name) for r in s.roles)]
        reached = {s.temperature: mean_kl(s) for s in own}
        ladders[name] = controls.corrected_ladder(measured, reached, run.config.temperature)
    new, updated, missing = controls.temperature_controls(
        run.settings, kl, ladders, run.config.temperature, existing
    )  # fmt: skip
    run.settings = [*(s for s in run.settings if s.kind != "control"), *updated]
    run.notes += missing
    return new


def _records(
    run: Run, planner: Planner, setting: Setting, known: Mapping[str, store.Record]
) -> list[store.Record]:  # fmt: skip
    """Return a setting's records, prompt by prompt, each saying where it belongs."""
    rows = [{**known[job.key], **described(job), "scores": {}} for job in _jobs(run, planner, setting)]
    if setting.scorer is None:
        return rows
    return pick_best(rows, run.pickers[setting.scorer].scorer, setting.best_of, setting.name)


def _head(run: Run, command: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return what was run: models, prompts, sampling, versions."""
    engine = run.engine
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "base": base_identity(engine),
        "guides": [
            {
                "name": name,
                "objectives": list(guide.objectives),
                "weight": guide.recommended_weight,
                "weights_sha256": dict(guide.manifest.weights_sha256),
                "trained_on": guide.manifest.data.model_dump(mode="json") if guide.manifest.data else None,
            }
            for name, guide in engine.guides.items()
            if name in run.guides
        ],
        "prompts": {
            "count": len(run.prompts),
            "sha256": store.content_key({"prompts": [p.content for p in run.prompts]}),
        },
        "samples_per_prompt": run.config.n,
        "sampling": run.config.sampling().model_dump(mode="json", exclude={"n", "seed"}),
        "seed": run.config.number,
        "controls": run.config.controls,
        "scorers": [column.to_dict() for column in run.columns],
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "written": run.written,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return what the numbers were made with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"trimtab": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "transformers", "peft", "numpy"):
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return {**found, "system": sys.platform}


def estimate_seconds(run: Run, tokens: int = 8) -> float:
    """Return how long one answer of full length takes beside ``batch_size`` others, from a short trial."""
    batch = min(run.config.batch_size, 2 * len(run.prompts))
    prompts = [run.prompts[i % len(run.prompts)].content for i in range(batch)]
    guidance = next((s.guidance for s in run.settings if s.kind == "guided"), run.base.guidance)
    options: dict[str, Any] = {"temperature": run.config.temperature, "seed": 0, "ignore_eos": True}
    run.engine.generate(prompts[:1], guidance=guidance, sampling={**options, "max_tokens": 2})
    times: list[float] = []
    for length in (1, 1 + tokens):
        start = time.monotonic()
        run.engine.generate(
            prompts, guidance=guidance, sampling={**options, "max_tokens": length}, max_batch_size=batch
        )
        times.append(time.monotonic() - start)
    step = max(times[1] - times[0], 0.0) / tokens
    return (2 * times[0] + step * run.config.max_tokens) / batch
