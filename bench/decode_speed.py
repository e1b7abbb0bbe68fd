"""Decoding speed on one machine, in one run: guided by a LoRA that shares the base's weights, against the other ways.

    python bench/decode_speed.py --threads 1

Each way writes the same number of tokens, greedily, from the same prompts; the ways take turns, so that a slow moment
of the machine hits all of them. Reported are tokens a CPU-second (with one thread: what the process itself used, so
that other work on the machine counts less), as median and as ratio to the unguided engine of the same round
(min / median / max over the rounds).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from trimtab.engine import Engine, load
from trimtab.models import Base, end_of_response_id, load_base, tokenizer_hash
from trimtab.rewards.artifact import BaseRef, GuideManifest, Objective, load_guide_model, save_guide

TEXT = "the quick brown fox jumps over a lazy dog while people on the quay count boats and wait for rain "


def random_guide(base: Base, folder: Path) -> Path:
    """Save a random LoRA (rank 8 on every linear layer); speed does not depend on what it learnt."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base.model), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02)
    save_guide(folder / "lora", model, manifest(base, "lora"))
    merged = model.merge_and_unload().to(base.model.dtype)
    save_guide(folder / "merged", merged, manifest(base, "full"), tokenizer=base.tokenizer)
    return folder


def manifest(base: Base, adapter: Any) -> GuideManifest:
    return GuideManifest(
        objectives=(Objective(name="speed"),),
        beta=1.0,
        adapter=adapter,
        base=BaseRef.of(base),
        tokenizer_hash=tokenizer_hash(base.tokenizer),
        eos_token_id=end_of_response_id(base.tokenizer, "x"),
        chat_template=base.tokenizer.chat_template,
    )


def ours(engine: Engine, prompts: list[str], tokens: int) -> Callable[[], None]:
    def run() -> None:
        engine.generate(prompts, temperature=0, max_tokens=tokens, ignore_eos=True)

    return run


def hf_generate(base: Base, ids: torch.Tensor, tokens: int) -> Callable[[], None]:
    def run() -> None:
        base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )

    return run


def peft_mixed(model: Any, ids: torch.Tensor, tokens: int) -> Callable[[], None]:
    """PEFT's own mixed batch: base rows and adapter rows in one forward by ``adapter_names``."""
    from transformers import DynamicCache

    batch = len(ids)
    names = ["__base__"] * batch + ["default"] * batch

    @torch.inference_mode()
    def run() -> None:
        cache = DynamicCache(config=model.config)
        now = ids.repeat(2, 1)
        for _ in range(tokens):
            out = model(input_ids=now, past_key_values=cache, use_cache=True, logits_to_keep=1, adapter_names=names)
            logits = out.logits[:, -1].float()
            now = (logits[:batch] + logits[batch:]).argmax(-1).repeat(2).unsqueeze(1)

    return run


def ways(base: Base, folder: Path, batch: int, prompt_tokens: int, tokens: int) -> dict[str, Callable[[], None]]:
    text = TEXT * prompt_tokens
    ids = torch.tensor([base.tokenizer(text)["input_ids"][:prompt_tokens]] * batch)
    prompts = [base.tokenizer.decode(ids[0])] * batch
    own = dataclasses.replace(base, model=copy.deepcopy(base.model))
    return {
        "ours, unguided": ours(load(base), prompts, tokens),
        "ours, guided, one forward": ours(load(base, [folder / "lora"]), prompts, tokens),
        "guided, two forwards (merged guide)": ours(load(base, [folder / "merged"]), prompts, tokens),
        "guided, PEFT adapter_names": peft_mixed(load_guide_model(folder / "lora", own), ids, tokens),
        "transformers generate, unguided": hf_generate(base, ids, tokens),
    }


def measure(runs: dict[str, Callable[[], None]], rounds: int, written: int) -> dict[str, list[float]]:
    """Return way → tokens a CPU-second in each round; a first round warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if round_number:
                found[name].append(written / (time.process_time() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(options.base, dtype=options.dtype)
    print(
        f"{options.base}, {base.model.dtype}, {options.threads} thread(s), prompt {options.prompt_tokens}, "
        f"{options.tokens} new tokens, {options.rounds} rounds, torch {torch.__version__}, {platform.machine()}\n"
    )
    print("| batch | way | tokens / CPU-second | ÷ ours unguided (min / median / max) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_guide(base, Path(scratch))
        for batch in options.batch:
            runs = ways(base, folder, batch, options.prompt_tokens, options.tokens)
            found = measure(runs, options.rounds, batch * options.tokens)
            reference = found["ours, unguided"]
            for name, speeds in found.items():
                ratios = sorted(speed / r for speed, r in zip(speeds, reference, strict=True))
                low, middle, high = ratios[0], statistics.median(ratios), ratios[-1]
                print(f"| {batch} | {name} | {statistics.median(speeds):.1f} | {low:.2f} / {middle:.2f} / {high:.2f} |")


if __name__ == "__main__":
    main()
