"""From results to a page: tables, a plot of the fronts, and a verdict that follows from the numbers by stated rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.evaluation.fronts import FrontSummary

CONTROLS = ("base", "untrained")
Row = Mapping[str, Any]


def plain(summary: FrontSummary) -> dict[str, Any]:
    """Return a summary as JSON values."""
    return json.loads(json.dumps(asdict(summary), default=lambda array: array.tolist()))


def gains(summary: FrontSummary) -> dict[str, Any]:
    """Return only the gains over the baseline."""
    values = plain(summary)
    return {key: values[key] for key in ("hypervolume_gain", "mip_gain")}


def write_report(results: Sequence[Row], output: Path, intro: Path, command: str) -> None:
    """Write README.md, results.json, verdict.txt, one plot a data set and samples.jsonl."""
    output.mkdir(parents=True, exist_ok=True)
    verdict = [line for result in results for line in verdict_of(result)]
    lines = [intro.read_text(encoding="utf-8").rstrip(), "", "## Verdict by rule", ""]
    lines += [f"- {line}" for line in verdict]
    for result in results:
        plot(result, output / f"{result['data']}.png")
        lines += ["", *section(result)]
    lines += ["", "## How it was run", "", f"`{command}`; {how(results)}", ""]
    (output / "README.md").write_text("\n".join(lines), encoding="utf-8")
    (output / "verdict.txt").write_text("\n".join(verdict) + "\n", encoding="utf-8")
    slim = [without_folders({k: v for k, v in result.items() if k != "samples"}) for result in results]
    (output / "results.json").write_text(json.dumps(slim, indent=1) + "\n", encoding="utf-8")
    with (output / "samples.jsonl").open("w", encoding="utf-8") as file:
        for result in results:
            for sample in result["samples"]:
                file.write(json.dumps({"data": result["data"], **sample}, ensure_ascii=False) + "\n")


def without_folders(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without where things lay on the machine that made it."""
    trained = {name: {k: v for k, v in row.items() if k != "folders"} for name, row in result["trained"].items()}
    options = {k: v for k, v in result["options"].items() if not k.endswith("_dir")}
    return {**result, "trained": trained, "options": options}


def how(results: Sequence[Row]) -> str:
    """Return one line on sizes, machine and time."""
    first = results[0]
    o = first["options"]
    return (
        f"seed {o['seed']}, β {o['beta']:g}, {o['epochs']:g} epoch(s), {o['batch']} pairs a step, {o['prompts']} prompts, "
        f"{o['max_tokens']} tokens at temperature {o['temperature']:g}, total pull w = {o['strength']:g}; "
        f"{first['machine']}; final training of the compared guides: "
        + ", ".join(f"{r['data']} {sum(t['seconds'] for t in r['trained'].values()) / 60:.0f} minutes" for r in results)
        + "."
    )


def section(result: Row) -> list[str]:
    """Return a data set's part of the page."""
    counts = result["counts"]
    lines = [
        f"## {' against '.join(result['objectives']).capitalize()}",
        "",
        f"{counts['train']} pairs to train on, {counts['tune']} of them to try learning rates on, {counts['dev']} to choose "
        f"by, {counts['val']} to test on, {counts['scorer']} for the scorers; no prompt in two of train, dev, val, scorer.",
        "",
        *guide_table(result["trained"]),
        "",
        *ranking_table(result),
    ]
    if result.get("ablations"):
        lines += ["", *ablation_table(result)]
    lines += ["", *scorer_table(result["scorers"])]
    for name, fronts in result["fronts"].items():
        lines += ["", *front_table(result, name, fronts)]
    return [*lines, "", f"![fronts]({result['data']}.png)"]


def guide_table(trained: Row) -> list[str]:
    """Return sizes and learning rates."""
    lines = [
        "| guide | rank | trained parameters | learning rate (dev loss of each) | minutes |",
        "|---|---|---|---|---|",
    ]
    for name, row in trained.items():
        losses = ", ".join(
            f"{rate}: {'–' if loss is None else f'{loss:.4f}'}" for rate, loss in row["dev_loss"].items()
        )
        lines.append(
            f"| {name} | {row['rank']} | {row['parameters']:,} | {row['rate']:g} ({losses}) | {row['seconds'] / 60:.1f} |"
        )
    return lines


