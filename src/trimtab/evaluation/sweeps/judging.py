"""A language model compares the run's settings: which pairs it is asked about, and what that comes to.

The judge sees what the base was asked, without what a method's own system message adds, and two settings' answers.
Which pairs, and what the run's files say of them, is here; asking, verdicts and rates are those of
:mod:`trimtab.evaluation.judges`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trimtab.errors import ConfigError, did_you_mean
from trimtab.evaluation.judges.asking import Estimate, ask_about, estimate
from trimtab.evaluation.judges.independence import judge_dependence
from trimtab.evaluation.judges.pairs import AnswerPair
from trimtab.evaluation.judges.report import JudgedPair, JudgeReport
from trimtab.evaluation.sweeps import controls, store
from trimtab.evaluation.sweeps.generation import Planner
from trimtab.evaluation.sweeps.judge_options import SweepJudge
from trimtab.evaluation.sweeps.run import Run
from trimtab.evaluation.sweeps.settings import Setting
from trimtab.evaluation.sweeps.verdicts import adjust_p, judge_verdict

Texts = Mapping[str, Sequence[Sequence[str]]]
"""Setting → prompt → its answers."""
_BYTES_A_TOKEN = 4


@dataclass(frozen=True)
class Judging:
    """A judge that may be asked about a run.

    Attributes:
        config: which, and how.
        dependent: why it is not independent of the guides, if it was forced; else ``None``.
        api_key: bearer token of its endpoint; in no file.
    """

    config: SweepJudge
    dependent: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what the metrics say of it, before it has been asked."""
        config = self.config
        parts = urlsplit(config.judge_url)
        return {
            "model": config.judge_model,
            "endpoint": f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}",
            "verdict": config.verdict,
            "rubric": config.rubric,
            "samples": config.samples,
            "against": list(config.against),
            "dependent": self.dependent,
            "finished": False,
            "prompts": 0,
            "comparisons": [],
            "verdicts": [],
        }


@dataclass(frozen=True)
class Match:
    """A setting and what it is compared with.

    Attributes:
        setting: name of the setting whose wins are counted.
        against: name of the other.
        role: what the other is to it: base, untrained or temperature.
    """

    setting: str
    against: str
    role: str


def prepare_judge(
    run: Run, config: SweepJudge, *, bases: Sequence[str] = (), force: bool = False, api_key: str | None = None
) -> Judging:
    """Look at a judge before anything is written.

    Args:
        run: from :func:`~trimtab.evaluation.sweeps.run.prepare`.
        config: which judge, and how.
        bases: names by which the base was asked for, beside its own.
        force: let a judge judge that is not independent of the guides.
        api_key: of its endpoint.

    Raises:
        ConfigError: a setting that is not there, more samples than there are, or a judge that is not independent.
    """
    judged = [setting.name for setting in run.settings if setting.kind in ("guided", "method")]
    for name in config.settings:
        if name not in judged:
            raise ConfigError(f"--judge-settings: there is no setting {name!r} to judge.{did_you_mean(name, judged)}")
    if config.samples > run.config.n:
        raise ConfigError(
            f"--judge-samples {config.samples}: there are {run.config.n} answers a prompt; raise --n, or judge fewer."
        )
    folders = [guide.folder for name, guide in run.engine.guides.items() if name in run.guides]
    reason = judge_dependence(config.judge_model, folders, [run.engine.base.id, *bases])
    if reason is not None and not force:
        raise ConfigError(
            f"{reason} Name another model with --judge-model, or add --force, which marks its verdicts in the report."
        )
    return Judging(config, reason, api_key)


def matches(settings: Sequence[Setting], config: SweepJudge) -> list[Match]:
    """Return who is compared with whom: guided settings and methods with the base and their controls, as configured."""
    found: list[Match] = []
    for setting in settings:
        if setting.kind not in ("guided", "method") or (config.settings and setting.name not in config.settings):
            continue
        others = {role.kind: other.name for other in settings for role in other.roles if role.of == setting.name}
        others["base"] = settings[0].name
        found += [Match(setting.name, others[role], role) for role in config.against if role in others]
    return found


def expected(run: Run, judging: Judging, known: Mapping[str, store.Record], cache: Path | None) -> Estimate:
    """Return what asking will take at most, before the answers are written.

    Answers that are not there yet count as different from each other and as long as they may be, and controls of equal
    KL as one for each setting.

    Args:
        run: from :func:`~trimtab.evaluation.sweeps.run.prepare`.
        judging: the judge.
        known: key → answer of those that are there.
        cache: file of its replies.
    """
    config = judging.config
    planner = Planner(run.engine, run.prompts, run.config.sampling(), run.config.number, run.config.n)
    longest = "x" * (_BYTES_A_TOKEN * run.config.max_tokens)

    def unwritten(name: str) -> list[list[str]]:
        return _shelves([f"{name} {i} {longest}" for i in range(len(run.prompts) * run.config.n)], run)

    def texts(setting: Setting) -> list[list[str]]:
        if setting.best_of > 1:
            return unwritten(setting.name)  # which answer will be picked is not known
        jobs = planner.jobs(setting)
        return _shelves([known[j.key]["response"] if j.key in known else f"{j.key} {longest}" for j in jobs], run)

    found = matches(run.settings, config)
    written = {setting.name: texts(setting) for setting in run.settings}
    if "temperature" in config.against and run.config.controls and run.config.temperature > 0:
        judged = {match.setting for match in found}
        moved = [s.name for s in run.settings if s.name in judged and s.weights and s.best_of == 1]
        for name in moved[: controls.MOST_TEMPERATURES]:
            other = f"equal KL of {name}"
            written[other] = unwritten(other)
            found.append(Match(name, other, "temperature"))
    return estimate(_pairs(run, config, found, written), config, cache=cache)


