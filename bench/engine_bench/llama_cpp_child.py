"""llama.cpp in a process of its own: reads a job a line, greedily continues its rows, answers with times.

Runs under another interpreter (the one that has llama-cpp-python), so it imports neither torch nor trimtab:

    python llama_cpp_child.py MODEL.gguf THREADS CONTEXT ROWS
    {"ids": [[1, 2, 3]], "tokens": 8}    ->    {"first": 0.05, "total": 0.4, "cpu": 0.8, "tokens": [[…]]}

All rows have prompts of one length. Rows are sequences of one llama.cpp batch: the low-level interface, without the
Python of its sampling chain, so that what is measured is llama.cpp itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

PREFILL_CHUNK = 512


def put(batch: Any, at: int, token: int, position: int, row: int, wants_logits: bool) -> None:
    batch.token[at] = token
    batch.pos[at] = position
    batch.n_seq_id[at] = 1
    batch.seq_id[at][0] = row
    batch.logits[at] = wants_logits


def decode(context: Any, batch: Any, count: int) -> None:
    batch.n_tokens = count
    if llama_cpp.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode failed")


def best(context: Any, at: int, vocabulary: int) -> int:
    pointer = llama_cpp.llama_get_logits_ith(context, at)
    return int(np.ctypeslib.as_array(pointer, shape=(vocabulary,)).argmax())


def read_prompts(context: Any, batch: Any, ids: list[list[int]], vocabulary: int) -> list[int]:
    """Read every row's prompt, several rows a batch where they fit; return each row's first token."""
    first: list[int] = []
    for row, prompt in enumerate(ids):
        for start in range(0, len(prompt), PREFILL_CHUNK):
            piece = prompt[start : start + PREFILL_CHUNK]
            for i, token in enumerate(piece):
                put(batch, i, token, start + i, row, start + i == len(prompt) - 1)
            decode(context, batch, len(piece))
        first.append(best(context, len(piece) - 1, vocabulary))
    return first


def run(context: Any, batch: Any, ids: list[list[int]], tokens: int, vocabulary: int) -> dict[str, Any]:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    start, cpu = time.perf_counter(), time.process_time()
    last = read_prompts(context, batch, ids, vocabulary)
    first = time.perf_counter() - start
    written = [[token] for token in last]
    length = len(ids[0])
    for step in range(tokens - 1):
        for row, token in enumerate(last):
            put(batch, row, token, length + step, row, True)
        decode(context, batch, len(ids))
        last = [best(context, row, vocabulary) for row in range(len(ids))]
        for row, token in enumerate(last):
            written[row].append(token)
    return {
        "first": first,
        "total": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "tokens": written,
    }


def main() -> None:
    path, threads, size, rows = sys.argv[1], *map(int, sys.argv[2:5])
    # llama.cpp writes its log to stdout and stderr; the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_seq_max = size * rows, rows
    options.n_batch = options.n_ubatch = max(PREFILL_CHUNK, rows)
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, options)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(max(PREFILL_CHUNK, rows), 0, 1)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(run(context, batch, job["ids"], job["tokens"], vocabulary)), file=answers, flush=True)


if __name__ == "__main__":
    main()
