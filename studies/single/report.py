"""From results to a page: the verdict on each claim, tables, one figure a data set, samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from single.answers import BASE, SHARPER, SYSTEM
from single.plan import DPO, GENARM, REWARD
from single.ranking import mean
from single.verdict import ELSEWHERE, claims, shown

Row = Mapping[str, Any]
TICKS = (0, 1, 3, 6, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200)


def write_report(results: Sequence[Row], output: Path, intro: Path, command: str) -> None:
    """Write README.md, results.json, samples.jsonl, and a figure a data set."""
    output.mkdir(parents=True, exist_ok=True)
    lines = [intro.read_text(encoding="utf-8").rstrip(), "", "## Verdict by rule", ""]
    for result in results:
        judges = list(result["judged"])
        lines += [
            f"### {result['data'].capitalize()}",
            "",
            f"| their claim | {' | '.join(f'by {j}' for j in judges)} |",
        ]
        lines += ["|---" * (1 + len(judges)) + "|", *(f"| {' | '.join(row)} |" for row in claims(result)), ""]
    lines += ["| their claim | |", "|---|---|", *(f"| {claim} | {where} |" for claim, where in ELSEWHERE)]
    for result in results:
        plot(result, output / result["data"])
        lines += ["", *section(result)]
    lines += ["", "## How it was run", "", f"`{command}`; {how(results)}", ""]
    (output / "README.md").write_text("\n".join(lines), encoding="utf-8")
    slim = [{k: v for k, v in result.items() if k != "samples"} for result in results]
    (output / "results.json").write_text(json.dumps(rounded(slim), indent=1) + "\n", encoding="utf-8")
    with (output / "samples.jsonl").open("w", encoding="utf-8") as file:
        for result in results:
            for sample in result["samples"]:
                file.write(json.dumps({"data": result["data"], **sample}, ensure_ascii=False) + "\n")


def rounded(value: Any) -> Any:
    """Return JSON values with numbers of six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def how(results: Sequence[Row]) -> str:
    """Return one line on sizes, machine and time."""
    o = results[0]["options"]
    trained = [f"{r['data']} {sum(sum(t['seconds']) for t in r['trained'].values()) / 60:.0f}" for r in results]
    return (
        f"LoRA of rank {o['rank']}, {o['epochs']:g} epoch(s), {o['batch']} pairs a step, {o['max_tokens']} tokens at "
        f"temperature 1; {results[0]['machine']}. Minutes by the clock in the trainings that were kept, on a machine that did "
        f"other work too: {', '.join(trained)}; `--plan` says what to expect."
    )


def section(result: Row) -> list[str]:
    """Return a data set's part of the page."""
    counts, judges = result["counts"], result["judged"]
    lines = [
        f"## {result['data'].capitalize()}",
        "",
        f"{counts['train']} pairs to train on (all methods the same), {counts['dev']} to choose learning rates by, "
        f"{counts['scorer']} for the scorers, {counts['val']} held out; no prompt in two of these. Training seeds: "
        f"{len(result['seeds'])}. System prompt: “{result['system']}”",
        "",
        *tuning_table(result["trained"]),
        "",
        *ranking_table(result),
        "",
        *judge_table(result),
    ]
    for place, (judge, numbers) in enumerate(judges.items()):
        lines += ["", *settings_table(result, judge, numbers, full=place == 0)]
    lines += ["", *level_table(result), "", *direct_table(result), "", *cost_table(result)]
    return [*lines, "", f"![reward against KL]({result['data']}.png)"]


def tuning_table(trained: Row) -> list[str]:
    """Return each method's learning rate and what it was chosen by."""
    lines = ["| method | learning rate | dev loss of each rate | minutes a run, by the clock |", "|---|---|---|---|"]
    for name, row in trained.items():
        losses = ", ".join(f"{rate}: {loss:.4f}" for rate, loss in row["dev_loss"].items())
        minutes = ", ".join(f"{s / 60:.1f}" for s in row["seconds"])
        lines.append(f"| {name} | {row['rate']:g} | {losses} | {minutes} |")
    return lines


