"""The parts of the study of one objective that are arithmetic: cubes, bootstrap, equal KL, verdicts, report."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from single import plan
from single.guides import Pairs, Trainer
from single.numbers import Curve, Draws, at_own_kl, common_levels, gap, interval, make_cube, wins
from single.report import write_report
from single.results import compare, place_of
from single.verdict import against_training, as_usually_run, at_test_time_equal, at_test_time_usual, over_sharpening
from study_arguments import command_of, parsed

JUDGES = {"words": "words:x", "encoder": "encoder:x"}


def record(reward: float, kl: float, tokens: int = 10) -> dict[str, Any]:
    return {
        "scores": {"words:x": reward, "encoder:x": -reward, "repetition": -0.25},
        "diagnostics": {"kl": kl / tokens, "base_logprob": -2.0 * tokens},
        "tokens": tokens,
        "response": "yes",
    }


def runs(shift: dict[str, tuple[float, float]], seeds: int = 3, prompts: int = 12) -> list[dict[str, Any]]:
    """Return records: each setting's reward is the prompt's own plus a shift, at a KL."""
    noise = np.random.default_rng(0).normal(size=(seeds, prompts))
    return [
        {name: [record(r + noise[s, p], kl) for p in range(prompts)] for name, (r, kl) in shift.items()}
        for s in range(seeds)
    ]


SHIFTS = {
    "base": (0.0, 0.0),
    "GenARM: strength 0.5": (1.0, 2.0),
    "GenARM: strength 1": (2.0, 4.0),
    "DPO: strength 0.5": (0.5, 2.0),
    "DPO: strength 1": (1.0, 4.0),
    "sharper base 1": (0.1, 1.0),
    "system prompt": (0.2, 1.0),
    "Best-of-4": (0.4, 0.6),
}


def test_settings_are_told_apart_by_name():
    assert place_of("GenARM: strength 0.25") == ("GenARM", 0.25)
    assert place_of("GenARM") == ("GenARM", 1.0)
    assert place_of("sharper base 0.5") == ("sharper base", 0.5)
    assert place_of("Best-of-16") == ("Best-of-16", 1.0)


def test_a_cube_is_seeds_by_prompts_with_kl_of_the_answer():
    cube = make_cube([[record(1.0, 3.0, 6), record(2.0, 0.0)]], JUDGES)
    assert cube.rewards["words"].tolist() == [[1.0, 2.0]]
    assert cube.kl.tolist() == [[pytest.approx(3.0), 0.0]]
    assert cube.repeated.tolist() == [[0.25, 0.25]]


def test_the_bootstrap_resamples_seeds_and_prompts():
    draws = Draws(3, 40)
    assert np.allclose(draws.seeds.sum(1), 1)
    assert np.allclose(draws.prompts.sum(1), 1)
    by_prompt = np.tile(np.linspace(-1, 1, 40), (3, 1))
    by_seed = np.repeat(np.array([[-1.0], [0.0], [1.0]]), 40, axis=1)
    for values in (by_prompt, by_seed):
        found = interval(draws.means(values))
        assert found is not None
        assert found["value"] == pytest.approx(0.0)
        assert found["low"] < -0.1
        assert found["high"] > 0.1
    # All prompts alike: only seeds are left to vary, in thirds.
    assert set(np.round(draws.means(by_seed) * 3).astype(int)) == {-3, -2, -1, 0, 1, 2, 3}


def test_one_seed_leaves_only_the_prompts():
    draws = Draws(1, 5)
    assert np.all(draws.seeds == 1)


def test_equal_kl_is_read_along_the_curve_and_nothing_is_said_beyond_it():
    two = np.ones((3, 1))
    curve = Curve(two * np.array([0.0, 2.0, 4.0]), two * np.array([0.0, 1.0, 2.0]))
    other = Curve(two * np.array([0.0, 4.0]), two * np.array([0.0, 1.0]))
    found = gap(curve, other, 2.0)
    assert found is not None
    assert found["value"] == pytest.approx(0.5)
    assert gap(curve, other, 5.0) is None
    assert common_levels([curve, other], 2) == pytest.approx([1.0, 4.0])
    cube = make_cube([[record(0.25, 1.0), record(0.25, 1.0)]], JUDGES)
    short = Draws(1, 2)
    wide = np.ones((len(short.seeds), 1))
    own = at_own_kl(Curve(wide * np.array([0.0, 2.0]), wide * np.array([0.0, 1.0])), cube, "words", short)
    assert own is not None
    assert own["value"] == pytest.approx(0.25)


def test_wins_count_ties_by_half():
    one = make_cube([[record(1, 0), record(0, 0), record(0, 0), record(-1, 0)]], JUDGES)
    other = make_cube([[record(0, 0)] * 4], JUDGES)
    found = wins(one, other, "words", Draws(1, 4))
    assert found["rate"]["value"] == pytest.approx(0.5)


def judged(shift: dict[str, tuple[float, float]]) -> dict[str, Any]:
    return compare(runs(shift), JUDGES, [True] * 12)["judged"]["words"]


def test_a_better_method_is_confirmed_and_a_worse_one_is_not():
    numbers = judged(SHIFTS)
    # GenARM earns half a point a nat along its curve: 0.3 at 0.6 nats, where Best-of-4 has 0.4.
    assert numbers["settings"]["Best-of-4"]["genarm_minus_this"]["value"] == pytest.approx(-0.1)
    assert against_training(numbers).word == "confirmed"
    assert as_usually_run(numbers).word == "confirmed"
    assert at_test_time_equal(numbers).word == "not confirmed"
    assert at_test_time_usual(numbers).word == "confirmed"
    swapped = {k.replace("GenARM", "*").replace("DPO", "GenARM").replace("*", "DPO"): v for k, v in SHIFTS.items()}
    assert against_training(judged(swapped)).word == "not confirmed"


def test_a_gain_over_the_sharper_base_is_said_only_where_it_reaches():
    far = over_sharpening(judged(SHIFTS))
    assert (far.word, far.text) == (
        "not told apart",
        "strengths that lie further from the base than any temperature that was run: 2",
    )
    near = over_sharpening(judged({**SHIFTS, "sharper base 1": (0.1, 2.5)}))
    assert near.word == "confirmed"
    assert near.text.startswith("w = 0.5: +0.92 [+0.92, +0.92]; strengths")


def test_no_difference_is_a_match_only_if_the_interval_is_narrow():
    same = {k: (r * (2 if k.startswith("DPO") else 1), kl) for k, (r, kl) in SHIFTS.items()}
    assert against_training(judged(same)).word == "confirmed"
    noisy = runs(same)
    rng = np.random.default_rng(1)
    for run in noisy:
        for row in (r for name, rows in run.items() if name.startswith("DPO") for r in rows):
            row["scores"]["words:x"] += rng.normal(scale=4)
    unsure = compare(noisy, JUDGES, [True] * 12)["judged"]["words"]
    assert against_training(unsure).word == "not told apart"


def test_prompts_that_are_not_asked_stand_apart():
    result = compare(runs(SHIFTS), JUDGES, [True] * 8 + [False] * 4)
    assert (result["prompts"], result["others"]) == (8, 4)
    row = result["judged"]["words"]["settings"]["GenARM: strength 1"]
    assert row["elsewhere"]["value"] != row["reward"]["value"]


def test_results_are_plain_json():
    json.dumps(compare(runs(SHIFTS), JUDGES, [True] * 12), allow_nan=False)


def test_the_budget_grows_with_seeds_and_pairs():
    parser = ArgumentParser()
    plan.add_arguments(parser)

    def minutes(*arguments: str) -> float:
        return sum(m for _, m in plan.budget(parser.parse_args(arguments), plan.DATA_SETS["polite"]))

    assert minutes("--seeds", "1") < minutes() < minutes("--pairs", "480")
    assert minutes("--best-of", "4") < minutes("--best-of", "64")


def trained_result() -> dict[str, Any]:
    """Return what a whole run leaves, with numbers made up."""
    methods = ("GenARM", "DPO", "reward model")
    made = {"rate": 1e-3, "dev_loss": {"0.001": 0.5}, "seconds": [60.0, 70.0]}
    ranked = {"all": [0.8, 0.7], "alike": [0.5, None], "n_alike": 3, "length_rule": "longer"}
    controls = {"untrained": {"value": 0.5}, "length": {"value": 0.5}, "interval": {"low": 0.4, "high": 0.6}}
    judge = {"measures": "m", "all": 0.9, "n": 10, "alike": None, "n_alike": 0}
    return {
        "data": "polite",
        **compare(runs(SHIFTS), JUDGES, [True] * 12),
        "counts": {"train": 4, "dev": 3, "scorer": 2, "val": 1},
        "seeds": [0, 1, 2],
        "system": "Be polite.",
        "trained": dict.fromkeys(methods, made),
        "ranking": {"pairs": 10, "alike": 3, **{name: {**ranked, **controls} for name in methods}},
        "judges": dict.fromkeys(JUDGES, judge),
        "runtime": {"base": 0.1, "GenARM": 0.2, "DPO": 0.25, "Best-of-4": 0.4},
        "seconds": [{"answers": 1.0, "scores": 1.0}],
        "samples": [{"id": 1, "prompt": "Hi", "answers": {"base": "Yes"}}],
        "options": {"rank": 8, "epochs": 1.0, "batch": 8, "max_tokens": 40},
        "machine": "here",
    }


def test_the_page_holds_claims_tables_figure_and_samples(tmp_path):
    intro = tmp_path / "intro.md"
    intro.write_text("# One objective\n")
    write_report([trained_result()], tmp_path / "out", intro, "python studies/one_objective.py")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "**confirmed**" in page
    assert "| Best-of-4 | 0.40 | 4.00 |" in page
    assert "| DPO, w = 0.5 |" in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "results.json",
        "samples.jsonl",
        "polite.png",
    }
    assert "samples" not in json.loads((tmp_path / "out" / "results.json").read_text())[0]


def test_a_command_names_no_folder_of_this_machine():
    given = ["--data", "polite", "--work-dir", "/somewhere", "--seeds", "2", "--report", "--output-dir=x"]
    assert command_of("one_objective.py", given) == "python studies/one_objective.py --data polite --seeds 2"


def test_a_smoke_run_has_sizes_and_folders_of_its_own():
    options = parsed(["--smoke", "--work-dir", "w"], None, plan.add_arguments, plan.SMOKE)
    assert options.work_dir == Path("w/smoke")
    assert options.output_dir == Path("w/smoke/report")
    assert all(getattr(options, name) == value for name, value in plan.SMOKE.items())
    assert parsed([], None, plan.add_arguments, plan.SMOKE).prompts > options.prompts


class Recorder(Trainer):
    """A trainer that writes down what it would train; the dev loss is least at a rate of 1e-3."""

    def __init__(self, work: Path) -> None:
        parser = ArgumentParser()
        plan.add_arguments(parser)
        pairs = Pairs(work, work, work, work, {})
        super().__init__(plan.DATA_SETS["polite"], parser.parse_args([]), pairs, work)
        self.asked: list[tuple[float, int, bool, float]] = []

    def train(self, name: str, rate: float, seed: int, *, tune: bool = False, epochs: float = 1.0) -> Path:
        self.asked.append((rate, seed, tune, epochs))
        folder = self.work / f"{rate}-{seed}-{epochs}"
        folder.mkdir(exist_ok=True)
        (folder / "study.json").write_text(json.dumps({"seconds": 1.0, "dev_loss": abs(rate - 1e-3) if tune else None}))
        return folder


def test_every_method_tries_the_same_rates_and_keeps_the_best_for_all_seeds(tmp_path):
    trainer = Recorder(tmp_path)
    made = trainer.method("DPO")
    assert made["rate"] == 1e-3
    assert trainer.asked == [(r, 0, True, 1.0) for r in (5e-4, 1e-3, 2e-3)] + [(1e-3, s, False, 1.0) for s in (1, 2)]
    assert len(made["folders"]) == 3
    trainer.asked.clear()
    trainer.method("reward model")
    assert trainer.asked[3:] == [(1e-3, seed, False, 3.0) for seed in (0, 1, 2)]
