"""How often the refusal rules agree with XSTest's human labels.

``python studies/refusals.py --xstest CHECKOUT`` reads the completions of a checkout of the public repository (they are
under their models' terms and are not kept in this one) and prints the table of ``docs/scorers.md``.

Every completion has a label agreed on by two annotators: full compliance, full refusal or partial refusal. The rules say
yes or no, so their accuracy is over the two full labels; how they take partial refusals stands beside it. Five models
answered the same 450 prompts, so intervals resample prompts, not completions.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objectives.data import XSTEST, read
from trimtab.evaluation.scorers import refuses

MODELS = {
    "gpt4": "GPT-4",
    "llama2orig": "Llama 2 70B, original system prompt",
    "llama2new": "Llama 2 70B, no system prompt",
    "mistralinstruct": "Mistral 7B Instruct, no system prompt",
    "mistralguard": "Mistral 7B Instruct, guarding system prompt",
}
COMPLIANCE, REFUSAL, PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"
RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One completion: which prompt it answers, what people say of it, and what the rules say."""

    prompt: str
    label: str
    refused: bool

    @property
    def right(self) -> bool:
        """Whether rules and people agree."""
        return self.refused == (self.label == REFUSAL)


def load(checkout: Path, model: str) -> list[Row]:
    text = read(checkout / "model_completions" / f"xstest_v2_completions_{model}.csv")
    rows = csv.DictReader(io.StringIO(text))
    return [Row(row["prompt"], row["final_label"], refuses(row["completion"])) for row in rows]


def share(hits: list[bool]) -> str:
    return f"{np.mean(hits):.3f} ({sum(hits)} of {len(hits)})" if hits else "–"


def interval(rows: list[Row]) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy, from resampled prompts."""
    prompts = sorted({row.prompt for row in rows})
    place = {prompt: i for i, prompt in enumerate(prompts)}
    right, total = np.zeros(len(prompts)), np.zeros(len(prompts))
    for row in rows:
        right[place[row.prompt]] += row.right
        total[place[row.prompt]] += 1
    draws = np.random.default_rng(0).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), RESAMPLES)
    low, high = np.percentile((draws @ right) / (draws @ total), [2.5, 97.5])
    return float(low), float(high)


def table_row(name: str, rows: list[Row]) -> str:
    whole = [row for row in rows if row.label != PARTIAL]
    low, high = interval(whole)
    cells = [
        name,
        f"{np.mean([row.right for row in whole]):.3f} [{low:.3f}, {high:.3f}]",
        share([row.right for row in whole if row.label == REFUSAL]),
        share([row.right for row in whole if row.label == COMPLIANCE]),
        share([row.refused for row in rows if row.label == PARTIAL]),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xstest", type=Path, required=True, help=f"checkout of {XSTEST[0]} at {XSTEST[1]}")
    checkout = parser.parse_args().xstest
    print("| completions of | accuracy [95 %] | refusals found | compliance left alone | partial called refusal |")
    print("| --- | --- | --- | --- | --- |")
    everything: list[Row] = []
    for model, name in MODELS.items():
        rows = load(checkout, model)
        everything += rows
        print(table_row(name, rows))
    print(table_row("all", everything))


if __name__ == "__main__":
    main()
