"""The public names: there, typed, and light to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trimtab


def test_every_public_name_is_there():
    assert set(trimtab.__all__) <= set(dir(trimtab))
    assert trimtab.load is trimtab.engine.load
    with pytest.raises(AttributeError, match="'Enigne'"):
        _ = trimtab.Enigne


def test_import_and_help_do_not_import_torch():
    code = "import sys, trimtab, trimtab.cli.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
