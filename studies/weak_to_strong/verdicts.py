"""What is claimed, what is found here, and the verdict that follows by rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weak_to_strong.judging import PRIMARY
from weak_to_strong.speed import PLAIN

CONFIRMED, NOT, UNTESTABLE = "confirmed", "not confirmed", "not testable here"
DRAFTED = "1.5B + 0.5B ARM, the 0.5B side drafts"


def verdicts(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (claim, here, verdict)."""
    rows = [_steers(result), *_recovers(result), *_keeps(result), _against_proxy(result), _cost(result), _speed(result)]
    rows.append(
        (
            "GenARM: so it does from 7B to 70B, judged pairwise by a language model",
            "no such models and no such judge",
            UNTESTABLE,
        )
    )
    return [row for row in rows if row is not None]


def _steers(result: Mapping[str, Any]) -> tuple[str, str, str]:
    row = result["over_controls"][PRIMARY]["0.5B ARM, w = 1"]
    holds = all(row[control]["low"] > 0 for control in ("base", "untrained", "equal_kl"))
    here = (
        f"gain {row['base']['mean']:+.2f} over the base, {row['untrained']['mean']:+.2f} over the untrained 0.5B model as guide, "
        f"{row['equal_kl']['mean']:+.2f} over {_sharper(row)}; confirmed if all three intervals lie above 0"
    )
    return "GenARM: a small ARM steers a larger frozen base", here, CONFIRMED if holds else NOT


def _sharper(row: Mapping[str, Any]) -> str:
    """Return what the base was compared as: at equal KL, or as far as sharpening takes it."""
    if row["kl_of_control"] == row["kl"]:
        return "the base at equal KL"
    return f"the base as sharp as it was run (no equal KL: {row['kl_of_control']:.2f} against {row['kl']:.2f} nats a token)"


def _recovers(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for ceiling, found in result["gaps"][PRIMARY].items():
        share = found["0.5B ARM, w = 1"]
        top = result["settings"][f"{ceiling}, w = 1"]["gain"][PRIMARY]
        same = result["equal_kl"][PRIMARY][ceiling]["0.5B ARM"]
        here = (
            f"{share['mean']:.0%} [{share['low']:.0%}, {share['high']:.0%}] of its gain of {top['mean']:+.2f} at w = 1, "
            f"{same['share']['mean']:.0%} [{same['share']['low']:.0%}, {same['share']['high']:.0%}] at a KL of "
            f"{same['level']:.2f} nats a token; confirmed if both intervals lie above 50 %"
        )
        if top["low"] <= 0:
            verdict = f"{NOT}: the ceiling itself does not gain"
        else:
            verdict = CONFIRMED if min(share["low"], same["share"]["low"]) > 0.5 else NOT
        rows.append(
            (f"GenARM: it recovers much of what the large model gains by its own training ({ceiling})", here, verdict)
        )
    return rows


def _keeps(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for ceiling, loss in result["content_against"].items():
        here = (
            f"cosine with the reference answers {loss['mean']:+.2f} [{loss['low']:+.2f}, {loss['high']:+.2f}] against it, both at "
            "w = 1; confirmed if the interval reaches 0 or above"
        )
        claim = f"implied: so steered, answers keep the content as well as with {ceiling}"
        rows.append((claim, here, CONFIRMED if loss["high"] >= 0 else NOT))
    return rows


def _against_proxy(result: Mapping[str, Any]) -> tuple[str, str, str] | None:
    ways = result["equal_kl"][PRIMARY].get("1.5B DPO", {})
    if "0.5B DPO, proxy" not in ways or "0.5B ARM" not in ways:
        return None
    arm, proxy = ways["0.5B ARM"], ways["0.5B DPO, proxy"]
    here = (
        f"at a KL of {arm['level']:.2f} the ARM gains {arm['way']['mean']:+.2f} [{arm['way']['low']:+.2f}, "
        f"{arm['way']['high']:+.2f}], at {proxy['level']:.2f} the small DPO policy {proxy['way']['mean']:+.2f} "
        f"[{proxy['way']['low']:+.2f}, {proxy['way']['high']:+.2f}]; confirmed if the first interval lies above the second"
    )
    holds = arm["level"] <= proxy["level"] + 1e-9 and arm["way"]["low"] > proxy["way"]["high"]
    return (
        "ours: an ARM is a better weak guide than a DPO policy of its size (proxy-tuning)",
        here,
        CONFIRMED if holds else NOT,
    )


def _cost(result: Mapping[str, Any]) -> tuple[str, str, str] | None:
    trained = result["trained"]
    small = next(row for name, row in trained.items() if name.startswith("genarm-small"))
    large = next((row for name, row in trained.items() if name.startswith("dpo-large")), None)
    if large is None:
        return None
    here = (
        f"{small['cpu_seconds'] / 60:.1f} processor minutes and {small['peak_gib']:.1f} GiB against "
        f"{large['cpu_seconds'] / 60:.1f} and {large['peak_gib']:.1f}"
    )
    cheaper = small["cpu_seconds"] < large["cpu_seconds"] and small["peak_gib"] < large["peak_gib"]
    return (
        "the large model need not be trained, only the small one, which costs less",
        here,
        CONFIRMED if cheaper else NOT,
    )


def _speed(result: Mapping[str, Any]) -> tuple[str, str, str]:
    claim = "ours: with the small side drafting, guided text of the large base comes no slower than its plain text"
    if result["speed"] is None:
        return claim, "not measured in this run", "–"
    ways = result["speed"]["ways"]
    low, middle, high = ways[DRAFTED]["ratio"]
    plain = ways["1.5B + 0.5B ARM"]["ratio"][1]
    here = f"{low:.2f} / {middle:.2f} / {high:.2f} of {PLAIN} ({plain:.2f} without drafts); confirmed if the least ratio is 1 or more"
    return claim, here, CONFIRMED if low >= 1 else NOT
