"""docs/artifact.md says what the code does: its field table is the schema's."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from trimtab.rewards import BaseRef, DataRef, GuideManifest, Objective

PAGE = Path(__file__).parents[1] / "docs" / "artifact.md"
PARTS = {"": GuideManifest, "objectives[].": Objective, "base.": BaseRef, "data.": DataRef}


def field_table() -> str:
    """Return the Markdown table of every field of guide.json, from the models that validate it."""
    rows = ["| key | needed | meaning |", "| --- | --- | --- |"]
    for prefix, model in PARTS.items():
        rows += [_row(prefix, name, model) for name in model.model_fields]
    return "\n".join(rows)


def _row(prefix: str, name: str, model: type[BaseModel]) -> str:
    field = model.model_fields[name]
    return f"| `{prefix}{name}` | {'yes' if field.is_required() else 'no'} | {field.description} |"


def test_every_field_is_described():
    for model in PARTS.values():
        assert all(field.description for field in model.model_fields.values())


def test_the_table_in_the_docs_is_the_schemas():
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- fields -->\n")
    found, _, after = rest.partition("\n<!-- /fields -->")
    assert before and after
    assert found == field_table(), f"write this between the markers of docs/artifact.md:\n{field_table()}"
