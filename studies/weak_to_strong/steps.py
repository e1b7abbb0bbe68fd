"""The study's steps in order."""

from __future__ import annotations

import argparse
import os
from typing import Any

from weak_to_strong.plan import SMOKE, add_arguments, guides
from weak_to_strong.training import Trainer, cost, read_pairs


def parsed(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
        options.work_dir = options.work_dir / "smoke"
        options.output_dir = options.work_dir / "report"
    from weak_to_strong import models

    options.small = options.small or str(models.folder("qwen2.5-coder-0.5b"))
    options.large = options.large or str(models.folder("qwen2.5-coder-1.5b"))
    return options


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    pairs = read_pairs(options)
    print(pairs.counts)
    trainer = Trainer(options, pairs)
    for guide in guides(options):
        if not options.train_only or guide.name in options.train_only:
            folder = trainer.train(guide)
            print(guide.name, cost(folder), flush=True)
    if options.train_only:
        return
