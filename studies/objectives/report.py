"""From results to a page: tables, a plot of the fronts, and a verdict that follows from the numbers by stated rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from objectives.claims import claims_table
from objectives.plan import METHODS, shares
from objectives.wording import CONTROLS, gain, shown, side
from trimtab.evaluation.fronts import FrontSummary

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
    lines = [intro.read_text(encoding="utf-8").rstrip(), "", *claims_table(results), "", *how_to_read(results)]
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
    trained = {
        name: {**row, "runs": [{k: v for k, v in run.items() if k != "folders"} for run in row["runs"]]}
        for name, row in result["trained"].items()
    }
    options = {k: v for k, v in result["options"].items() if not k.endswith("_dir")}
    return {**result, "trained": trained, "options": options}


def how_to_read(results: Sequence[Row]) -> list[str]:
    """Return the rules that the tables follow."""
    return [
        "## How to read the tables",
        "",
        "A number is the mean over training seeds, each measured by itself; its 95 % interval is from a bootstrap that draws "
        "seeds, then prompts. A few seeds say little of how training varies, and a method of one seed has an interval over "
        "prompts only. A difference is called greater or smaller only where its interval, paired by seed and prompt, leaves "
        "zero out; no correction is made for how many are looked at. GenARM, PARM and UniARM stand beside the untrained "
        "guide at the same weight, Rewarded Soups and MOD beside the base, which is what they are untrained; rows named "
        "w 1.5 are the same guides with more weight, to be read at like KL beside GenARM and MOD. Hypervolume and its "
        "percentages hang on the reference point, which is the least of all fronts in the table minus 1. Fluency is the "
        "mean log-probability of an answer's tokens under the base that nothing guides: less is further from its language, "
        "and more than the base's own is sharper.",
    ]


def how(results: Sequence[Row]) -> str:
    """Return one line on sizes, machine and time."""
    first = results[0]
    o = first["options"]
    return (
        f"tuning, ablations and bootstraps with seed {o['seed']}, β {o['beta']:g} (of the policies 0.1), {o['epochs']:g} "
        f"epoch(s), {o['batch']} pairs a step, {o['prompts']} prompts, {o['max_tokens']} tokens at temperature "
        f"{o['temperature']:g}, total pull w = {o['strength']:g} (of the policies 1: their weights sum to 1, and the base has "
        f"no share); {first['machine']}; training, tuning and ablations included: "
        + ", ".join(f"{r['data']} {r['training_minutes']:.0f} minutes" for r in results)
        + " on one thread of two busy ones."
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
        "| method | rank | trained parameters | learning rate (dev loss of each) | seeds | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in trained.items():
        losses = ", ".join(
            f"{rate}: {'–' if loss is None else f'{loss:.4f}'}" for rate, loss in row["dev_loss"].items()
        )
        seeds = ", ".join(str(run["seed"]) for run in row["runs"])
        owner = shares(name, trained)
        minutes = f"{owner}'s" if owner else f"{sum(run['seconds'] for run in row['runs']) / 60:.1f}"
        lines.append(
            f"| {name} | {row['rank']} | {row['parameters']:,} | {row['rate']:g} ({losses}) | {seeds} | {minutes} |"
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
        f"| | mean over the grid [95 %] | each seed | {columns} | the {matched} pairs of like length |",
        "|---|---|---|" + "---|" * (len(shown) + 1),
    ]
    for name, row in result["ranking"].items():
        low, high = row["interval"]
        cells = " | ".join("–" if row["by_alpha"][i] is None else f"{row['by_alpha'][i]:.3f}" for i in shown)
        lines.append(
            f"| {name} | {row['mean']:.3f} [{low:.3f}, {high:.3f}] | {each(row['by_run'])} | {cells} | {row['matched']:.3f} |"
        )
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
        f"standard deviations of the base's answers, reference point ({reference}):",
        "",
        "| | hypervolume [95 %] | each seed | MIP, min–max [95 %] | each seed | MIP | spread | τ | KL, nats a token "
        "| fluency, nats a token | words |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, row in fronts.items():
        beside = result["beside"][method]
        control = method in CONTROLS
        spread = "" if control else f"{row['spread'][0]:.2f} {first}, {row['spread'][1]:.2f} {second}"
        tau = (
            "" if control else ", ".join("–" if t is None or np.isnan(t) else f"{t:+.2f}" for t in row["monotonicity"])
        )
        lines.append(
            f"| {method} | {shown(row['hypervolume'])} | {each(row['hypervolumes'])} | {shown(row['mip_rescaled'])} | "
            f"{each(row['mips_rescaled'])} | {row['mip']['value']:+z.3f} | {spread} | {tau} | "
            f"{np.mean(beside['kl']):.3f} | {np.mean(beside['fluency']):.2f} | {np.mean(beside['words']):.0f} |"
        )
    return [*lines, "", *verdict_table(result, fronts)]


def verdict_table(result: Row, fronts: Row) -> list[str]:
    """Return each method's gains over its control and over GenARM, with what they say by the rule."""
    lines = [
        "| | over | hypervolume | MIP, min–max |",
        "|---|---|---|---|",
    ]
    for method in (m for m in fronts if m not in CONTROLS):
        for other in compared_with(method):
            row = fronts[method]["over"][other]
            cells = " | ".join(f"{gain(row[key])} {side(row[key])}" for key in ("hypervolume_gain", "mip_gain"))
            lines.append(f"| {method} | {other} | {cells} |")
    return lines


