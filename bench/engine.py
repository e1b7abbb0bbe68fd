"""Our engine beside every other way to write text: one run, in which the ways take turns.

    python bench/engine.py --threads 2 --long --llama-python PYTHON_WITH_LLAMA_CPP
    python bench/engine.py --threads 2 --memory --batch 1
    python bench/engine.py --device cuda --dtype bfloat16 --shape llama-7b --ways ours arm hf second-model recipe

All ways run the same model (llama.cpp: the 4-bit file that the packaged model was made from), read prompts of the same
length and write the same number of tokens, greedily, with the same number of threads. Prompts are common words in
random order, never the same twice, so that no cache of beginnings helps. In each round each way has one turn: once for
the first token alone, once for all tokens; their difference is what decoding costs. Ratios are those of one round; the
machine's slow moments then hit both sides. Guides are random: speed does not depend on what they learnt. The roofline
is the machine's measured read bandwidth over the bytes that a step must read (weights once, keys and values of all
rows). On CUDA llama.cpp is left out; what was not run on a GPU has no figures in RESULTS.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # a script that imports another's pieces may start this one

from engine_bench.running import main

if __name__ == "__main__":
    main(Path(__file__))
