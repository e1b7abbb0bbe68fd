"""Every way to run a backbone says what the transformers model itself says, whatever runs beside and in what pieces."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2LMHeadModel

import tiny
import tiny_guides
from conditioned import adapted, config_of
from engine import families, paged
from engine.blends import At
from trimtab.engine.adapters import read_deltas
from trimtab.engine.backbone import Backbone
from trimtab.engine.conditioned import read_conditioned
from trimtab.engine.cuda_graphs import Step, SteppedForward, bucket, run_as_is
from trimtab.engine.families import read_shape
from trimtab.engine.fusing import lay_side_by_side, products
from trimtab.engine.layouts import padded_plan
from trimtab.rewards.artifact import load_adapter_config, load_adapter_tensors
from trimtab.rewards.conditioned.tensors import make_tensors


def _texts(seed=0):
    found = paged.texts(paged.LENGTHS, seed=seed)
    paged.give_pages(found, paged.PAGES)
    return found


def _backbone(model, **options):
    backbone = Backbone(model, **options)
    backbone.allocate(paged.PAGES)
    _fill_with_nan(backbone)
    return backbone


def _fill_with_nan(backbone):
    """What a page held before must not matter, and fresh memory holds anything."""
    cache = backbone._forwards._cache
    for tensor in (*cache.keys, *cache.values):
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))


@pytest.mark.parametrize("name", families.LLAMA_SHAPED)
@pytest.mark.parametrize("kernels", ["torch", "generic"])
def test_llama_shaped_families(name, kernels):
    model = families.make(families.LLAMA_SHAPED[name])
    backbone = _backbone(model, kernels=kernels)
    texts = _texts()
    paged.read(backbone.run, texts, paged.STEPS)
    assert backbone.kernels == kernels
    paged.check(model.double(), texts, 1e-4)


@pytest.mark.parametrize("name", families.OTHER)
def test_other_models(name):
    model = families.make(families.OTHER[name])
    backbone = _backbone(model)
    assert backbone.kernels == "generic"
    texts = _texts()
    paged.read(backbone.run, texts, paged.STEPS)
    paged.check(model, texts, 1e-4)


def _add(backbone, peft_model, folder):
    """Put an adapter on a backbone; return its slot and what makes its conditions."""
    peft_model.save_pretrained(folder)
    config, tensors = load_adapter_config(folder), load_adapter_tensors(folder)
    if peft_model.peft_config["default"].peft_type == "LORA":
        return backbone.adapters.add(read_deltas(config, tensors, backbone.model)), None
    deltas, conditioner = read_conditioned(make_tensors(config, tensors), backbone.model)
    return backbone.adapters.add(deltas), conditioner


def _crowd(model, backbone, tokenizer, folder):
    """Texts of the base, of two LoRAs, and of a MoSLoRA and a PBLoRA with a preference each."""
    few = {} if isinstance(model, GPT2LMHeadModel) else {"target_modules": ["q_proj", "v_proj", "up_proj"]}
    arms = [tiny_guides.random_lora(model, seed=1), tiny_guides.random_lora(model, seed=2, r=2, **few)]
    arms += [adapted(model, config_of(method, tokenizer, **options)) for method, options in CONDITIONED]
    placed = [_add(backbone, arm, folder / str(i)) for i, arm in enumerate(arms)]
    texts = paged.texts([LENGTH] * len(READERS), seed=3)
    paged.give_pages(texts, PAGES)
    for text, (which, alpha) in zip(texts, READERS, strict=True):
        if which is None:
            continue
        text.slot, conditioner = placed[which]
        text.model = At(arms[which], alpha) if alpha else arms[which]
        text.conditions = conditioner(alpha, 1.0) if alpha else None
    return texts, arms


CONDITIONED = [
    ("moslora-text", {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}),
    ("pblora", {"target_modules": ["q_proj", "k_proj", "gate_proj", "up_proj", "o_proj"]}),
]
READERS = [(None, None)] * 3 + [(0, None), (1, None)]
READERS += [(which, alpha) for which in (2, 3) for alpha in ([0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])]
LENGTH = 110
PAGES = 2 + len(READERS) * 7
STEPS = [[step[(i + j) % 5] for i in range(len(READERS))] for j, step in enumerate(paged.STEPS)]


@pytest.mark.parametrize("kind", ["llama", "llama-fused", "llama-generic", "gpt2"])
def test_adapters_and_preferences_side_by_side(kind, tokenizer, tmp_path):
    model = tiny.make_gpt2() if kind == "gpt2" else tiny.make_llama()
    if kind == "llama-fused":
        lay_side_by_side(model)
    backbone = Backbone(model, kernels="torch" if kind in ("llama", "llama-fused") else "generic")
    texts, arms = _crowd(model, backbone, tokenizer, tmp_path)
    backbone.allocate(PAGES)
    _fill_with_nan(backbone)
    paged.read(backbone.run, texts, STEPS)
    for arm in arms:
        arm.double()
    paged.check(model, texts, 2e-4)
    for text in texts[3:]:  # adapters matter
        bare = paged.expected(model, dataclasses.replace(text, model=None))
        assert not torch.allclose(torch.cat(text.logits), bare.float()[: text.read], atol=0.1)


def test_preferences_differ(tokenizer, tmp_path):
    model = tiny.make_llama()
    texts, _ = _crowd(model, Backbone(model), tokenizer, tmp_path)
    for one, other in ((texts[5], texts[6]), (texts[8], texts[10])):
        one.model.model.double()
        here, there = one, dataclasses.replace(one, model=other.model)
        assert not torch.allclose(paged.expected(model, here), paged.expected(model, there), atol=0.1)


@pytest.mark.parametrize("name", families.RECURRENT)
def test_state_that_is_not_keys_and_values(name, caplog):
    model = families.make(families.RECURRENT[name])
    backbone = _backbone(model)
    texts = _texts()
    paged.read(backbone.run, texts, paged.STEPS)
    paged.check(model, texts, 1e-4)
    # This one keeps its state in its own layers, where one sequence would find another's.
    assert ("reads each text again" in caplog.text) == (name == "recurrent_gemma")


def test_a_state_is_found_again_by_what_it_has_read():
    """Two texts alike have a state each; one that is taken back, or moved to other pages, is read again."""
    model = families.make(families.RECURRENT["mamba"])
    backbone = _backbone(model)
    one, same = paged.texts([30], seed=5) * 2
    texts = [one, dataclasses.replace(same, logits=[])]
    paged.give_pages(texts, paged.PAGES)
    paged.read(backbone.run, texts, [[10, 10], [1, 1], [1, 1]])
    paged.check(model, texts, 1e-4)
    forward = backbone._forwards._current
    assert [len(states) for states in forward._states.values()] == [2]
    texts[0].read, texts[0].logits = 5, [torch.cat(texts[0].logits)[:5]]
    texts[0].ids = texts[0].ids[:5] + texts[0].ids[10:]
    paged.read(backbone.run, texts, [[1, 0], [3, 2], [1, 1]])
    paged.check(model, texts, 1e-4)
    for _ in range(200):
        backbone.run([dataclasses.replace(texts[1].span(1), keep=0)])
    assert len(forward._states) <= 3


def _stepped(backbone):
    forward = backbone._forwards._current
    forward.cache.clear(torch.tensor([0]))
    return SteppedForward(forward, run_as_is)


@pytest.mark.parametrize("fused", [False, True])
def test_a_padded_step_is_the_plain_step(fused, tokenizer, tmp_path):
    """What a GPU replays is these operations on these buffers."""
    model = tiny.make_llama()
    if fused:
        lay_side_by_side(model)
    backbone = Backbone(model, kernels="torch")
    texts, _ = _crowd(model, backbone, tokenizer, tmp_path)
    backbone.allocate(PAGES)
    stepped = _stepped(backbone)
    everyone, few = [1] * len(READERS), [1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0]
    steps = [everyone] * 3 + [few] * 3 + [[17, 1, *everyone[2:]], [3] * len(READERS), [3] * len(READERS), everyone]
    plain = [dataclasses.replace(text, logits=[]) for text in texts]
    with torch.inference_mode():
        paged.read(stepped, texts, steps)
    assert sorted(layout.tokens for layout in stepped._steps) == [6, 14, 42]
    paged.read(backbone.run, plain, steps)
    for text, other in zip(texts, plain, strict=True):
        torch.testing.assert_close(torch.cat(text.logits), torch.cat(other.logits), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "llama-biased", "gemma3"])
def test_weights_side_by_side_are_the_same_weights(name):
    model = families.make(families.LLAMA_SHAPED[name])
    texts = _texts()
    before = paged.expected(model, texts[0])
    lay_side_by_side(model)
    assert torch.equal(paged.expected(model, texts[0]), before)
    shape = read_shape(model)
    layer = shape.layers[0]
    (qkv,), separate = products((layer.q, layer.k, layer.v)), products((layer.q, layer.v))
    assert qkv.weight.data_ptr() == model.model.layers[0].self_attn.q_proj.weight.data_ptr()
    assert torch.equal(qkv.weight, torch.cat([layer.q.weight, layer.k.weight, layer.v.weight]))
    assert len(separate) == 2  # keys lie between
    backbone = _backbone(model, kernels="torch")
    paged.read(backbone.run, texts, paged.STEPS)
    paged.check(model, texts, 1e-4)


class _Operations(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


# What makes a GPU's host wait for a number, or copies from pageable memory: none can be in a CUDA graph.
_NOT_IN_A_GRAPH = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "lift_fresh"}


@pytest.mark.parametrize("length", [1, 3])
def test_a_step_looks_at_no_number(length, tokenizer, tmp_path):
    model = tiny.make_llama()
    lay_side_by_side(model)
    backbone = Backbone(model, kernels="torch")
    texts, _ = _crowd(model, backbone, tokenizer, tmp_path)
    backbone.allocate(PAGES)
    forward = backbone._forwards._current
    found, _ = padded_plan([text.span(length) for text in texts], *bucket([text.span(length) for text in texts]))
    step = Step(forward, found, torch.device("cpu"))
    with torch.inference_mode(), _Operations() as operations:
        step.compute()
    assert len(operations.names) > 100
    assert not _NOT_IN_A_GRAPH & set(operations.names)