def compared_with(method: str) -> list[str]:
    """Return what a method has to beat: an aligned model the base, a guide the untrained guide, and everybody GenARM.

    What pulls with another weight is there to be compared at like KL with what does not.
    """
    if METHODS[method].pull != 1:  # the untrained guide was not decoded at this weight
        return ["GenARM"]
    control = "base" if METHODS[method].policy else "untrained"
    return [control] if method == "GenARM" else [control, "GenARM"]


def each(values: Sequence[float]) -> str:
    """Return the value of each run, where there are several."""
    return ", ".join(f"{value:.2f}" for value in values) if len(values) > 1 else ""


def verdict_of(result: Row) -> list[str]:
    """Return what the numbers say: a difference counts only where its paired 95 % interval leaves zero out."""
    lines: list[str] = []
    for name, fronts in result["fronts"].items():
        where = f"{result['data']}, by {name}"
        for method in (m for m in fronts if m not in CONTROLS):
            for other in compared_with(method):
                numbers = fronts[method]["over"][other]
                parts = [
                    f"{what} {side(numbers[key])} ({gain(numbers[key])})"
                    for what, key in (("hypervolume", "hypervolume_gain"), ("MIP", "mip_gain"))
                ]
                lines.append(f"{where}: {method} against {other}: {', '.join(parts)}.")
    ranking = result["ranking"]
    control = max(("untrained", "length alone"), key=lambda c: ranking[c]["mean"])
    for method in (m for m in result["trained"] if m in ranking):
        low = ranking[method]["interval"][0]
        verdict = "clearly above" if low > ranking[control]["mean"] else "not clearly above"
        lines.append(
            f"{result['data']}, held-out pairs: {method} {ranking[method]['mean']:.3f} is {verdict} {control} "
            f"({ranking[control]['mean']:.3f})."
        )
    return lines


def plot(result: Row, path: Path) -> None:
    """Draw ρ(α) of every method, one panel a set of scorers; the thick end has all weight on the first objective.

    The line is the mean over seeds; the small dots are the ends of each seed's own front.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = result["fronts"]
    figure, axes = plt.subplots(1, len(panels), figsize=(7.5 * len(panels), 5.6), squeeze=False)
    for axis, (name, fronts) in zip(axes[0], panels.items(), strict=True):
        for method, row in fronts.items():
            front = np.array(row["front"])
            if method in CONTROLS:
                axis.plot(*front[0], "k*" if method == "base" else "kX", markersize=12, label=method, zorder=4)
                continue
            style = "--" if METHODS[method].policy else "-"
            (line,) = axis.plot(front[:, 0], front[:, 1], style, linewidth=1.6, label=method)
            axis.scatter(front[:, 0], front[:, 1], s=np.linspace(12, 75, len(front)), color=line.get_color())
            ends = np.array(row["fronts"])[:, [0, -1]].reshape(-1, 2)
            axis.scatter(
                ends[:, 0], ends[:, 1], s=9, marker="o", facecolors="none", edgecolors=line.get_color(), alpha=0.7
            )
        axis.set_xlabel(f"{result['objectives'][0]} (sd of the base)")
        axis.set_ylabel(f"{result['objectives'][1]} (sd of the base)")
        axis.set_title(name)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
