"""Ranking at preferences: by hand on known margins, and with real small guides against the plain way."""

from __future__ import annotations

import json

import pytest
import torch

import guides
from conditioned import adapted, config_of
from trimtab.cli.main import main
from trimtab.errors import ConfigError, DataError, GuidanceError
from trimtab.models import load_base
from trimtab.preferences import Comparison, Label, write_comparisons
from trimtab.rewards import Objective, load_guide_model, save_guide
from trimtab.rewards.conditioned import preference
from trimtab.rewards.held_out import rank_guide
from trimtab.rewards.margins import PairMargins, encoder_of, read_guides, score_pairs
from trimtab.rewards.mixed import prepare_mixed
from trimtab.rewards.mixed_ranking import mixed_report, rank_preferences
from trimtab.rewards.ranking import score_margins

A, TIE, B = Label.A, Label.TIE, Label.B
WORDS = ["please", "go away", "thank you very much indeed", "no", "I would be happy to help", "why"]


def rows(labels):
    return [
        Comparison(f"question {i % 4}", f" {WORDS[i % 6]} {i}", f" {WORDS[(i + 1) % 6]} {i}", label)
        for i, label in enumerate(labels)
    ]


def float32(folder):
    return load_base(str(folder), dtype="float32")


ROWS = rows(
    [{"helpful": a, "concise": b} for a, b in [(A, B), (B, A), (A, A), (TIE, B), (B, B), (A, TIE)] * 2]
    + [{"helpful": A}, {"helpful": TIE, "concise": TIE}]
)


def plain_guide(folder, base, name, seed, beta=0.1):
    options = {"objectives": (Objective(name=name),), "beta": beta}
    save_guide(folder, guides.lora_on(base, seed=seed), guides.manifest(base, **options))
    return folder


@pytest.fixture
def plain(llama_folder, tmp_path):
    base = float32(llama_folder)
    return [plain_guide(tmp_path / name, base, name, seed) for seed, name in enumerate(("helpful", "concise"), 1)]


def conditioned_guide(llama_folder, folder, method="moslora-text"):
    base = float32(llama_folder)
    model = adapted(base.model, config_of(method, base.tokenizer, k=3))
    names = tuple(Objective(name=name) for name in ("helpful", "harmless", "concise"))
    save_guide(folder, model, guides.manifest(base, adapter=method.partition("-")[0], objectives=names))
    return folder


def test_a_report_by_hand():
    """At (0.7, 0.3) the rows' labels are +, −, +, tie, missing, and + with equal answers.

    Margins a − b: guide 2, 1, −1, so signed by the label 2 (right), −1 (wrong), −1 (wrong): 1/3. Untrained −1, −1, 3:
    wrong, right, right: 2/3. Chosen and rejected lengths (3, 5), (4, 4), (9, 2): shorter right, half, wrong: 1.5/3.
    """
    labels = [{"x": A, "y": B}, {"x": B, "y": A}, {"x": A}, {"x": TIE, "y": TIE}, {"x": A}, {"x": A, "y": A}]
    labels[2] = {"x": A, "y": A}
    pairs = PairMargins(
        guided=torch.tensor([[2.0, 1, -1, 9, 9, 0]]),
        untrained=torch.tensor([[-1.0, -1, 3, 9, 9, 0]]),
        lengths=[(3, 5), (4, 4), (9, 2), (1, 1), (1, 1), (2, 2)],
        truncated=[True, False, False, True, True, True],
        equal=[False] * 5 + [True],
    )
    found = mixed_report(rows(labels), {"x": 0.7, "y": 0.3}, pairs.guided[0], pairs.untrained[0], 0.5, pairs)
    assert (found.rows, found.missing, found.ties, found.equal) == (6, 1, 1, 1)
    report = found.report
    assert report is not None
    assert (report.objective, report.n, report.truncated) == ("x=0.7,y=0.3", 3, 1)
    assert report.guide.value == pytest.approx(1 / 3)
    assert report.untrained.value == pytest.approx(2 / 3)
    assert report.shorter_wins.value == pytest.approx(0.5)
    assert report.mean_margin == 0.5 * (2 - 1 - 1) / 3


