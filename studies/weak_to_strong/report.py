"""From results to a page: tables, a figure, and verdicts that follow from the numbers by stated rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weak_to_strong.answers import Records
from weak_to_strong.figure import plot
from weak_to_strong.judging import CEILINGS, PRIMARY
from weak_to_strong.speed import PLAIN
from weak_to_strong.verdicts import verdicts

Result = Mapping[str, Any]


def write_report(result: Result, records: Records, output: Path) -> None:
    """Write RESULTS.md, results.json, figure.png and samples.jsonl."""
    output.mkdir(parents=True, exist_ok=True)
    plot(result, output / "figure.png")
    lines = [
        "# A 0.5B guide steers a 1.5B base: results",
        "",
        "Written by `study.py`; [README.md](README.md) says what is compared and how to read it.",
        "",
        "| claim | here | verdict |",
        "|---|---|---|",
        *(f"| {claim} | {here} | **{verdict}** |" for claim, here, verdict in verdicts(result)),
        "",
        "![reward against KL, and shares of the gap](figure.png)",
        "",
        *training(result),
        *scorers(result),
        *answers(result),
        *gap_table(result),
        *equal_kl_table(result),
        *speed_table(result),
        "## How it was run",
        "",
        how(result),
        "",
    ]
    (output / "RESULTS.md").write_text("\n".join(lines), encoding="utf-8")
    (output / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_samples(records, output / "samples.jsonl")


def write_samples(records: Records, path: Path) -> None:
    """Write one line a prompt with every setting's answer."""
    with path.open("w", encoding="utf-8") as file:
        for i, first in enumerate(records["base"]):
            texts = {name: rows[i]["response"] for name, rows in records.items()}
            file.write(json.dumps({"id": first["id"], "prompt": first["prompt"], "answers": texts}, ensure_ascii=False))
            file.write("\n")


def shown(value: Mapping[str, float], digits: int = 2, sign: str = "+") -> str:
    """Return a mean and its interval."""
    return f"{value['mean']:{sign}.{digits}f} [{value['low']:{sign}.{digits}f}, {value['high']:{sign}.{digits}f}]"


