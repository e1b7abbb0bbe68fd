"""A scorer may not judge a guide that it is, whose pairs it saw, or whose labels it gave."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import tiny_guides
from trimtab.errors import GuideError
from trimtab.evaluation.scorers import About, GuideFacts, dependence, make_scorer, pair_hashes
from trimtab.preferences import read_comparisons
from trimtab.preferences.records import Comparison, Label
from trimtab.rewards.manifest import DataRef
from trimtab.rewards.soup import soup

ROWS = 60


def _write(path: Path, first: int, count: int, objective: str = "concise") -> Path:
    """Pairs whose label is their length: the chosen answer has fewer words."""
    with path.open("w") as file:
        for i in range(first, first + count):
            row = {"prompt": f"q{i}", "chosen": "short one", "rejected": f"a longer answer number {i}"}
            file.write(json.dumps({**row, "labels": {objective: 1}}) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, llama_folder) -> tuple[Path, Path]:
    """A guide whose record says that it was trained on a file that is still there."""
    folder = tmp_path_factory.mktemp("guides") / "short"
    data = _write(folder.parent / "train.jsonl", 0, ROWS)
    ref = DataRef(sha256=read_comparisons(data).sha256, files=(str(data),), comparisons=ROWS, labelled_by="rule:chars")
    tiny_guides.save_lora_guide(folder, llama_folder, objective="concise", manifest={"data": ref})
    (folder / "config.yaml").write_text(json.dumps({"data": [str(data)], "objective": "concise"}))
    return folder, data


def test_the_same_data_under_another_name_is_found_by_its_hash(trained, tmp_path):
    folder, data = trained
    copy = tmp_path / "other-name.jsonl"
    shutil.copyfile(data, copy)
    reason = dependence(make_scorer(f"words:{copy}@concise"), [folder])
    assert reason is not None
    assert "was fitted on the pairs that the guide 'short' was trained on" in reason


def test_shared_pairs_are_counted(trained, tmp_path):
    folder, _ = trained
    scorer = make_scorer(f"words:{_write(tmp_path / 'overlap.jsonl', ROWS - 7, 40)}@concise")
    reason = dependence(scorer, [folder])
    assert reason is not None
    assert f"on 7 of the {ROWS} pairs" in reason


def test_other_pairs_are_fine(trained, tmp_path):
    folder, _ = trained
    assert dependence(make_scorer(f"words:{_write(tmp_path / 'new.jsonl', 1000, 40)}@concise"), [folder]) is None


def test_a_rule_that_gave_the_labels_is_found_out(trained):
    folder, _ = trained
    reason = dependence(make_scorer("concise"), [folder])
    assert reason is not None
    assert "decides 100.0% of the pairs" in reason
    assert dependence(make_scorer("sentiment"), [folder]) is None  # equal scores count half, far from 98 %
    assert dependence(make_scorer("concise").about, [folder]) is None  # without the scorer nothing can be tried


def test_a_soup_was_trained_on_what_each_of_its_parts_was(trained, llama_folder, tmp_path):
    folder, data = trained
    ref = DataRef(sha256="0" * 64, comparisons=1, labelled_by="a judge")
    other = tiny_guides.save_lora_guide(tmp_path / "b", llama_folder, objective="polite", manifest={"data": ref})
    soup([folder, other], tmp_path / "soup")
    reason = dependence(make_scorer(f"words:{data}@concise"), [tmp_path / "soup"])
    assert reason is not None
    assert "was fitted on the pairs" in reason
    for labeller in ("rule:chars", "a judge"):
        reason = dependence(About("x", "y", name=labeller), [tmp_path / "soup"])
        assert reason is not None
        assert "gave the labels" in reason
    assert dependence(About("x", "y", name="judge"), [tmp_path / "soup"]) is None


def test_the_labeller_on_record_is_refused_by_name(trained):
    folder, _ = trained
    about = About("x", "a judge", name="rule:chars")
    assert "gave the labels" in (dependence(about, [folder]) or "")
    assert dependence(dataclasses.replace(about, name="rule:words"), [folder]) is None


def test_a_copy_of_a_guide_is_the_guide_and_another_is_not(trained, llama_folder, tmp_path):
    folder, _ = trained
    copy = tmp_path / "renamed"
    shutil.copytree(folder, copy)
    other = tiny_guides.save_lora_guide(tmp_path / "other", llama_folder, objective="concise", seed=5)
    own = GuideFacts.of(folder)
    assert GuideFacts.of(copy).fingerprint == own.fingerprint
    assert GuideFacts.of(other).fingerprint != own.fingerprint
    about = About("x", "y", name="implicit:renamed", guide=GuideFacts.of(copy).fingerprint)
    assert "is the guide 'short' itself" in (dependence(about, [other, folder]) or "")
    assert dependence(about, [other]) is None
    assert dependence(about, []) is None


def test_a_training_file_that_changed_is_not_taken_for_the_one_trained_on(trained, tmp_path):
    folder, _ = trained
    moved = tmp_path / "guide"
    shutil.copytree(folder, moved)
    assert len(GuideFacts.of(moved).pairs) == ROWS
    changed = _write(tmp_path / "changed.jsonl", 5, ROWS)
    (moved / "config.yaml").write_text(json.dumps({"data": [str(changed)]}))
    assert GuideFacts.of(moved).pairs == frozenset()
    for broken in ("", "[", "data: 3", json.dumps({"data": [str(tmp_path / "none.jsonl")]})):
        (moved / "config.yaml").write_text(broken)
        assert GuideFacts.of(moved).pairs == frozenset()


def test_pair_hashes_see_texts_and_not_labels_or_order():
    one = Comparison("q", "a", "b", {"x": Label.A})
    assert pair_hashes([one]) == pair_hashes([one.swapped(), Comparison("q", "a ", "b", {})])
    assert pair_hashes([one]) != pair_hashes([Comparison("q2", "a", "b", {})])


def test_a_folder_that_is_no_guide_is_refused(tmp_path):
    with pytest.raises(GuideError, match="not a guide"):
        dependence(About("x", "y"), [tmp_path])
