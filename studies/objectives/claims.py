"""What the papers say of these methods, what came out here, and the verdict by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from objectives.wording import Row, side

VERDICTS = {"greater": "agrees", "smaller": "contradicts", "no clear difference": "no clear difference"}
MEASURES = (("hypervolume", "hypervolume", "hypervolume_gain"), ("MIP", "mip_rescaled", "mip_gain"))


@dataclass(frozen=True)
class Claim:
    """That one method is better than each of others; without ``better`` it cannot be tested here, which ``why`` says."""

    says: str
    source: str
    better: tuple[str, ...] = ()
    than: tuple[str, ...] = ()
    why: str = ""


EARLIER = ("Rewarded Soups", "MOD", "GenARM", "PARM")
CLAIMS = (
    Claim(
        "UniARM over the best earlier method: hypervolume +18.5 %, MIP +30.2 % (safety task)",
        "[2602.09538](https://arxiv.org/abs/2602.09538)",
        ("UniARM", "UniARM-alpha", "UniARM, w 1.5", "UniARM-alpha, w 1.5"),
        EARLIER,
    ),
    Claim(
        "PARM aligns better with preference vectors than the methods before it",
        "[2505.06274](https://arxiv.org/abs/2505.06274), abstract",
        ("PARM", "PARM, w 1.5"),
        EARLIER[:-1],
    ),
    Claim(
        "GenARM is a little stronger than Rewarded Soups (its figure 6, as read in a public review of PARM)",
        "[2410.08193](https://arxiv.org/abs/2410.08193)",
        ("GenARM",),
        EARLIER[:1],
    ),
    Claim(
        "UniARM from weak to strong: hypervolume +9.1 %, MIP +6.8 % (safety)",
        "[2602.09538](https://arxiv.org/abs/2602.09538)",
        why="one size of base",
    ),
)


def claims_table(results: Sequence[Row]) -> list[str]:
    """Return the table: gains over the best of the others, in percent of its value, by each data set's first scorers."""
    lines = ["## Their claims and ours", "", "| their claim | ours, at this size | verdict |", "|---|---|---|"]
    for claim in CLAIMS:
        says = f"{claim.says} ({claim.source})"
        if claim.why:
            lines.append(f"| {says} | – | not testable here: {claim.why} |")
        for method in claim.better:
            for result in results:
                fronts = next(iter(result["fronts"].values()))
                others = [name for name in claim.than if name in fronts]
                if method in fronts and others:
                    ours, verdict = outcome(fronts, method, others)
                    lines.append(f"| {says} | {result['data']}, {method}: {ours} | {verdict} |")
                    says = ""
    return lines


def outcome(fronts: Row, method: str, others: Sequence[str]) -> tuple[str, str]:
    """Return a method's gain over the best of others by each measure, and the verdict."""
    parts: list[str] = []
    verdicts: list[str] = []
    for what, value, key in MEASURES:
        best = max(others, key=lambda name: fronts[name][value]["value"])
        gain, scale = fronts[method]["over"][best][key], fronts[best][value]["value"]
        low, middle, high = (100 * gain[at] / scale for at in ("low", "value", "high"))
        parts.append(f"{what} {middle:+.1f} % [{low:+.1f}, {high:+.1f}] over {best}")
        verdicts.append(f"{what} {VERDICTS[side(gain)]}")
    return "; ".join(parts), ", ".join(verdicts)