def judge_answers(
    run: Run,
    judging: Judging,
    samples: Sequence[store.Record],
    cache: Path,
    *,
    told: Callable[[Estimate], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask the judge about the answers of a run, as far as its replies are not known yet.

    Args:
        run: that was carried out.
        judging: the judge.
        samples: the run's records, setting by setting, prompt by prompt.
        cache: file of its replies; what is in it is not asked again.
        told: called with what asking will take, before anything is asked.
        progress: told how far it is.

    Returns:
        ``metrics["judge"]``, and the verdict on every pair.

    Raises:
        JudgeError: the endpoint refuses or does not answer; what it said so far is in the file.
    """
    config = judging.config
    found = matches(run.settings, config)
    each = len(run.prompts) * run.config.n
    responses = [str(record["response"]) for record in samples]
    texts = {s.name: _shelves(responses[i * each : (i + 1) * each], run) for i, s in enumerate(run.settings)}
    pairs = _pairs(run, config, found, texts)
    if not pairs:
        return {**judging.to_dict(), "finished": True}, []
    if told:
        told(estimate(pairs, config, cache=cache))
    judged = ask_about(
        pairs,
        config,
        api_key=judging.api_key,
        cache=cache,
        progress=lambda done, total: progress("Judging", done, total) if progress else None,
    )
    count = len(pairs) // len(found)
    own = {match: judged[i * count : (i + 1) * count] for i, match in enumerate(found)}
    rows = [_comparison(config, match, slice) for match, slice in own.items()]
    adjust_p(rows)
    metrics = {
        **judging.to_dict(),
        "finished": True,
        "prompts": count // config.samples,
        "comparisons": rows,
        "verdicts": _verdicts(run, judging, rows),
    }
    verdicts = [
        _row(run, config, match, place, pair) for match, slice in own.items() for place, pair in enumerate(slice)
    ]
    return metrics, verdicts


def _shelves(texts: Sequence[str], run: Run) -> list[list[str]]:
    return [list(texts[i : i + run.config.n]) for i in range(0, len(texts), run.config.n)]


def _pairs(run: Run, config: SweepJudge, found: Sequence[Match], texts: Texts) -> list[AnswerPair]:
    """Return the pairs of all matches, match by match, prompt by prompt, sample by sample."""
    return [
        AnswerPair(
            f"{prompt.id}#{sample}",
            prompt.under(run.base.system),
            texts[match.setting][number][sample],
            texts[match.against][number][sample],
            group=str(number),
        )
        for match in found
        for number, prompt in enumerate(run.prompts[: config.limit])
        for sample in range(config.samples)
    ]


def _comparison(config: SweepJudge, match: Match, pairs: Sequence[JudgedPair]) -> dict[str, Any]:
    """Return one comparison as the metrics have it; rates as mean, low and high."""
    report = JudgeReport.of(config.judge_model, pairs)
    row: dict[str, Any] = {
        **vars(match),
        "scorer": config.judge_model,
        "pairs": len(pairs),
        **{name: getattr(report, name) for name in ("wins", "ties", "losses", "unjudged", "equal", "prompts")},
        "win_rate": _interval(report.win_rate, report.win_rate_interval),
        "length_controlled": _interval(report.length_controlled, report.length_controlled_interval),
        "shown_first": _interval(report.shown_first, report.shown_first_interval),
        "preference": report.preference,
        "consistency": report.consistency,
        "words": list(report.words),
        "problem": next((pair.problem for pair in pairs if pair.outcome is None), None),
    }
    return row if report.p_value is None else {**row, "p_value": report.p_value}


def _interval(value: float | None, ends: tuple[float, float] | None) -> dict[str, float] | None:
    return None if value is None or ends is None else {"mean": value, "low": ends[0], "high": ends[1]}


def _verdicts(run: Run, judging: Judging, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        own = {row["role"]: row for row in rows if row["setting"] == name}
        roles = {role.kind for setting in run.settings for role in setting.roles if role.of == name}
        word, why = judge_verdict(own, roles, dependent=judging.dependent is not None)
        found.append({"setting": name, "verdict": word, "why": why})
    return found


def _row(run: Run, config: SweepJudge, match: Match, place: int, pair: JudgedPair) -> dict[str, Any]:
    """Return one line of the file of verdicts."""
    number, sample = divmod(place, config.samples)
    content = {name: value for name, value in pair.to_dict().items() if name not in ("id", "group")}
    return {**vars(match), "id": run.prompts[number].id, "number": number, "sample": sample, **content}