def ranking_table(result: Row) -> list[str]:
    """Return held-out accuracy of what was trained, of each seed."""
    r = result["ranking"]
    lines = [
        f"| ranks held-out pairs right | all {r['pairs']}, mean (each seed) | of like length, mean |",
        "|---|---|---|",
    ]
    for name in (GENARM, DPO, REWARD):
        seeds = ", ".join(f"{v:.3f}" for v in r[name]["all"])
        alike = [v for v in r[name]["alike"] if v is not None]
        lines.append(f"| {name} | {mean(r[name]['all']):.3f} ({seeds}) | {f'{mean(alike):.3f}' if alike else '–'} |")
    low, high = r[GENARM]["interval"]["low"], r[GENARM]["interval"]["high"]
    lines += [
        f"| untrained model (log-probability) | {r[GENARM]['untrained']['value']:.3f} | |",
        f"| length alone ({r[GENARM]['length_rule']} wins) | {r[GENARM]['length']['value']:.3f} | |",
        "",
        f"95 % interval over pairs of GenARM's first seed: {low:.3f} to {high:.3f}; the others' are as wide. Of like length: "
        f"guides within 10 % in tokens ({r[GENARM]['n_alike']} pairs), reward model within 10 % in characters ({r['alike']}).",
    ]
    return lines


def judge_table(result: Row) -> list[str]:
    """Return what judges, and how often it is right itself."""
    lines = ["| judge | what it measures | right on held-out pairs | of like length |", "|---|---|---|---|"]
    for name, row in result["judges"].items():
        alike = "–" if row["alike"] is None else f"{row['alike']:.3f} of {row['n_alike']}"
        lines.append(f"| {name} | {row['measures']} | {row['all']:.3f} of {row['n']} | {alike} |")
    return lines


