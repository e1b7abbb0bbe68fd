"""Decoding with a guide that follows a preference in each row: its cost beside a plain LoRA, and for more objectives.

    python bench/conditioned_decode.py --threads 1

All guides are loaded on one base; the ways differ in the guidance only. They write the same number of tokens, greedily,
from the same prompts, each row of a conditioned guide at a preference of its own. They take turns token by token, so
that a slow moment of the machine hits all of them. A time is the CPU time of the process for one round's decode steps,
without the reading of the prompts. Adapter weights are random: speed does not depend on what they learnt.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from trimtab.decoding.config import make_sampling
from trimtab.engine import Engine, load
from trimtab.engine.batch import Batch, new_answer
from trimtab.engine.engine import encode_streams
from trimtab.engine.guidance import resolve
from trimtab.models import Base, end_of_response_id, load_base, tokenizer_hash
from trimtab.rewards.artifact import BaseRef, GuideManifest, Objective, save_guide
from trimtab.rewards.moslora import MoSLoRAConfig
from trimtab.rewards.pblora import PBLoRAConfig

TEXT = "the quick brown fox jumps over a lazy dog while people on the quay count boats and wait for rain "
OBJECTIVES = (2, 8)


def save_random(base: Base, folder: Path, config: Any, adapter: Any, objectives: list[str]) -> Path:
    """Save an adapter whose weights are random, none of them zero."""
    model: Any = get_peft_model(copy.deepcopy(base.model), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02)
    manifest = GuideManifest(
        objectives=tuple(Objective(name=name) for name in objectives),
        beta=1.0,
        adapter=adapter,
        base=BaseRef.of(base),
        tokenizer_hash=tokenizer_hash(base.tokenizer),
        eos_token_id=end_of_response_id(base.tokenizer, "x"),
        chat_template=base.tokenizer.chat_template,
    )
    save_guide(folder, model, manifest)
    return folder


def load_all(base: Base, scratch: Path) -> Engine:
    """Load a plain LoRA, and a MoSLoRA and a PBLoRA for each number of objectives: rank 8 on every linear layer."""
    common = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    lora = LoraConfig(r=8, lora_alpha=16, **common)
    folders = {"lora": save_random(base, scratch / "lora", lora, "lora", ["speed"])}
    for k in OBJECTIVES:
        names = [f"o{i}" for i in range(k)]
        described = {name: f"The answer is good in way number {i}." for i, name in enumerate(names)}
        configs = {
            "moslora": MoSLoRAConfig.described(described, base.tokenizer, r=8, lora_alpha=16, **common),
            "pblora": PBLoRAConfig(objectives=names, r1=4, r2=4, lora_alpha=8, **common),
        }
        for adapter, config in configs.items():
            name = f"{adapter}-{k}"
            folders[name] = save_random(base, scratch / name, config, adapter, names)
    return load(base, folders)


def guidance_for(way: str, row: int) -> Any:
    """Return a row's guidance: each row of a conditioned guide has another preference, with every objective in it."""
    if way == "unguided":
        return 0
    if way == "lora":
        return {"lora": 1.0}
    k = int(way.rpartition("-")[2])
    shares = [1 + (row + i) % k for i in range(k)]
    return {f"{way}/o{i}": share / sum(shares) for i, share in enumerate(shares)}


def begin(engine: Engine, way: str, prompts: list[str], tokens: int) -> Batch:
    """Return a batch that has read its prompts."""
    core, loaded = engine._core, list(engine.guides.values())
    sampling = make_sampling(None, temperature=0, max_tokens=tokens + 1, ignore_eos=True)
    groups = []
    for row, prompt in enumerate(prompts):
        pulls = resolve(guidance_for(way, row), loaded)
        ids = encode_streams(core, prompt, [pull.weight != 0 for pull in pulls])
        answer = new_answer(core, prompts=ids, pulls=pulls, sampling=sampling, seed=0, prompt_index=row, sample_index=0)
        groups.append([answer])
    batch = Batch(core, groups)
    batch.advance()  # the first token comes with the reading of the prompt
    return batch


def measure(engine: Engine, prompts: list[str], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Return way → CPU seconds of the decode steps of each round; a first, short round warms up and is not counted."""
    ways = ["unguided", *engine.guides]
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        steps = tokens if number else 2
        batches = {way: begin(engine, way, prompts, steps) for way in ways}
        spent = dict.fromkeys(ways, 0.0)
        for step in range(steps):
            for way in ways if step % 2 else reversed(ways):
                start = time.process_time()
                batches[way].advance()
                spent[way] += time.process_time() - start
        for way, seconds in spent.items():
            if number:
                found[way].append(seconds)
    return found


def ratios(times: list[float], reference: list[float]) -> str:
    found = sorted(a / b for a, b in zip(times, reference, strict=True))
    return f"{found[0]:.3f} / {statistics.median(found):.3f} / {found[-1]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(options.base, dtype=options.dtype)
    print(
        f"{options.base}, {base.model.dtype}, {options.threads} thread(s), prompt {options.prompt_tokens}, "
        f"{options.tokens} decode steps, {options.rounds} rounds, torch {torch.__version__}, {platform.machine()}\n"
    )
    print("| batch | guide | ms a step | ÷ unguided | ÷ plain LoRA | k=8 ÷ k=2 |\n|---|---|---|---|---|---|")
    ids = base.tokenizer(TEXT * options.prompt_tokens)["input_ids"][: options.prompt_tokens]
    with tempfile.TemporaryDirectory() as scratch:
        engine = load_all(base, Path(scratch))
        for batch in options.batch:
            found = measure(engine, [base.tokenizer.decode(ids)] * batch, options.tokens, options.rounds)
            for way, times in found.items():
                kind, _, k = way.rpartition("-")
                flat = ratios(times, found[f"{kind}-{OBJECTIVES[0]}"]) if k == str(OBJECTIVES[-1]) else ""
                milliseconds = 1000 * statistics.median(times) / options.tokens
                print(
                    f"| {batch} | {way} | {milliseconds:.1f} | {ratios(times, found['unguided'])} "
                    f"| {ratios(times, found['lora'])} | {flat} |"
                )


if __name__ == "__main__":
    main()