def ranking_table(result: Row) -> list[str]:
    """Return pair accuracy under mixed preferences."""
    weights = [alpha[0] for alpha in result["rank_alphas"]]
    shown = sorted({0, len(weights) // 4, len(weights) // 2, (3 * len(weights)) // 4, len(weights) - 1})
    columns = " | ".join(f"{result['objectives'][0]} {weights[i]:g}" for i in shown)
    matched = next(iter(result["ranking"].values()))["matched_pairs"]
    lines = [
        f"Held-out pairs ranked as the mixed preference ranks them, over {len(weights)} preferences; pairs that a preference "
        "leaves tied are passed over, and length alone may take its better side at each:",
        "",
        f"| | mean over the grid [95 %] | {columns} | the {matched} pairs of like length |",
        "|---|---|" + "---|" * (len(shown) + 1),
    ]
    for name, row in result["ranking"].items():
        low, high = row["interval"]
        cells = " | ".join("–" if row["by_alpha"][i] is None else f"{row['by_alpha'][i]:.3f}" for i in shown)
        lines.append(f"| {name} | {row['mean']:.3f} [{low:.3f}, {high:.3f}] | {cells} | {row['matched']:.3f} |")
    return lines


def ablation_table(result: Row) -> list[str]:
    """Return UniARM's ablations by ranking, all at UniARM's own learning rate."""
    lines = [
        "UniARM's parts, one thing changed at a time (ranking at three preferences, learning rate as UniARM's):",
        "",
        "| | rank | trained parameters | mean accuracy [95 %] |",
        "|---|---|---|---|",
    ]
    for name, row in result["ablations"].items():
        low, high = row["interval"]
        lines.append(f"| {name} | {row['rank']} | {row['parameters']:,} | {row['mean']:.3f} [{low:.3f}, {high:.3f}] |")
    return lines


def scorer_table(scorers: Row) -> list[str]:
    """Return what judges, and how often it is right itself."""
    lines = [
        "| scorers | objective | what it measures | right on held-out pairs | of like length |",
        "|---|---|---|---|---|",
    ]
    for name, rows in scorers.items():
        for row in rows:
            matched = "–" if row["matched"] is None else f"{row['matched']:.3f} of {row['matched_pairs']}"
            lines.append(f"| {name} | {row['objective']} | {row['measures']} | {row['accuracy']:.3f} | {matched} |")
    return lines


def front_table(result: Row, name: str, fronts: Row) -> list[str]:
    """Return hypervolume, MIP and what stands beside them."""
    reference = ", ".join(f"{x:.2f}" for x in next(iter(fronts.values()))["reference"])
    first, second = result["objectives"]
    lines = [
        f"Answers to {result['prompts']} prompts at {len(result['answer_alphas'])} preferences, by {name}; rewards in "
        f"standard deviations of the base's answers, reference point ({reference}), gains over GenARM paired by prompt:",
        "",
        "| | hypervolume [95 %] | gain | MIP, min–max [95 %] | gain | MIP | spread | τ | KL, nats a token | words |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, row in fronts.items():
        beside = result["beside"][method]
        control = method in CONTROLS
        spread = "" if control else f"{row['spread'][0]:.2f} {first}, {row['spread'][1]:.2f} {second}"
        tau = (
            "" if control else ", ".join("–" if t is None or np.isnan(t) else f"{t:+.2f}" for t in row["monotonicity"])
        )
        lines.append(
            f"| {method} | {shown(row['hypervolume'])} | {gain(row['hypervolume_gain'])} | {shown(row['mip_rescaled'])} | "
            f"{gain(row['mip_gain'])} | {row['mip']['value']:+.3f} | {spread} | {tau} | {np.mean(beside['kl']):.3f} | "
            f"{np.mean(beside['words']):.0f} |"
        )
    return lines


def shown(interval: Row) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def gain(interval: Row | None) -> str:
    if not interval:
        return ""
    return f"{interval['value']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def verdict_of(result: Row) -> list[str]:
    """Return what the numbers say: a difference counts only where its paired 95 % interval leaves zero out."""
    lines: list[str] = []
    for name, fronts in result["fronts"].items():
        where = f"{result['data']}, by {name}"
        for method in (m for m in fronts if m not in CONTROLS):
            row = fronts[method]
            against = [("the untrained guide", row["over_control"])]
            against += [] if method == "GenARM" else [("GenARM", row)]
            for other, numbers in against:
                parts = [
                    f"{what} {side(numbers[key])} ({gain(numbers[key])})"
                    for what, key in (("hypervolume", "hypervolume_gain"), ("MIP", "mip_gain"))
                ]
                lines.append(f"{where}: {method} against {other}: {', '.join(parts)}.")
    ranking = result["ranking"]
    control = max(("untrained", "length alone"), key=lambda c: ranking[c]["mean"])
    for method in result["trained"]:
        low = ranking[method]["interval"][0]
        verdict = "clearly above" if low > ranking[control]["mean"] else "not clearly above"
        lines.append(
            f"{result['data']}, held-out pairs: {method} {ranking[method]['mean']:.3f} is {verdict} {control} "
            f"({ranking[control]['mean']:.3f})."
        )
    return lines


def side(interval: Row) -> str:
    if interval["low"] > 0:
        return "greater"
    return "smaller" if interval["high"] < 0 else "no clear difference"


def plot(result: Row, path: Path) -> None:
    """Draw ρ(α) of every method, one panel a set of scorers; the thick end has all weight on the first objective."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = result["fronts"]
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.5), squeeze=False)
    for axis, (name, fronts) in zip(axes[0], panels.items(), strict=True):
        for method, row in fronts.items():
            front = np.array(row["front"])
            if method in CONTROLS:
                axis.plot(*front[0], "k*" if method == "base" else "kX", markersize=11, label=method)
                continue
            (line,) = axis.plot(front[:, 0], front[:, 1], "-", linewidth=1.5, label=method)
            axis.scatter(front[:, 0], front[:, 1], s=np.linspace(12, 70, len(front)), color=line.get_color())
        axis.set_xlabel(f"{result['objectives'][0]} (sd of the base)")
        axis.set_ylabel(f"{result['objectives'][1]} (sd of the base)")
        axis.set_title(name)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
