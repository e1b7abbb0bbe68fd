"""Fitting a preference with guides on disk: users made from the guides' own margins, so that their α is known."""

from __future__ import annotations

import inspect
import json
import math

import pytest
import torch
import yaml
from torch.nn.functional import logsigmoid

import guides
import trimtab
from conditioned import adapted, config_of
from trimtab.cli.fit import fit_command
from trimtab.cli.main import main
from trimtab.errors import ConfigError, DataError
from trimtab.models import load_base
from trimtab.preferences import Comparison, Label, write_comparisons
from trimtab.preferences.fitting import REGULARISATION
from trimtab.preferences.vectors import lattice
from trimtab.rewards import Objective, save_guide
from trimtab.rewards.margins import read_guides, score_pairs

# Digits are a token each here, so all answers are of one length; else length alone would decide for every guide.
UNLABELLED = [
    Comparison(f"question {i % 20}", f" {(7919 * i + 13) % 10**6:06d}", f" {(6841 * i + 577) % 10**6:06d}", {})
    for i in range(100)
]


def float32(folder):
    return load_base(str(folder), dtype="float32")


def chosen_by(rewards):
    """The pairs with the label of a user who always takes the answer of higher reward, (N,) margins a − b."""
    return [
        Comparison(row.prompt, row.response_a, row.response_b, {"mine": Label.A if r > 0 else Label.B})
        for row, r in zip(UNLABELLED, rewards.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def plain(llama_folder, tmp_path_factory):
    """Two ARMs, and their reward margins on the pairs; β differs, so that rewards are not log-probabilities."""
    folder, base = tmp_path_factory.mktemp("plain"), float32(llama_folder)
    made = []
    for seed, (name, beta) in enumerate((("helpful", 0.1), ("concise", 0.05)), 1):
        manifest = guides.manifest(base, objectives=(Objective(name=name),), beta=beta)
        save_guide(folder / name, guides.lora_on(base, seed=seed), manifest)
        made.append(folder / name)
    margins = score_pairs(read_guides(made), UNLABELLED, base=base).guided
    return made, torch.tensor([[0.1], [0.05]]) * margins


def save_conditioned(llama_folder, folder, method, k):
    base = float32(llama_folder)
    config = config_of(method, base.tokenizer, k=k)
    names = tuple(Objective(name=name) for name in config.objectives)
    manifest = guides.manifest(base, adapter=method.partition("-")[0], objectives=names)
    save_guide(folder, adapted(base.model, config, scale=0.2), manifest)
    return folder


def test_a_user_of_known_preference_is_found(plain, llama_folder):
    """α over rewards, weights over log-probabilities: 0.7·0.1 to 0.3·0.05 is 14 to 3."""
    folders, rewards = plain
    user = chosen_by(0.7 * rewards[0] + 0.3 * rewards[1])
    found = trimtab.fit(user, folders, base=float32(llama_folder), resamples=200)
    assert found.alpha["helpful"] == pytest.approx(0.7, abs=0.08)
    assert found.intervals["helpful"][0] < 0.7 < found.intervals["helpful"][1]
    a, b = found.alpha.values()
    assert found.weights["helpful"] == pytest.approx(0.1 * a / (0.1 * a + 0.05 * b), abs=0.001)
    assert found.paste == f"helpful={found.weights['helpful']:g},concise={found.weights['concise']:g}"
    rows = {row.name: row for row in found.rows}
    assert list(rows) == [
        "fitted", "equal weights", "only helpful", "only concise", "untrained model", rows_length(found)
    ]  # fmt: skip
    assert rows["fitted"].held_out.value > 0.9
    assert rows["fitted"].held_out.value >= rows["only concise"].pairs.value
    # The decoding weights rank as the fitted reward does.
    mixed = found.weights["helpful"] * rewards[0] / 0.1 + found.weights["concise"] * rewards[1] / 0.05
    right = sum((m > 0) == (row.labels["mine"] is Label.A) for m, row in zip(mixed.tolist(), user, strict=True))
    assert rows["fitted"].pairs.value == pytest.approx(right / len(user), abs=0.011)
    assert (found.prompts, found.folds, found.points) == (20, 10, 0)
    json.dumps(found.to_dict(), allow_nan=False)


def rows_length(found):
    return next(row.name for row in found.rows if row.name.startswith("length alone"))


def test_the_order_of_guides_is_the_order_of_weights(plain, llama_folder):
    folders, rewards = plain
    user = chosen_by(0.7 * rewards[0] + 0.3 * rewards[1])[:30]
    one = trimtab.fit(user, folders, base=float32(llama_folder), resamples=10)
    two = trimtab.fit(user, folders[::-1], base=float32(llama_folder), resamples=10)
    assert list(two.alpha) == ["concise", "helpful"]
    assert dict(two.alpha) == pytest.approx(dict(one.alpha), abs=1e-4)


@pytest.mark.parametrize(("method", "k"), [("moslora-text", 2), ("pblora", 2), ("moslora-alpha", 3)])
def test_a_conditioned_guide_is_fitted_as_a_dense_grid_does(llama_folder, tmp_path, method, k):
    """The best α on a lattice that is scored point by point, with the scale s searched at each."""
    folder = save_conditioned(llama_folder, tmp_path / "g", method, k)
    base, known = float32(llama_folder), read_guides([tmp_path / "g"])
    truth = torch.tensor([[0.75, 0.25], [0.6, 0.1, 0.3]][k - 2])
    user = chosen_by(score_pairs(known, UNLABELLED, truth[None], base=base).guided[0])
    found = trimtab.fit(user, folder, base=base, resamples=100, folds=0)
    alpha = torch.tensor(list(found.alpha.values()), dtype=torch.float64)

    grid = torch.cat([alpha[None].float(), lattice(k, 20 if k == 2 else 8), torch.eye(k)])
    margins = 0.1 * score_pairs(known, user, grid, base=base).guided
    margins *= torch.tensor([1 if row.labels["mine"] is Label.A else -1 for row in user])
    size = margins[-k:].square().mean().sqrt()
    scale = torch.linspace(0.05, 30, 600, dtype=torch.float64)[:, None, None]
    likelihood = logsigmoid(scale * margins / size).sum(-1)
    v = scale * grid.double()  # (600, G, K)
    prior = (REGULARISATION * v.log() - k * REGULARISATION / 3 * v).sum(-1)
    value = (likelihood + prior).amax(0)
    assert found.surface_error < 0.1
    assert float(value[0]) >= float(value.max()) - 0.05
    ends = torch.tensor(list(found.intervals.values()))
    assert bool(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).all())
    assert found.weights == pytest.approx(found.alpha, abs=0.001)
    assert found.points == math.comb(4 + k - 1, k - 1)


def test_resolution_is_the_callers_to_choose(llama_folder, tmp_path):
    folder = save_conditioned(llama_folder, tmp_path / "g", "pblora", 2)
    user = chosen_by(torch.linspace(-1, 1, len(UNLABELLED)))[:10]
    coarse, fine = (trimtab.fit(user, folder, base=float32(llama_folder), resamples=5, resolution=m) for m in (1, 6))
    assert (coarse.points, fine.points) == (2, 7)
    assert fine.surface_error < coarse.surface_error


def test_one_pair_and_too_few_pairs_are_said_to_be_few(plain, llama_folder):
    folders, rewards = plain
    user = chosen_by(rewards[0])
    one = trimtab.fit(user[:1], folders, base=float32(llama_folder), resamples=100)
    assert one.rows[0].held_out is None
    assert one.verdict.startswith("1 pair cannot tell this preference from equal weights (0.50 is in every interval)")
    assert one.intervals["helpful"][1] - one.intervals["helpful"][0] > 0.5


def test_what_is_refused(plain, llama_folder, tmp_path):
    folders, rewards = plain
    user = chosen_by(rewards[0])
    conditioned = save_conditioned(llama_folder, tmp_path / "g", "pblora", 2)
    two = [Comparison("p", " a", " b", {"x": Label.A, "y": Label.B})]
    tied = [Comparison("p", " a", " b", {"x": Label.TIE})]
    for pairs, given, options, error, message in (
        ([], folders, {}, DataError, "no labelled pair"),
        (two, folders, {}, DataError, "several objectives"),
        (tied, folders, {}, DataError, "No pair of the comparisons is left: 1 tied"),
        ([Comparison("p", " a", " a", {"x": Label.A})], folders, {}, DataError, "1 equal answers"),
        (user, folders, {"eval_data": tied}, DataError, "No pair of the evaluation data is left: 1 tied"),
        (user, [*folders, conditioned], {}, ConfigError, "takes a preference itself"),
        (user, folders, {"resolution": 4}, ConfigError, "linear in α"),
        (user, conditioned, {"resolution": 9}, ConfigError, "1 to 8"),
    ):
        with pytest.raises(error, match=message):
            trimtab.fit(pairs, given, base=float32(llama_folder), **options)


def test_the_command(plain, llama_folder, tmp_path, capsys):
    folders, rewards = plain
    user = chosen_by(0.7 * rewards[0] + 0.3 * rewards[1])
    write_comparisons(tmp_path / "mine.jsonl", user[:70])
    write_comparisons(tmp_path / "other.jsonl", user[70:])
    flags = [str(tmp_path / "mine.jsonl"), "--eval-data", str(tmp_path / "other.jsonl"), "--base", str(llama_folder)]
    flags += [flag for folder in folders for flag in ("--guide", str(folder))]
    run(["fit", *flags, "--output", str(tmp_path / "mine.yaml")])
    shown = capsys.readouterr()
    for text in ("Fitted preference", "helpful", "untrained model", "length alone", "held out", "coin"):
        assert text in shown.out
    assert f"--guide {folders[1]} --weights helpful=0." in shown.out
    assert "Scoring 70 and 30 pairs." in shown.err
    config = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert config["guide"] == [str(folder) for folder in folders]
    run(["fit", *flags, "--json", "--folds", "0", "--limit", "20"])
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 20
    assert found["rows"][0]["name"] == "fitted"
    assert found["rows"][0]["held_out"] is None
    assert found["rows"][0]["eval"]["n"] == len(user) - 70
    assert found["paste"] == ",".join(f"{name}={weight:g}" for name, weight in found["weights"].items())
    run(["generate", "--config", str(tmp_path / "mine.yaml"), "--prompt", "hello", "--max-tokens", "3", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert config["weights"] == ",".join(f"{name}={weight:g}" for name, weight in answer["weights"].items())


def test_the_commands_default_is_the_librarys():
    assert inspect.signature(fit_command).parameters["regularisation"].default == REGULARISATION


def run(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
