"""Answers of every way of writing, found again by what they depend on, with exact KL to the large base beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from objectives.guides import shuffled, untrained
from trimtab.decoding.config import Sampling
from trimtab.evaluation.sweeps.controls import corrected_ladder, matching_temperature
from trimtab.evaluation.sweeps.generation import Planner, Prompt, write_answers
from trimtab.evaluation.sweeps.settings import Setting
from trimtab.evaluation.sweeps.store import RunFolder
from trimtab.preferences import Comparison
from trimtab.preferences.splitting import prompt_key
from weak_to_strong.plan import SYSTEM

SEED = 0
SHARPER = 0.5
"""Temperature at which the base IS the base guided by its own untrained self at w = 1."""

Records = dict[str, list[dict[str, Any]]]
"""Setting → one record a prompt."""


def prompts_of(val: Sequence[Comparison], count: int) -> list[Prompt]:
    """Return held-out prompts in an order that depends on nothing but their ids; those that ask the same count once."""
    rows = [row for row in shuffled(val) if not isinstance(row.prompt, str)][:count]
    return [Prompt(row.id, list(row.prompt)) for row in {prompt_key(row): row for row in rows}.values()]  # type: ignore[arg-type]


def strong_settings(options: Any, folders: dict[str, Path]) -> list[Setting]:
    """Return how the large base answers, the controls of equal KL apart; ways whose guide is absent are left out."""
    first, *others = options.seeds

    def way(family: str, guide: str, strength: float) -> Setting:
        return Setting(f"{family}, w = {strength:g}", "method", family, {guide: 1.0}, strength)

    made = [Setting("base", "base", "base")]
    families = {
        "0.5B ARM": f"genarm-small-{first}",
        "0.5B DPO, proxy": f"dpo-small-{first}",
        "1.5B ARM": f"genarm-large-{first}",
        "1.5B DPO": f"dpo-large-{first}",
        "0.5B untrained": "untrained",
    }
    for family, guide in families.items():
        made += [way(family, guide, w) for w in options.strengths if guide in folders]
    for seed in others:
        for family, method in (("0.5B ARM", "genarm"), ("0.5B DPO, proxy", "dpo")):
            if f"{method}-small-{seed}" in folders:
                made.append(way(f"{family}, seed {seed}", f"{method}-small-{seed}", 1.0))
    made.append(Setting(f"base at temperature {SHARPER:g}", "control", "base temperature", temperature=SHARPER))
    made.append(Setting("system prompt", "method", "system prompt", system=SYSTEM))
    return made


def weak_settings(options: Any, folders: dict[str, Path]) -> list[Setting]:
    """Return how the small model answers alone."""
    made = [Setting("0.5B alone", "base", "weak")]
    for family, method in (("0.5B with its ARM", "genarm"), ("0.5B DPO alone", "dpo")):
        guide = f"{method}-small-{options.seeds[0]}"
        if guide in folders:
            made.append(Setting(family, "method", "weak", {guide: 1.0}, 1.0))
    return made


def write_all(options: Any, folders: dict[str, Path], prompts: Sequence[Prompt]) -> Records:
    """Return the answers of every setting."""
    control = untrained(folders[f"genarm-small-{options.seeds[0]}"], options.small, options.work_dir / "untrained")
    guides = {**folders, "untrained": control}
    with RunFolder(options.work_dir / "answers") as folder:
        records = _strong(options, guides, prompts, folder)
        small = {name: path for name, path in folders.items() if "-small-" in name}
        with trimtab.load(options.small, guides=small, config={"speculation": "off"}) as engine:
            records |= _write(engine, options, prompts, folder, weak_settings(options, small))
    return records


def _strong(options: Any, guides: dict[str, Path], prompts: Sequence[Prompt], folder: RunFolder) -> Records:
    """Write the large base's answers; then the base's at the temperatures that bring the guided settings' KL."""
    bases = {name: options.small for name in guides if "-large-" not in name}
    with trimtab.load(options.large, guides=guides, guide_bases=bases, config={"speculation": "off"}) as engine:
        settings = strong_settings(options, guides)
        records = _write(engine, options, prompts, folder, settings)
        ladder = np.array([r["diagnostics"]["ladder_kl"] for r in records["base"] if "ladder_kl" in r["diagnostics"]])
        reached = {SHARPER: mean_kl(records[f"base at temperature {SHARPER:g}"])}
        rungs = corrected_ladder(ladder.mean(0).tolist(), reached, 1.0)
        wanted = [s.name for s in settings if s.family in ("0.5B ARM", "1.5B DPO") and s.strength >= 1]
        temperatures = {round(matching_temperature(mean_kl(records[name]), rungs, 1.0)[0], 2) for name in wanted}
        controls = [
            Setting(f"base at temperature {t:g}", "control", "base temperature", temperature=t)
            for t in sorted(temperatures - {SHARPER}, reverse=True)
        ]
        return records | _write(engine, options, prompts, folder, controls)


def _write(
    engine: Any, options: Any, prompts: Sequence[Prompt], folder: RunFolder, settings: Sequence[Setting]
) -> Records:
    planner = Planner(engine, prompts, Sampling(max_tokens=options.max_tokens), SEED, 1)
    records: Records = {}
    for setting in settings:
        jobs = planner.jobs(setting, ladder=setting.name == "base")
        write_answers(
            engine,
            jobs,
            folder,
            sampling_of=planner.sampling_of,
            base_temperature=1.0,
            batch_size=options.batch,
        )
        known = folder.known()
        records[setting.name] = [{**known[job.key], "prompt": job.prompt, "setting": setting.name} for job in jobs]
        for record in records[setting.name]:
            record.update(dataclasses.asdict(Kept(setting.family, setting.strength, setting.temperature)))
        print(f"{setting.name}: KL {mean_kl(records[setting.name]):.3f}", flush=True)
    return records


@dataclasses.dataclass(frozen=True)
class Kept:
    """What of a setting goes into its records."""

    family: str
    strength: float
    temperature: float


def mean_kl(records: Sequence[dict[str, Any]]) -> float:
    """Return KL(setting ‖ its base) in nats a token, of all answers together."""
    tokens = sum(record["tokens"] for record in records)
    return sum(record["diagnostics"]["kl"] * record["tokens"] for record in records) / tokens
