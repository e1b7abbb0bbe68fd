"""What int8 and int4 weights change in what a model says, with a guide and without.

    python bench/quantization.py --texts 30

Every model reads the same held-out prompts and answers; compared is the distribution of each answer token with that of
the plain model in ``--dtype``. The guide is a LoRA trained on the packaged sample first (about 3 minutes on one core;
``--guide FOLDER`` takes one that is there). The quantised weights are put back as the numbers they stand for, so that
the same code runs every model; float32 arithmetic on unchanged weights shows how much rounding alone changes.

The packaged SmolLM2 was 4-bit numbers in groups of 32 before it was bfloat16, so that int4 finds them again nearly
exactly. ``--off-grid`` first moves every weight by up to half a 4-bit step, at random: the model to compare with is then
one that has never been on such a grid, as other models have not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import trimtab
from trimtab.cli.demo import load_sample
from trimtab.models import Base, encode_prompt, encode_response, load_base
from trimtab.models.quantized import QuantizedLinear
from trimtab.models.quantizing import GROUP, quantize, quantize_weight
from trimtab.preferences import read_comparisons, write_comparisons
from trimtab.rewards.artifact import load_guide_model

HERE = Path(__file__).parent
STREAMS = ("base", "guide", "base + guide")


def train_guide(base: str, folder: Path, pairs: int) -> Path:
    """Train a LoRA on the packaged sample."""
    train, _ = load_sample()
    write_comparisons(folder / "train.jsonl", train[:pairs])
    trimtab.train(
        base=base, data=[str(folder / "train.jsonl")], objective="polite", output_dir=str(folder / "guide"), seed=0
    )
    return folder / "guide"


def texts(base: Base, many: int) -> list[tuple[list[int], list[int]]]:
    """Return prompts and answers as ids: so many polite answers, and as many harmless ones, which are longer."""
    _, polite = load_sample()
    harmless = read_comparisons(HERE.parent / "studies" / "data" / "hh_harmless_val.jsonl.gz").comparisons
    found: list[tuple[list[int], list[int]]] = []
    for pair in [*polite[:many], *harmless[:many]]:
        answer = encode_response(base.tokenizer, pair.response_a)
        found.append((list(encode_prompt(base.tokenizer, pair.prompt)), list(answer)))
    return found


def off_grid(base: Base) -> Base:
    """Move every weight of the layers, the head apart, by up to half a step of its int4 group; return the base."""
    fingerprint = base.fingerprint
    generator = torch.Generator().manual_seed(0)
    for module in base.model.model.modules():
        if isinstance(module, nn.Linear):
            step = quantize_weight(module.weight, bits=4).scales.repeat_interleave(GROUP, dim=1)
            moved = module.weight + step * (torch.rand(step.shape, generator=generator) - 0.5)
            module.weight = nn.Parameter(moved.bfloat16().to(module.weight.dtype), requires_grad=False)
    return dataclasses.replace(base, loaded_fingerprint=fingerprint)


def with_quantised_numbers(base: Base, name: str) -> Base:
    """Return a base of plain layers whose weights are what int8 or int4 weights stand for."""
    fingerprint = base.fingerprint
    quantize(base.model, name)  # pyright: ignore[reportArgumentType]
    for path, module in list(base.model.named_modules()):
        if isinstance(module, QuantizedLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=False, dtype=module.dtype, device="meta")
            plain.weight = nn.Parameter(module.quantized.dequantize(module.dtype), requires_grad=False)
            plain.bias = module.bias
            parent, _, child = path.rpartition(".")
            setattr(base.model.get_submodule(parent), child, plain)
    return dataclasses.replace(base, loaded_fingerprint=fingerprint)


@torch.inference_mode()
def distributions(base: Base, guide: Path, rows: Iterable[tuple[list[int], list[int]]]) -> list[list[Tensor]]:
    """Return stream → for each text (T, V) log-probabilities of its answer's tokens, by base, guide and both."""
    model = load_guide_model(guide, base)
    found: list[list[Tensor]] = [[], [], []]
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer])
        guided = _log_probs(model(input_ids=ids).logits, answer)
        with model.disable_adapter():
            plain = _log_probs(model(input_ids=ids).logits, answer)
        for stream, values in zip(found, (plain, guided, (plain + guided).log_softmax(-1)), strict=True):
            stream.append(values)
    return found


def _log_probs(logits: Tensor, answer: Sequence[int]) -> Tensor:
    return logits[0, -len(answer) - 1 : -1].float().log_softmax(-1)


def compare(ours: Sequence[Tensor], reference: Sequence[Tensor], answers: Sequence[list[int]]) -> dict[str, float]:
    """Return KL(reference ‖ ours) in nats a token, how often the best token is the same, and the ratio of perplexities."""
    divergences, same, surprise = [], [], []
    for found, plain, answer in zip(ours, reference, answers, strict=True):
        divergences.append((plain.exp() * (plain - found)).sum(-1))
        same.append((plain.argmax(-1) == found.argmax(-1)).float())
        index = torch.tensor(answer).unsqueeze(-1)
        surprise.append((plain - found).gather(-1, index).squeeze(-1))
    kl = torch.cat(divergences)
    return {
        "kl": float(kl.mean()),
        "kl_worst": float(kl.quantile(0.99)),
        "top1": float(torch.cat(same).mean()),
        "perplexity": float(torch.cat(surprise).mean().exp()),
        "tokens": len(kl),
    }


def load(options: Any, dtype: str) -> Base:
    base = load_base(options.base, dtype=dtype, device="cpu")
    return off_grid(base) if options.off_grid else base


def variants(options: Any) -> Iterator[tuple[str, Base]]:
    for name in ("int8", "int4"):
        yield name, with_quantised_numbers(load(options, options.dtype), name)
    if options.dtype != "float32":
        yield "float32", load(options, "float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--guide", type=Path, help="a LoRA trained on the base; default: train one now")
    parser.add_argument("--pairs", type=int, default=320, help="pairs to train it on")
    parser.add_argument("--texts", type=int, default=30, help="of each of two data sets")
    parser.add_argument("--off-grid", action="store_true", help="move the weights off the packaged 4-bit grid first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        guide = options.guide or train_guide(options.base, Path(scratch), options.pairs)
        base = load(options, options.dtype)
        rows = texts(base, options.texts)
        answers = [answer for _, answer in rows]
        reference = distributions(base, guide, rows)
        raw: dict[str, Any] = {}
        print(f"{options.base} in {options.dtype}, torch {torch.__version__}, {platform.machine()}\n")
        print("| weights | scored by | KL, nats a token (mean / 99 %) | best token the same | perplexity ratio |")
        print("|---|---|---|---|---|")
        for name, own in variants(options):
            for stream, ours, plain in zip(STREAMS, distributions(own, guide, rows), reference, strict=True):
                raw[f"{name}, {stream}"] = figures = compare(ours, plain, answers)
                print(
                    f"| {name} | {stream} | {figures['kl']:.4f} / {figures['kl_worst']:.3f} | {figures['top1']:.3f} "
                    f"| {figures['perplexity']:.3f} |",
                    flush=True,
                )
        print(f"\n{len(rows)} texts, {sum(map(len, answers))} answer tokens.")
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
