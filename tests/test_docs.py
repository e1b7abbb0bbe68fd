"""The documentation is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("studies/**/*.md")])


def test_the_command_line_page_is_up_to_date(tmp_path: Path):
    page = tmp_path / "cli.md"
    command = [sys.executable, "-m", "typer", "trimtab.cli.main", "utils", "docs", "--name", "trimtab"]
    subprocess.run([*command, "--output", str(page)], check=True, capture_output=True)
    assert page.read_text() == (ROOT / "docs" / "cli.md").read_text(), "run 'make docs'"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_pages_exist(page: Path):
    """Every verb and every flag that a page types is one the program has."""
    known = (ROOT / "docs" / "cli.md").read_text()
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            if words[:1] != ["trimtab"] or len(words) < 2:
                continue
            verb = f"trimtab {words[1]}" + (f" {words[2]}" if words[1] == "data" else "")
            assert f"`{verb}`" in known, f"{page.name}: {verb}"
            section = known.split(f"`{verb}`", 2)[-1] if words[1] != "data" else known.split(f"## `{verb}`")[-1]
            for flag in (w for w in words if w.startswith("--")):
                assert f"`{flag}" in section or f"{flag} " in section or f"{flag}`" in section, f"{verb} {flag}"
