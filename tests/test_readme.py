"""The Python of the pages runs as it stands there, on a tiny base and guides in place of the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny_guides
from engine.blends import save_conditioned
from trimtab.cli.demo import load_sample
from trimtab.models import load_base
from trimtab.preferences import write_comparisons

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/data.md", "docs/decoding.md", "docs/engine.md", "docs/training.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(
    page: str, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    train, held_out = load_sample()
    write_comparisons("pairs.jsonl", train[:16])
    write_comparisons("held_out.jsonl", held_out[:8])
    if page != "docs/training.md":
        for seed, name in enumerate(("polite", "harmless")):
            tiny_guides.save_lora_guide(tmp_path / "runs" / name, llama_folder, objective=name, seed=seed)
        save_conditioned(load_base(str(llama_folder), dtype="float32"), tmp_path / "runs" / "uniarm", "moslora-text")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    blocks = [block for block in blocks if "openai" not in block]  # tests/serving/test_conversations.py runs these
    assert blocks
    code = "\n".join(blocks).replace('"smollm2"', repr(str(llama_folder)))
    code = code.replace("trimtab.train(", f"trimtab.train(base={str(llama_folder)!r}, ")
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out.strip()
