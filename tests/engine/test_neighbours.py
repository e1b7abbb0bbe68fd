"""An answer does not depend on what else the engine writes: to the bit with native kernels, else up to rounding."""

from __future__ import annotations

import pytest
import torch

import tiny
import tiny_guides
from engine.blends import save_conditioned
from engine.compiler import needs_compiler
from trimtab.engine import load, sampler
from trimtab.engine.native import build, ready
from trimtab.engine.results import Watch
from trimtab.models import load_base

PROMPTS = ["the quick", "I would be happy to help you, thank you", "a" * 40, "jump", "the quick brown fox jumps", "dog"]
GUIDANCE = [
    {"arm": 0.5, "helpful": 0.7, "harmless": 0.3},
    {"arm": -1.0},
    {"harmless": 1.0},
    0,
    {"arm": 1.0, "concise": 0.2, "helpful": 0.9},
    {"helpful": 1.0},
]
SAMPLING = [
    {"temperature": t, "seed": 7 + i, "max_tokens": 4 + 3 * i, "repetition_penalty": 1 + 0.1 * (i % 2)}
    for i, t in enumerate((0, 0.7, 1.0, 1.3, 0, 0.9))
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("neighbours")
    tiny.save_base(root / "base", tiny.make_llama(320), tiny.make_tokenizer())
    base = load_base(str(root / "base"), dtype="float32")
    tiny_guides.save_lora_guide(root / "arm", base, seed=1)
    save_conditioned(base, root / "uni", "moslora-text")
    return root


@pytest.fixture
def logits(monkeypatch):
    """The combined logits of every token, by prompt."""
    seen: dict[int, list[torch.Tensor]] = {}
    original = sampler.combined

    def combined(core, answers, scores, **options):
        z = original(core, answers, scores, **options)
        for answer, line in zip(answers, z, strict=True):
            seen.setdefault(answer.place[0], []).append(line)
        return z

    monkeypatch.setattr(sampler, "combined", combined)
    return seen


def each_alone(engine, seen):
    """(z, tokens) of each prompt by itself."""
    alone = []
    for i, (prompt, guidance, options) in enumerate(zip(PROMPTS, GUIDANCE, SAMPLING, strict=True)):
        seen.clear()
        sampling = {**options, "seed": options["seed"] + i}  # prompt i of a call is drawn with seed + i
        answer = engine.generate(prompt, guidance=guidance, sampling=sampling, ignore_eos=True)[0]
        (lines,) = seen.values()
        alone.append((torch.stack(lines), answer.token_ids))
    return alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", [pytest.param("native", marks=needs_compiler), "torch", "generic"])
def test_alone_or_in_a_crowd(folders, logits, kernels, dtype):
    if kernels == "native":
        build(wait=True)
        assert ready()
    config = {"kernels": kernels, "enable_prefix_caching": False}
    guides = [folders / "arm", folders / "uni"]
    alone = each_alone(load(folders / "base", guides, dtype=dtype, config=config), logits)
    # a budget so small that prompts are read in pieces while others are being written
    crowd = load(folders / "base", guides, dtype=dtype, config={**config, "max_num_batched_tokens": 11})
    logits.clear()
    together = crowd.generate(PROMPTS, guidance=GUIDANCE, sampling=SAMPLING, ignore_eos=True, max_batch_size=4)
    for i, answer in enumerate(together):
        z, tokens = alone[i]
        if kernels == "native":
            assert answer.token_ids == tokens
            assert torch.equal(torch.stack(logits[i]), z)
        elif dtype == "float32":
            assert answer.token_ids == tokens
            torch.testing.assert_close(torch.stack(logits[i]), z, atol=1e-4, rtol=1e-4)
        else:
            torch.testing.assert_close(logits[i][0], z[0], atol=0.5, rtol=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", [pytest.param("native", marks=needs_compiler), "torch"])
def test_being_watched_changes_nothing(folders, logits, kernels, dtype):
    """Guides and objectives that only watch are neighbours in the same forward, and no more than that."""
    if kernels == "native":
        build(wait=True)
        assert ready()
    config = {"kernels": kernels, "enable_prefix_caching": False}
    engine = load(folders / "base", [folders / "arm", folders / "uni"], dtype=dtype, config=config)
    alone = each_alone(engine, logits)
    for i, (prompt, guidance, options) in enumerate(zip(PROMPTS, GUIDANCE, SAMPLING, strict=True)):
        logits.clear()
        sampling = {**options, "seed": options["seed"] + i, "ignore_eos": True}
        watch = Watch(top=5, base=True, objectives=True)
        (answer,) = engine.answers(prompt, guidance=guidance, sampling=sampling, watch=watch)
        engine._write([answer], 1, None)
        z, tokens = alone[i]
        if kernels == "native":
            assert torch.equal(torch.stack(logits[0]), z)
        elif dtype == "float32":
            torch.testing.assert_close(torch.stack(logits[0]), z, atol=1e-4, rtol=1e-4)
        if kernels == "native" or dtype == "float32":
            assert answer.tokens == tokens
        assert [n.token_id for n in answer.noted] == answer.tokens
        names = {"arm", "uni"}
        assert all(n.guides.keys() == names and len(n.objectives) == 4 for n in answer.noted)
        reading = engine.reading(prompt, answer.tokens, guidance=guidance, watch=watch)
        engine.parts[1].add(reading, tokens=len(answer.tokens))
        engine.parts[1].drive([reading])
        if kernels == "native":  # to the bit: read in one piece or written token by token
            assert reading.noted == list(answer.noted)
