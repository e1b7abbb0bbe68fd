"""The conversations of the pages: the command that a page types serves, and its Python talks to it, as they stand."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny_guides
from engine.blends import save_conditioned
from serving.commands import started
from trimtab.engine import load
from trimtab.models import load_base

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def workplace(llama_folder, tmp_path_factory):
    """A folder with the guides that the pages name."""
    folder = tmp_path_factory.mktemp("workplace")
    base = load_base(str(llama_folder), dtype="float32")
    for seed, name in enumerate(("polite", "harmless")):
        tiny_guides.save_lora_guide(folder / "runs" / name, base, objective=name, seed=seed)
    save_conditioned(base, folder / "runs" / "values", "moslora-text", k=2)
    return folder


@contextlib.contextmanager
def served(page: str, base: Path, folder: Path) -> Iterator[str]:
    """Run the page's ``trimtab serve``, on a free port; yield the address that it prints."""
    command = re.search(r"^trimtab (serve [^#\n]*)", page, flags=re.MULTILINE)
    assert command is not None
    words = [str(base) if word in ("my/model", "smollm2") else word for word in shlex.split(command[1])]
    options = ["--port", "0", "--dtype", "float32", "--kernels", "torch"]
    with started(*words[1:], *options, environment={"TRIMTAB_API_KEY": ""}, cwd=folder) as server:
        yield server.url
        server.signal()
        assert server.ends() == 0


@pytest.mark.parametrize("name", ["README.md", "docs/server.md"])
def test_the_conversation_of_a_page(name, llama_folder, workplace, capsys):
    page = (ROOT / name).read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "openai" in block)
    assert "http://127.0.0.1:8000/v1" in code
    with served(page, llama_folder, workplace) as address:
        exec(compile(code.replace("http://127.0.0.1:8000", address), name, "exec"), {})
    printed = capsys.readouterr().out
    if name == "README.md":
        question = [{"role": "user", "content": "My train is late again. What can I do?"}]
        with load(str(llama_folder), dtype="float32", config={"kernels": "torch"}) as engine:
            (plain,) = engine.generate(question, seed=1, max_tokens=60)
        assert f"{{'polite': 0.0, 'harmless': 0.0}} {plain.text}" in printed
        assert "{'polite': 1.4, 'harmless': 0.6}" in printed
    else:
        assert "{'polite': 0.0, 'values': 1.0}" in printed
