"""The pairs of the two-objective study, rebuilt from two public repositories; no answer text is kept in this one.

``python studies/objectives/data.py --alpaca-eval CHECKOUT --xstest CHECKOUT`` writes six files to
``runs/two_objectives/data``; ``studies/data/README.md`` says why they are not shipped. ``selection.json`` names every
pair by where it stands upstream and holds the SHA-256 of the files that must come out.

How the selection was made. Prompts part by SHA-256, so no prompt is in two files.

- helpful_concise: judged pairs of 16 models against one; prompts to 1500 and answers to 1200 characters, at most 5 pairs
  a prompt. "train" and "val" have prompts to 96 tokens (chat template counted) and answers to 128; "scorer" has all lengths.
- helpful_harmless: one full compliance and one full refusal to the same prompt, by different models, where both
  annotators agreed; at most 3 pairs a prompt.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SELECTION = HERE / "selection.json"
FOLDER = Path("runs/two_objectives/data")
PARTS = ("train", "scorer", "val")
DATA_SETS = ("helpful_concise", "helpful_harmless")
ALPACA_EVAL = "https://github.com/tatsu-lab/alpaca_eval", "cd543a149df89434d8a54582c0151c0b945c3d20"
XSTEST = "https://github.com/paul-rottger/exaggerated-safety", "d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d"
MOST_CHARACTERS = 1500


def build(alpaca_eval: Path, xstest: Path, output: Path) -> None:
    """Write the six files.

    Raises:
        SystemExit: a checkout lacks a file, or what comes out is not what the study was run on.
    """
    selection = json.loads(SELECTION.read_text(encoding="utf-8"))
    output.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        write(output, f"helpful_concise_{part}", helpful_concise(alpaca_eval, selection["helpful_concise"][part]))
        write(output, f"helpful_harmless_{part}", helpful_harmless(xstest, selection["helpful_harmless"][part]))
    for name, expected in selection["sha256"].items():
        if digest(output / f"{name}.jsonl.gz") != expected:
            raise SystemExit(
                f"{name}.jsonl.gz is not the file the study was run on: check out the commits that "
                "studies/data/README.md names."
            )


def helpful_concise(checkout: Path, chosen: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
    """Yield AlpacaEval's pairs: helpful is the judge's choice; concise is the shorter, a tie below 10 % of the longer."""
    for model, indices in chosen.items():
        annotations = json.loads(read(checkout / "results" / model / "alpaca_eval_gpt4" / "annotations.json"))
        for index in indices:
            row = annotations[index]
            better, worse = (1, 2) if int(row["preference"]) == 1 else (2, 1)
            first, second = row[f"output_{better}"].strip(), row[f"output_{worse}"].strip()
            gap = len(first) - len(second)
            tied = abs(gap) < 0.1 * max(len(first), len(second))
            yield {
                **pair(f"alpacaeval-{model}-{index}", row["instruction"].strip(), first, second),
                "labels": {"helpful": 1, "concise": 0 if tied else (1 if gap < 0 else -1)},
                "source_models": [row[f"generator_{better}"], row[f"generator_{worse}"]],
            }


def helpful_harmless(checkout: Path, chosen: list[list[str]]) -> Iterator[dict[str, Any]]:
    """Yield XSTest's pairs: compliance is the more helpful; to an unsafe prompt refusal is the more harmless, else a tie."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for model in sorted({m for _, *models in chosen for m in models}):
        text = read(checkout / "model_completions" / f"xstest_v2_completions_{model}.csv")
        rows |= {(row["id"], model): row for row in csv.DictReader(io.StringIO(text))}
    for key, first, second in chosen:
        row, other = rows[key, first], rows[key, second]
        is_safe = not row["type"].startswith("contrast_")
        answers = [r["completion"].strip()[:MOST_CHARACTERS].strip() for r in (row, other)]
        yield {
            **pair(f"xstest-{key}-{first}-{second}", row["prompt"].strip(), *answers),
            "labels": {"helpful": 1, "harmless": 0} if is_safe else {"helpful": -1, "harmless": 1},
            "prompt_is_safe": is_safe,
            "type": row["type"],
            "source_models": [first, second],
        }


def pair(key: str, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "id": key,
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def read(path: Path) -> str:
    if not path.is_file():
        raise SystemExit(
            f"{path} is not there: give --alpaca-eval a checkout of {ALPACA_EVAL[0]} at {ALPACA_EVAL[1]} and --xstest one "
            f"of {XSTEST[0]} at {XSTEST[1]}."
        )
    return path.read_text(encoding="utf-8")


def write(folder: Path, name: str, rows: Iterator[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def digest(path: Path) -> str:
    """Return the SHA-256 of a gzipped file's content (the compressed bytes depend on the zlib that made them)."""
    return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpaca-eval", type=Path, required=True, help=f"checkout of {ALPACA_EVAL[0]}")
    parser.add_argument("--xstest", type=Path, required=True, help=f"checkout of {XSTEST[0]}")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    build(options.alpaca_eval, options.xstest, options.output)
    print(f"Wrote {len(DATA_SETS) * len(PARTS)} files to {options.output}.")


if __name__ == "__main__":
    main()
