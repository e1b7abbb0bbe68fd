"""Building the kernels: once a machine, never in the way."""

from __future__ import annotations

import importlib
import logging
import stat
import threading

import pytest

from engine.compiler import needs_compiler
from trimtab.engine.native.build import compile_kernels

build_module = importlib.import_module("trimtab.engine.native.build")  # the package's name for it is the function


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that writes an empty library and counts its calls; its exit status can be set."""
    script, calls = tmp_path / "c++", tmp_path / "calls"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "fake $FAKE_VERSION"; exit 0; fi\n'
        f'echo "$@" >> {calls}\n'
        'case "$*" in *"$FAKE_REFUSES"*) echo "kernels.cpp: error: no" >&2; exit 1;; esac\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo library > "$2"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("FAKE_REFUSES", "nothing at all")
    monkeypatch.setenv("FAKE_VERSION", "1")
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def test_the_second_build_compiles_nothing(fake_compiler, tmp_path):
    first = compile_kernels(tmp_path / "cache")
    assert first is not None and first.read_text() == "library\n"
    assert compile_kernels(tmp_path / "cache") == first
    assert len(fake_compiler()) == 1
    assert "-march=native" in fake_compiler()[0] and "-mno-amx-tile" in fake_compiler()[0]
    assert "-ffast-math" not in fake_compiler()[0]
    assert [p.suffix for p in (tmp_path / "cache").iterdir() if p.suffix == ".tmp"] == []


def test_other_compilers_flags_and_cpus_have_other_files(fake_compiler, tmp_path, monkeypatch):
    found = {compile_kernels(tmp_path), compile_kernels(tmp_path, extra=["-DTRIMTAB_PORTABLE"])}
    monkeypatch.setenv("FAKE_VERSION", "2")
    found.add(compile_kernels(tmp_path))
    monkeypatch.setattr(build_module, "_cpu", lambda: "another machine")
    found.add(compile_kernels(tmp_path))
    assert len(found) == 4


def test_flags_that_the_compiler_does_not_know_are_left_out(fake_compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSES", "-mno-amx")
    assert compile_kernels(tmp_path) is not None
    assert len(fake_compiler()) == 2


def test_builds_at_the_same_time_compile_once(fake_compiler, tmp_path):
    threads = [threading.Thread(target=compile_kernels, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake_compiler()) == 1


def test_a_compiler_that_fails_is_a_warning(fake_compiler, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FAKE_REFUSES", "kernels.cpp")
    with caplog.at_level(logging.WARNING, "trimtab"):
        assert compile_kernels(tmp_path) is None
    assert "error: no" in caplog.text and "CXX" in caplog.text
    assert [p for p in tmp_path.iterdir() if p.suffix in (".so", ".tmp")] == []


def test_no_compiler_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING, "trimtab"):
        assert compile_kernels(tmp_path) is None
    assert "g++" in caplog.text


def test_a_file_in_the_folders_place_is_a_warning(fake_compiler, tmp_path, caplog):
    (tmp_path / "kernels").write_text("")
    assert compile_kernels(tmp_path / "kernels") is None
    assert "cannot be built" in caplog.text


def test_a_library_that_does_not_load_is_a_warning(fake_compiler, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr(build_module, "_builder", build_module._Builder())
    assert build_module.build(wait=True) is False
    assert not build_module.ready() and build_module.library() is None
    assert "do not load" in caplog.text


@needs_compiler
def test_build_in_the_background_ends_ready(monkeypatch):
    monkeypatch.setattr(build_module, "_builder", build_module._Builder())
    build_module.build()
    assert build_module.build(wait=True) and build_module.ready()
    assert build_module.library().arithmetic in ("avx512_bf16", "avx512", "portable")
