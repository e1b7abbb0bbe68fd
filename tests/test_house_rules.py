"""Rules of the house that no linter checks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trimtab

SOURCE = Path(trimtab.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}


def _name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings_in(path: Path) -> list[str]:
    """Return what a source file breaks, as ``line: what``."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    findings: list[str] = []
    if text.count("\n") > MAX_FILE_LINES:
        findings.append(f"{text.count(chr(10))} lines (at most {MAX_FILE_LINES})")
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or line) - line + 1
            if length > MAX_FUNCTION_LINES:
                findings.append(f"{line}: {node.name} has {length} lines (at most {MAX_FUNCTION_LINES})")
        elif isinstance(node, ast.Assert):
            findings.append(f"{line}: assert vanishes under -O; raise instead")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            findings += [f"{line}: imports {m}" for m in modules if m.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call):
            called = _dotted(node.func)
            if called in FORBIDDEN_CALLS or called in ("torch.load", "yaml.load", "jinja2.Environment"):
                findings.append(f"{line}: calls {called}")
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "use_safetensors"):
            safe = node.arg == "use_safetensors"
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                findings.append(f"{line}: {node.arg} must be the literal {safe}")
    return sorted(findings, key=lambda f: int(f.split(":")[0]) if ":" in f else 0)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_file_keeps_the_rules(path: Path):
    findings = findings_in(path)
    assert not findings, f"{_name(path)}:\n  " + "\n  ".join(findings)


def test_the_rules_can_fail(tmp_path: Path):
    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\nassert eval('1')\nload(trust_remote_code=flag)\n")
    assert [f.split(": ")[1] for f in findings_in(bad)] == [
        "imports pickle",
        "assert vanishes under -O; raise instead",
        "calls eval",
        "trust_remote_code must be the literal False",
    ]


def test_public_names_exist():
    assert len(set(trimtab.__all__)) == len(trimtab.__all__)
    for name in trimtab.__all__:
        assert getattr(trimtab, name) is not None
