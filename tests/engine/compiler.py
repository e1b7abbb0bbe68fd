"""Tests of compiled kernels: skipped where there is no C++ compiler, but in CI, where that would hide a failure."""

from __future__ import annotations

import os

import pytest

from trimtab.engine.native.build import find_compiler

needs_compiler = pytest.mark.skipif(
    find_compiler() is None and "TRIMTAB_CI" not in os.environ, reason="there is no C++ compiler"
)
