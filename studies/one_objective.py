"""One objective: GenARM beside DPO, Best-of-N and a system prompt, all made from the same pairs, on one frozen base."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from single.guides import Trainer, read_pairs
from single.plan import DATA_SETS, SMOKE, add_arguments


def parsed(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
        options.work_dir = options.work_dir / "smoke"
        options.output_dir = options.work_dir / "report"
    return options


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    for name in options.data:
        data, work = DATA_SETS[name], options.work_dir / name
        pairs = read_pairs(data, options, work)
        print(name, pairs.counts, flush=True)
        Trainer(data, options, pairs, work).all(options.methods)


if __name__ == "__main__":
    main(sys.argv[1:])