def settings_table(result: Row, judge: str, numbers: Row, *, full: bool) -> list[str]:
    """Return every setting's numbers; the second judge gets the columns that depend on the judge."""
    elsewhere = any("elsewhere" in row for row in numbers["settings"].values())
    lines = [
        f"Answers to {result['prompts']} prompts × {len(result['seeds'])} seed(s), judged by {judge}; intervals resample "
        + ("seeds and prompts, those at equal length prompts only:" if len(result["seeds"]) > 1 else "prompts:"),
        "",
        "| | reward | KL to base, nats an answer (a token) | GenARM at this KL, minus this | over the sharper base at this KL "
        "| wins over base | at equal length |" + (" fluency | tokens | repeated |" if full else "")
        + (f" on the {result['others']} other prompts |" if elsewhere else ""),
        "|---|---|---|---|---|---|---|" + ("---|---|---|" if full else "") + ("---|" if elsewhere else ""),
    ]  # fmt: skip
    for name, row in ordered(numbers["settings"]):
        wins = row["wins"]
        cells = [
            label(name, row),
            plain(row["reward"]),
            f"{row['kl']['value']:.2f} ({row['kl_token']['value']:.3f})",
            shown(row.get("genarm_minus_this")) if row["method"] not in (GENARM, BASE) else "",
            shown(row.get("over_sharper")) if row["method"] in (GENARM, DPO) else "",
            "" if row["method"] == BASE else plain(wins["rate"]),
            "" if row["method"] == BASE else plain(wins["length_controlled"]),
        ]
        if full:
            cells += [
                f"{row['fluency']['value']:.2f}",
                f"{row['tokens']['value']:.0f}",
                f"{row['repeated']['value']:.3f}",
            ]
        if elsewhere:
            cells.append(plain(row["elsewhere"]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ordered(settings: Row) -> list[tuple[str, Row]]:
    """Return the settings method by method, the base first, then by strength."""
    order = [BASE, SYSTEM, SHARPER]
    names = [*dict.fromkeys(row["method"] for row in settings.values())]
    rank = {m: i for i, m in enumerate([*order, *(m for m in names if m not in (*order, DPO, GENARM)), DPO, GENARM])}
    return sorted(settings.items(), key=lambda item: (rank[item[1]["method"]], item[1]["strength"]))


def label(name: str, row: Row) -> str:
    """Return what the table calls a setting."""
    method, strength = row["method"], row["strength"]
    if method == SHARPER:
        return f"untrained guide, w = {strength:g}: base at temperature {1 / (1 + strength):.2g}"
    return f"{method}, w = {strength:g}" if method in (GENARM, DPO) else name


def level_table(result: Row) -> list[str]:
    """Return rewards at common levels of KL, by the first judge."""
    numbers = next(iter(result["judged"].values()))
    lines = [
        "Reward at equal KL, along each method's own curve (the base at KL 0 is on all of them; straight between strengths):",
        "",
        "| KL, nats an answer | GenARM | DPO | GenARM − DPO | sharper base |",
        "|---|---|---|---|---|",
    ]
    for level in numbers["levels"]:
        cells = [plain(level[GENARM]), plain(level[DPO]), shown(level["GenARM − DPO"]), plain(level[SHARPER])]
        lines.append(f"| {level['kl']:.2f} | {' | '.join(cells)} |")
    return lines


def direct_table(result: Row) -> list[str]:
    """Return GenARM at strength 1 beside the others as they are usually run."""
    numbers = next(iter(result["judged"].values()))
    lines = [
        "GenARM at strength 1 against each other method as it is usually run, whatever the KL:",
        "",
        "| against | difference in reward | wins | at equal length |",
        "|---|---|---|---|",
    ]
    for method, row in numbers["direct"].items():
        cells = [shown(row["difference"]), plain(row["wins"]["rate"]), plain(row["wins"]["length_controlled"])]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def cost_table(result: Row) -> list[str]:
    """Return processor seconds an answer."""
    seconds = result["runtime"]
    lines = ["| method | processor seconds an answer, 8 prompts together | times the base |", "|---|---|---|"]
    return lines + [f"| {n} | {s:.2f} | {s / seconds[BASE]:.2f} |" for n, s in seconds.items()]


def plain(value: Row | None) -> str:
    """Return a number with its interval."""
    return "–" if value is None else f"{value['value']:z.2f} [{value['low']:z.2f}, {value['high']:z.2f}]"


def plot(result: Row, stem: Path) -> None:
    """Draw reward against KL: one panel a judge, a curve or a point a method, bars over seeds and prompts."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = result["judged"]
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4.6), squeeze=False)
    for axis, (judge, numbers) in zip(axes[0], panels.items(), strict=True):
        settings = [row for _, row in ordered(numbers["settings"])]
        base = next(row for row in settings if row["method"] == BASE)
        for method in dict.fromkeys(row["method"] for row in settings):
            rows = [row for row in settings if row["method"] == method]
            curve = len(rows) > 1
            points = sorted([base, *rows] if curve else rows, key=lambda row: row["kl"]["value"])
            x, y = ([row[key]["value"] for row in points] for key in ("kl", "reward"))
            bars = [[abs(row["reward"][end] - row["reward"]["value"]) for row in points] for end in ("low", "high")]
            style = {GENARM: "o", DPO: "s", SHARPER: "x", BASE: "k*"}.get(method, "D")
            marks = axis.errorbar(x, y, yerr=bars, fmt=style, capsize=2, markersize=6, label=method)
            if curve:
                # Straight in KL, as rewards at equal KL are read; so bent on this axis.
                between = np.linspace(x[0], x[-1], 200)
                axis.plot(between, np.interp(between, x, y), linewidth=1.4, color=marks[0].get_color())
        axis.set_xscale("function", functions=(lambda v: np.sqrt(np.abs(v)), np.square))
        axis.set_xlim(left=0)
        ticks = [t for t in TICKS if t <= axis.get_xlim()[1]]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.set_xlabel("KL to the base, nats an answer (axis: its square root)")
        axis.set_ylabel(f"reward: {result['data']}, by {judge}")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(stem.with_suffix(".png"), dpi=110, metadata={"Software": None})
    plt.close(figure)