def percent(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"


def accuracy(row: Mapping[str, Any] | None) -> str:
    return "–" if row is None else f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def training(result: Result) -> list[str]:
    """Return what was trained, what it took, and how it ranks."""
    counts, any_row = result["counts"], next(iter(result["trained"].values()))
    first = any_row["ranking"]
    lines = [
        "## Training and ranking",
        "",
        f"{counts['train']} pairs for every guide, {counts['tune']} of them to try learning rates on, {counts['dev']} more to "
        f"choose the rate by; {counts['scorer']} others for the scorers; {counts['val']} held out. No prompt is in two of train, "
        "dev, scorer and held out.",
        "",
        "| guide | learning rate (dev loss of each) | minutes: wall, processor | peak GiB "
        f"| held-out accuracy, {first['n']} pairs [95 %] | of like length |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["trained"].items():
        rank, losses = row["ranking"], ", ".join(f"{rate}: {loss:.4f}" for rate, loss in row["dev_loss"].items())
        losses = f" ({losses})" if "-small-" in name else " (the 0.5B model's)"
        lines.append(
            f"| {name} | {row['rate']:g}{losses} | {row['train_seconds'] / 60:.1f}, {row['cpu_seconds'] / 60:.1f} "
            f"| {row['peak_gib']:.1f} | **{accuracy(rank['guide'])}** | {accuracy(rank['matched_guide'])} |"
        )
    for size, model in (("small", "0.5B"), ("large", "1.5B")):
        row = next((r for n, r in result["trained"].items() if f"-{size}-" in n), None)
        if row:
            rank = row["ranking"]
            lines.append(
                f"| {model}, untrained | | | | {accuracy(rank['untrained'])} | {accuracy(rank['matched_untrained'])} |"
            )
    lines.append(f"| length alone ({first['length_rule']} wins) | | | | {accuracy(first['length'])} | – |")
    return [
        *lines,
        "",
        "A policy ranks by log π − log π_ref, an ARM and the untrained models by log-probability. Wall minutes are the training's "
        "on a machine with other work on it; processor minutes, of the whole process with loading, do not hang on that so much.",
        "",
    ]


def scorers(result: Result) -> list[str]:
    lines = ["## Scorers", "", "| scorer | what | held-out accuracy | of like length |", "|---|---|---|---|"]
    for name, row in result["scorers"].items():
        alike = "–" if row["alike_accuracy"] is None else f"{row['alike_accuracy']:.3f} of {row['alike_pairs']}"
        lines.append(f"| {name} | {row['measures']} | {row['accuracy']:.3f} of {row['pairs']} | {alike} |")
    return [*lines, "", f"Verdicts rest on *{PRIMARY}*, named before anything was generated.", ""]


def answers(result: Result) -> list[str]:
    names = list(result["scorers"])
    lines = [
        "## Answers",
        "",
        f"{result['counts']['prompts']} held-out prompts, one answer each of at most {result['options']['max_tokens']} tokens at "
        "temperature 1, the same random numbers in every row. Gains are paired by prompt.",
        "",
        "| setting | "
        + " | ".join(f"reward, {name} | gain over the base [95 %]" for name in names)
        + " | KL to its base, nats a token | fluency, nats a token | content | words | ended |",
        "|---|" + "---|---|" * len(names) + "---|---|---|---|---|",
    ]
    for setting, row in result["settings"].items():
        cells = " | ".join(
            f"{row['reward'][name]['mean']:+.2f} | {'' if setting == 'base' else shown(row['gain'][name])}"
            for name in names
        )
        kl = "–" if row["family"] == "system prompt" else f"{row['kl']:.2f}"
        lines.append(
            f"| {setting} | {cells} | {kl} | {row['fluency']['mean']:.2f} | {shown(row['content'], sign='')} | {row['words']:.0f} | {row['stopped']:.0%} |"
        )
    return [
        *lines,
        "",
        "Fluency: mean log-probability of the answer's tokens under SmolLM2-135M, which nothing guides. Content: cosine of the answer, under "
        "all-MiniLM-L6-v2, with the pair's two reference answers, which say the same in other tones. KL is exact over the "
        "vocabulary at every position, to the 1.5B base (of the last rows, to the 0.5B base). Ended: answers that stopped by "
        "themselves.",
        "",
    ]


def gap_table(result: Result) -> list[str]:
    ceilings = [c for c in CEILINGS if c in result["gaps"][PRIMARY]]
    names = list(result["scorers"])
    lines = [
        "## How much of the gap is recovered",
        "",
        "(reward − base) / (ceiling − base), the ceiling at w = 1; 95 % intervals over prompts. Above 100 %: the weak guide pulls "
        "further than the fine-tune, at the KL of the table above. The best w of a way is the best on these very prompts, so "
        "it flatters.",
        "",
        "| | " + " | ".join(f"of {c}, {name}" for c in ceilings for name in names) + " |",
        "|---|" + "---|" * (len(ceilings) * len(names)),
    ]
    for setting in result["gaps"][PRIMARY][ceilings[0]] if ceilings else ():
        cells = " | ".join(percent(result["gaps"][name][c][setting]) for c in ceilings for name in names)
        lines.append(f"| {setting} | {cells} |")
    return [*lines, ""]


def equal_kl_table(result: Result) -> list[str]:
    lines = [
        "## At equal KL",
        "",
        "Rewards over the base, along each way's own curve over w (straight between its points), at the ceiling's KL at w = 1 or "
        f"nearly the farthest that the way goes (KL here is a mean over answers); by *{PRIMARY}*.",
        "",
        "| ceiling | way | KL | way's gain [95 %] | ceiling's gain there [95 %] | share [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    for ceiling, ways in result["equal_kl"][PRIMARY].items():
        for family, row in ways.items():
            lines.append(
                f"| {ceiling} | {family} | {row['level']:.2f} | {shown(row['way'])} | {shown(row['ceiling'])} "
                f"| {percent(row['share'])} |"
            )
    lines += [
        "",
        "Against the controls, each paired by prompt:",
        "",
        "| | over the base | over the untrained 0.5B model at the same w | over the base at equal KL |",
        "|---|---|---|---|",
    ]
    for setting, row in result["over_controls"][PRIMARY].items():
        note = (
            ""
            if row["kl_of_control"] == row["kl"]
            else f" (the base at {row['kl_of_control']:.2f}, as far as it was run)"
        )
        lines.append(
            f"| {setting} | {shown(row['base'])} | {shown(row['untrained'])} | {shown(row['equal_kl'])}{note} |"
        )
    return [*lines, ""]


def speed_table(result: Result) -> list[str]:
    speed = result["speed"]
    if speed is None:
        return ["## Speed", "", "Not measured in this run: `--speed`.", ""]
    lines = [
        "## Speed",
        "",
        f"Decoding of one answer at a time, {speed['tokens']} tokens, {speed['rounds']} rounds in which every way has a turn, "
        f"{speed['threads']} thread(s); load of the machine before it began {speed['load_before']:.1f}. Ratios to the plain base "
        "of the same round.",
        "",
        f"| way | tokens a second | ÷ {PLAIN} (min / median / max) | drafts kept | text as without drafts |",
        "|---|---|---|---|---|",
    ]
    for name, row in speed["ways"].items():
        low, middle, high = row["ratio"]
        kept = "–" if row["kept"] is None else f"{row['kept']:.0%}"
        same = "–" if row["same_text"] is None else f"{row['same_text']} of {speed['rounds']}"
        lines.append(
            f"| {name} | {row['tokens_a_second']:.1f} | {low:.2f} / **{middle:.2f}** / {high:.2f} | {kept} | {same} |"
        )
    return [*lines, ""]


def how(result: Result) -> str:
    o, models = result["options"], result["models"]
    return (
        f"`{result['command']}`; {result['machine']}, bfloat16, {o['threads']} thread(s), models {models['small']} and "
        f"{models['large']} (see README.md), training seeds {', '.join(map(str, o['seeds']))}, "
        "β_r 0.05 (ARM), β 0.1 (DPO), LoRA of rank 8 on all linear layers, one pass, 8 pairs a step. Every answer is in "
        "`samples.jsonl`, every number in `results.json`."
    )