def test_a_plain_guide_alone_ranks_as_before(plain, llama_folder):
    """One-hot preferences over plain guides are those guides alone."""
    alone = [rank_guide(folder, ROWS, base=float32(llama_folder))[0] for folder in plain]
    together = rank_preferences(plain, ROWS, base=float32(llama_folder))
    assert [ranking.preference for ranking in together] == [
        {"helpful": 1.0, "concise": 0.0},
        {"helpful": 0.0, "concise": 1.0},
    ]
    for ranking, expected in zip(together, alone, strict=True):
        found = ranking.report.to_dict()
        for key, value in expected.to_dict().items():
            assert found[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key


def test_plain_guides_add_their_weighted_margins(plain, llama_folder):
    base = float32(llama_folder)
    known = read_guides(plain)
    scored = score_pairs(known, ROWS, base=base)
    assert torch.allclose(scored.untrained[0], scored.untrained[1], atol=1e-5)
    encoder, longest = encoder_of(known.manifests[1], base)
    prepared = prepare_mixed(ROWS, {"concise": 1.0}, encoder)
    expected = score_margins(load_guide_model(plain[1], base), prepared.pairs, max_length=longest)
    signs = [row.labels.get("concise", TIE) for row in ROWS]
    found = [sign * float(margin) for sign, margin in zip(signs, scored.guided[1], strict=True) if sign]
    assert found == pytest.approx(expected, abs=1e-4)
    (ranking,) = rank_preferences(plain, ROWS, ["helpful=0.7,concise=0.3"], base=float32(llama_folder))
    margins = 0.7 * scored.guided[0] + 0.3 * scored.guided[1]
    decided = [1, -1, 1, -1, -1, 1] * 2 + [0, 0]
    right = sum(sign * float(margin) > 0 for sign, margin in zip(decided, margins, strict=True))
    assert ranking.report.guide.value * 12 == right
    assert (ranking.rows, ranking.missing, ranking.ties) == (14, 1, 1)


@pytest.mark.parametrize("method", ["moslora-text", "pblora"])
def test_a_conditioned_guide_is_scored_at_each_preference(llama_folder, tmp_path, method):
    folder = conditioned_guide(llama_folder, tmp_path / "g", method)
    chosen = ["helpful=0.7,concise=0.3", "concise=1"]
    found = rank_preferences([folder], ROWS, chosen, base=float32(llama_folder))
    base = float32(llama_folder)
    encoder, longest = encoder_of(read_guides([folder]).manifests[0], base)
    model = load_guide_model(folder, base)
    for ranking, alpha in zip(found, ([0.7, 0, 0.3], [0, 0, 1]), strict=True):
        prepared = prepare_mixed(ROWS, ranking.preference, encoder)
        with preference(model, torch.tensor(alpha, dtype=torch.float32)):
            margins = score_margins(model, prepared.pairs, max_length=longest)
        assert ranking.report.mean_margin == pytest.approx(0.1 * sum(margins) / len(margins), abs=1e-5)
        assert ranking.report.guide.value == sum(m > 0 for m in margins) / len(margins)
        assert ranking.ties + ranking.missing + ranking.report.n == len(ROWS)


def test_a_grid_covers_the_simplex_and_says_where_no_pair_is_left(plain):
    conflict = rows([{"helpful": A, "concise": B}] * 4)
    found = rank_preferences(plain, conflict, grid=2)
    assert [r.preference["helpful"] for r in found] == [0, 0.5, 1]
    assert found[1].report is None
    assert found[1].ties == 4
    assert [found[0].report.n, found[2].report.n] == [4, 4]


def test_what_is_refused(plain, llama_folder, tmp_path):
    folder = conditioned_guide(llama_folder, tmp_path / "g")
    base = float32(llama_folder)
    twin = plain_guide(tmp_path / "twin", base, "helpful", 7)
    for given, message in (
        ([], "No guide"),
        ([folder, plain[0]], "takes a preference itself, over helpful, harmless, concise"),
        ([plain[0], twin], "Two guides reward 'helpful'"),
    ):
        with pytest.raises(ConfigError, match=message):
            rank_preferences(given, ROWS)
    with pytest.raises(GuidanceError, match="no objective 'polite'"):
        rank_preferences(plain, ROWS, ["polite=1"])
    with pytest.raises(DataError, match=r"No row of the data is decided at 'helpful=0.5,concise=0.5'"):
        rank_preferences(plain, rows([{"helpful": A, "concise": B}]), [{"helpful": 0.5, "concise": 0.5}])
    with pytest.raises(DataError, match="labels for other; the guides' objectives are helpful, concise"):
        rank_preferences(plain, rows([{"other": A}]))
    with pytest.raises(ConfigError, match="grid of 0"):
        rank_preferences(plain, ROWS, grid=0)


def run(arguments, code=0):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == code


def test_the_command(plain, llama_folder, tmp_path, capsys):
    folder = conditioned_guide(llama_folder, tmp_path / "g")
    write_comparisons(tmp_path / "rows.jsonl", ROWS)
    flags = ["--data", tmp_path / "rows.jsonl"]
    run(["rank", "--guide", folder, *flags])
    shown = capsys.readouterr().out
    title = "Held-out ranking accuracy at each preference"
    for text in (title, "helpful", "concise", "untrained", "Mean over preferences"):
        assert text in shown
    assert "harmless" not in shown  # the data has no labels for it
    both = ["--guide", plain[0], "--guide", plain[1]]
    run(["rank", *both, *flags, "--preference", "helpful=0.7,concise=0.3", "--grid", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["guides"] == [str(path) for path in plain]
    assert [ranking["preference"]["helpful"] for ranking in found["rankings"]] == [0.7, 0, 0.5, 1]
    assert found["rankings"][0]["report"]["objective"] == "helpful=0.7,concise=0.3"
    run(["rank", "--guide", folder, *flags, "--objective", "concise", "--json"])
    (only,) = json.loads(capsys.readouterr().out)["rankings"]
    assert only["preference"] == {"helpful": 0, "harmless": 0, "concise": 1}
    for wrong, message in (
        (["--guide", plain[0], "--grid", "2"], "has one objective and takes no preference"),
        (["--guide", folder, "--objective", "concise", "--grid", "2"], "give one of them"),
    ):
        run(["rank", *wrong, *flags], code=1)
        assert message in capsys.readouterr().err
