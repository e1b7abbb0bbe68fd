"""The answers that the page shows side by side, as the values its script reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.preferences.records import response_text

_MOST_REPLY = 1500


def answers_of(
    metrics: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, Mapping[str, Any]],
    shown_prompts: int,
    judged: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[str, Any], int]:
    """Return what the page's script reads, and how many prompts have token notes.

    Args:
        metrics: the content of ``metrics.json``.
        samples: the records of ``samples.jsonl``, setting by setting, prompt by prompt.
        tokens: key → token notes.
        shown_prompts: most prompts.
        judged: the records of ``verdicts.jsonl``.
    """
    each, count = metrics["samples_per_prompt"], metrics["prompts"]["count"]
    shown = min(shown_prompts, count)
    settings: list[list[list[dict[str, Any]]]] = []
    places: dict[str, int] = {}
    notes: list[Any] = []
    noted: set[int] = set()
    for s in range(len(metrics["settings"])):
        rows = samples[s * count * each : (s + 1) * count * each]
        shelves: list[list[dict[str, Any]]] = []
        for p in range(shown):
            shelf: list[dict[str, Any]] = []
            for record in rows[p * each : (p + 1) * each]:
                item = _item(record)
                if record["key"] in tokens:
                    if record["key"] not in places:
                        places[record["key"]] = len(notes)
                        notes.append({k: v for k, v in tokens[record["key"]].items() if k != "key"})
                    item["note"] = places[record["key"]]
                    noted.add(p)
                shelf.append(item)
            shelves.append(shelf)
        settings.append(shelves)
    prompts = [_prompt(samples[p * each]) for p in range(shown)]
    colours = list(dict.fromkeys(name for note in notes for name in note["voices"]))
    return {
        "prompts": prompts,
        "settings": settings,
        "notes": notes,
        "colours": colours,
        **_judged(metrics, judged, shown),
    }, len(noted)


def _judged(metrics: Mapping[str, Any], judged: Sequence[Mapping[str, Any]], shown: int) -> dict[str, Any]:
    """Return the judge's verdicts by the places of the two settings, the prompt and the sample."""
    if not judged:
        return {}
    places = {setting["name"]: i for i, setting in enumerate(metrics["settings"])}
    found: dict[str, Any] = {}
    for row in judged:
        if row["number"] < shown:
            place = f"{places[row['setting']]}/{places[row['against']]}/{row['number']}/{row['sample']}"
            said = [reply[:_MOST_REPLY] for reply in row["replies"]]
            found[place] = {"preferences": row["preferences"], "said": said, "problem": row["problem"]}
    return {"judge": metrics["judge"]["model"], "judged": found}


def _prompt(record: Mapping[str, Any]) -> dict[str, Any]:
    prompt: Any = record["prompt"]
    if isinstance(prompt, str):
        return {"id": str(record["id"]), "text": prompt}
    turns = [turn for turn in prompt if turn["role"] != "system"]
    if len(turns) == 1:
        return {"id": str(record["id"]), "text": turns[0]["content"]}
    return {"id": str(record["id"]), "text": response_text(turns)}


def _item(record: Mapping[str, Any]) -> dict[str, Any]:
    found = record["diagnostics"]
    scores = {name: round(value, 4) for name, value in record["scores"].items()}
    return {
        "text": record["response"],
        "scores": scores,
        "tokens": record["tokens"],
        "kl": round(found["kl"], 4),
        "end": record["finish_reason"],
    }
