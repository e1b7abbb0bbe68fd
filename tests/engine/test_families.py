"""Which models are run as Llama-like decoders, and how a backbone decides."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from engine import families, paged
from trimtab.engine import choice
from trimtab.engine.backbone import Backbone
from trimtab.engine.cuda_graphs import bucket, pages_bucket
from trimtab.engine.families import NotLlamaShapedError, read_shape
from trimtab.engine.llama import TorchForward
from trimtab.engine.spans import Span
from trimtab.errors import ConfigError
from trimtab.models.quantizing import quantize


def _model(name, **changes):
    return families.make({**families.LLAMA_SHAPED[name], **changes})


def test_a_shape_shares_the_weights():
    model = _model("llama-biased")
    shape = read_shape(model)
    layer = model.model.layers[1]
    assert shape.layers[1].down.weight.data_ptr() == layer.mlp.down_proj.weight.data_ptr()
    assert shape.layers[1].down.name == "model.layers.1.mlp.down_proj"
    assert torch.equal(shape.layers[1].q.bias, layer.self_attn.q_proj.bias)
    assert (shape.layers[1].up.d_in, shape.layers[1].up.d_out) == (32, 48)
    assert shape.embedding.data_ptr() == shape.head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (32, 4, 2, 8)
    assert shape.attention_scale == pytest.approx(8**-0.5)
    assert shape.context_length == families.CONTEXT == len(shape.ropes[0][0])
    assert not shape.embedding.requires_grad


def test_what_the_families_add():
    gemma = read_shape(_model("gemma2"))
    assert gemma.embedding_scale == pytest.approx(32**0.5)
    assert (gemma.attention_softcap, gemma.logit_softcap, gemma.activation) == (3.0, 5.0, "gelu_tanh")
    assert gemma.attention_scale == pytest.approx(20**-0.5)
    assert [layer.window for layer in gemma.layers] == [9, None]
    assert gemma.layers[0].attention_out_norm is not None and gemma.layers[0].mlp_out_norm is not None
    rounded = read_shape(families.make(families.LLAMA_SHAPED["gemma2"], dtype=torch.bfloat16))
    assert rounded.embedding_scale == float(torch.tensor(32**0.5, dtype=torch.bfloat16))
    assert rounded.final_norm.dtype == torch.float32
    gemma3 = read_shape(_model("gemma3"))
    assert [layer.rope for layer in gemma3.layers] == [1, 0] and len(gemma3.ropes) == 2
    assert [layer.rope for layer in read_shape(_model("smollm3")).layers] == [0, None]
    assert [layer.window for layer in read_shape(_model("mistral")).layers] == [9, 9]
    assert read_shape(_model("qwen3")).layers[0].q_norm.shape == (16,)
    assert read_shape(_model("qwen2")).layers[0].k.bias is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m.config, "model_type", "yi-next"), "models of type 'yi-next'"),
        (lambda m: setattr(m.config, "use_bidirectional_attention", True), "see later"),
        (lambda m: m.config.rope_parameters.update(rope_type="longrope"), "RoPE is of type 'longrope'"),
        (lambda m: setattr(m.model.layers[0].mlp, "act_fn", nn.ReLU()), "activation is ReLU"),
        (lambda m: setattr(m.model.layers[0].mlp, "up_proj", nn.Identity()), "up_proj' is a Identity"),
        (lambda m: delattr(m.model.layers[0], "input_layernorm"), "built otherwise"),
    ],
)
def test_models_that_are_none(change, reason):
    model = _model("llama")
    change(model)
    with pytest.raises(NotLlamaShapedError, match=reason):
        read_shape(model)


def test_a_model_that_only_looks_like_one_is_run_by_transformers(caplog):
    model = _model("llama")
    model.model.layers[0].register_forward_hook(lambda _m, _i, out: 1.02 * out)
    with caplog.at_level(logging.INFO, logger="trimtab"):
        backbone = Backbone(model)
        assert backbone.kernels == "generic"
        assert backbone.kernels == "generic"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "LlamaForCausalLM runs through transformers' own forward" in record.getMessage()
    texts = paged.texts([20])
    paged.give_pages(texts, 5)
    backbone.allocate(5)
    paged.read(backbone.run, texts, [[12], [8]])
    paged.check(model, texts, 1e-4)
    with pytest.raises(ConfigError, match=r"kernels='torch' cannot be had, for LlamaForCausalLM .* differs"):
        Backbone(model, kernels="torch").allocate(5)


def test_another_architecture_is_no_warning(caplog):
    with caplog.at_level(logging.INFO, logger="trimtab"):
        assert Backbone(tiny.make_gpt2()).kernels == "generic"
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    with pytest.raises(ConfigError, match="'gpt2' are not known"):
        Backbone(tiny.make_gpt2(), kernels="torch").allocate(5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_half_precision(name, dtype):
    model = families.make(families.LLAMA_SHAPED[name], dtype=dtype)
    texts = paged.texts(paged.LENGTHS)
    paged.give_pages(texts, paged.PAGES)
    for kernels in ("torch", "generic"):
        backbone = Backbone(model, kernels=kernels)
        backbone.allocate(paged.PAGES)
        assert backbone.kernels == kernels
        for text in texts:
            text.read, text.logits = 0, []
        paged.read(backbone.run, texts, paged.STEPS)
        exact = families.make(families.LLAMA_SHAPED[name])
        exact.load_state_dict(model.state_dict())
        paged.check(exact, texts, 0.15)


def test_a_forward_without_a_cache_is_refused():
    with pytest.raises(ConfigError, match=r"allocate\(pages\)"):
        Backbone(tiny.make_llama()).run([Span([1], 0, np.array([1], np.int32))])


def test_a_run_that_is_started_is_a_run():
    backbone = Backbone(tiny.make_llama(), kernels="torch")
    backbone.allocate(4)
    span = Span([5, 6, 7], 0, np.array([2], np.int32), keep=2)
    started = backbone.run_async([span])
    assert started.done is None
    assert torch.equal(started.result(), backbone.run([span])) and started.logits.shape == (2, 300)
    assert backbone.run([Span([5, 6], 0, span.pages, keep=0)]).shape == (0, 300)


def test_memory_of_a_page():
    backbone = Backbone(tiny.make_llama())
    assert backbone.bytes_per_page == 2 * 2 * 16 * 2 * 8 * 4  # K and V, layers, positions, heads, numbers, bytes
    assert [vars(layer) for layer in backbone.kv_layers] == [{"kv_heads": 2, "key_dim": 8, "value_dim": 8}] * 2


class _Native:
    """A stand-in for the compiled kernels."""

    def __init__(self):
        self.is_ready, self.builds = False, []

    def unsupported(self, shape):
        return "its weights are odd" if shape.dtype == torch.float16 else None

    def build(self, *, wait):
        self.builds.append(wait)
        return self.is_ready

    def ready(self):
        return self.is_ready

    def NativeForward(self, shape, cache, adapters):  # noqa: N802
        forward = TorchForward(shape, cache, adapters)
        return lambda spans: forward(spans) + 1000


def test_the_compiled_forward_takes_over_when_it_is_built(monkeypatch):
    native = _Native()
    monkeypatch.setattr(choice, "native", lambda: native)
    monkeypatch.setattr(choice, "has_native", lambda: True)
    backbone = Backbone(tiny.make_llama())
    backbone.allocate(4)
    assert native.builds == [False] and backbone.kernels == "torch"
    table = np.array([2, 1], np.int32)
    before = backbone.run([Span([5, 6], 0, table)])
    native.is_ready = True
    assert backbone.kernels == "native"
    after = backbone.run([Span([6], 1, table)])
    torch.testing.assert_close(after - 1000, before, atol=1e-3, rtol=0)
    native.is_ready = False
    with pytest.raises(ConfigError, match="could not be compiled"):
        Backbone(tiny.make_llama(), kernels="native").allocate(4)
    assert native.builds == [False, True]
    with pytest.raises(ConfigError, match="'native' cannot be had: its weights are odd"):
        Backbone(tiny.make_llama().half(), kernels="native").allocate(4)
    with pytest.raises(ConfigError, match="'native' cannot be had, for GPT2LMHeadModel is no Llama-like decoder"):
        Backbone(tiny.make_gpt2(), kernels="native").allocate(4)
    odd = Backbone(tiny.make_llama().half())
    odd.allocate(4)
    assert odd.kernels == "torch" and native.builds == [False, True]


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("kernels", ["torch", "generic"])
def test_quantised_weights(name, kernels):
    model = _model("llama-biased")
    quantize(model, name)
    shape = read_shape(model)
    assert shape.layers[0].q.weight.bits == int(name[3:])
    assert (shape.layers[0].up.d_in, shape.layers[0].up.d_out) == (32, 48)
    backbone = Backbone(model, kernels=kernels)
    backbone.allocate(paged.PAGES)
    texts = paged.texts(paged.LENGTHS)
    paged.give_pages(texts, paged.PAGES)
    paged.read(backbone.run, texts, paged.STEPS)
    assert backbone.kernels == kernels
    paged.check(model, texts, 1e-4)


def _spans(*rows):
    table = np.arange(1, 100, dtype=np.int32)
    return [Span([1] * n, start, table, slot) for slot, n, start in rows]


def test_buckets():
    assert bucket(_spans((None, 1, 7), (None, 1, 50), (None, 1, 3), (0, 1, 9))) == (((None, 4), (0, 1)), 4)
    assert bucket(_spans((None, 4, 80), (0, 4, 90))) == (((None, 1), (0, 1)), 8)
    assert bucket(_spans((None, 1, 7), (0, 2, 9))) is None  # not of one length
    assert bucket(_spans((None, 17, 7))) is None  # a prompt
    assert bucket(_spans(*[(None, 1, 7)] * 65)) is None
    assert bucket(_spans(*[(None, 16, 7)] * 17)) is None
    assert [pages_bucket(n) for n in (1, 4, 5, 30, 33, 65, 120, 129)] == [4, 4, 8, 32, 40, 80, 128, 160]
