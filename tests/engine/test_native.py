"""The C++ forward against Hugging Face, against plain torch, and against itself to the last bit."""

from __future__ import annotations

import pytest
import torch

import tiny
from engine.compiler import needs_compiler
from engine.decoders import (
    LINEARS,
    cache_for,
    llama_shape,
    pages_for,
    quantized,
    random_shape,
    reference,
    replace_weights,
)
from trimtab.engine import native
from trimtab.engine.adapters import Delta, RowAdapters
from trimtab.engine.conditioned import BilinearDelta, ModulatedDelta
from trimtab.engine.native import forward as forward_module
from trimtab.engine.native.build import Library, compile_kernels
from trimtab.engine.spans import Span
from trimtab.models.packaged import cache_folder

pytestmark = needs_compiler

GEMMA = {
    "norms": True, "windows": (7, None), "ropes": (0, 1, None), "activation": "gelu_tanh", "embedding_scale": 4.875,
    "attention_softcap": 5.0, "logit_softcap": 3.0, "attention_scale": 0.25, "bias": True, "rope_dims": 6,
}  # fmt: skip


@pytest.fixture(scope="session", params=["native", "portable"])
def kernels(request):
    """The kernels for this CPU, and those for any."""
    extra = [] if request.param == "native" else ["-DTRIMTAB_PORTABLE"]
    return Library(compile_kernels(cache_folder() / "kernels", extra=extra))


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


class Deltas:
    """Adapters by slot and layer name, as the forward asks for them."""

    def __init__(self, *slots):
        self.slots = list(slots)

    def __len__(self):
        return len(self.slots)

    def delta(self, name, slot):
        return self.slots[slot].get(name)


def make(shape, kernels, *slots):
    return native.NativeForward(shape, cache_for(shape), Deltas(*slots), kernels=kernels)


def draw(count, seed=0, vocab=70):
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def names(shape):
    return [getattr(layer, name).name for layer in shape.layers for name in LINEARS] + [shape.head.name]


def sizes(shape):
    linears = [getattr(layer, name) for layer in shape.layers for name in LINEARS] + [shape.head]
    return {linear.name: (linear.d_in, linear.d_out) for linear in linears}


def random_deltas(shape, kind=Delta, *, rank=5, seed=0, every=1, bias=False, **options):
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(size, generator=generator).to(shape.dtype)

    made = {}
    for number, (name, (d_in, d_out)) in enumerate(list(sizes(shape).items())[::every]):
        parts = {key: make(number) for key, make in options.items()}
        made[name] = kind(
            randn(d_in, rank) / d_in**0.5, randn(rank, d_out) * 0.5, randn(d_out) * 0.3 if bias else None, **parts
        )
    return made


def assert_close(found, expected, limit):
    assert found.shape == expected.shape
    assert ((found - expected).abs().max() / expected.abs().max()).item() <= limit


@pytest.mark.parametrize("hidden", [16, 48, 64])
def test_float32_llama_agrees_with_hugging_face_in_float64(kernels, hidden):
    model = tiny.make_llama(hidden=hidden)
    forward = make(llama_shape(model), kernels)
    ids = draw(70, vocab=300)
    found = forward([Span(ids, 0, pages_for(70), keep=70)])
    expected = model.double()(torch.tensor([ids])).logits[0]
    assert_close(found, expected, 1e-5)


def test_bfloat16_llama_is_no_further_from_the_truth_than_hugging_face(kernels):
    model = tiny.make_llama(hidden=64).to(torch.bfloat16)
    ids = draw(70, vocab=300)
    found = make(llama_shape(model), kernels)([Span(ids, 0, pages_for(70), keep=70)])
    theirs = model(torch.tensor([ids])).logits[0].double()
    truth = model.double()(torch.tensor([ids])).logits[0]
    assert (found - truth).square().mean() <= 1.2 * (theirs - truth).square().mean()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("options", [{}, GEMMA, {"windows": (40,), "dim": 32, "heads": 6, "hidden": 40}])
def test_every_option_of_a_shape_agrees_with_plain_torch(kernels, dtype, limit, options):
    shape = random_shape(dtype=dtype, **options)
    ids = draw(75)
    found = make(shape, kernels)([Span(ids, 0, pages_for(75), keep=75)])
    assert_close(found, reference(shape, ids), limit)


def crowd(shape):
    """Spans of several kinds: prompts, single tokens, some with adapters, some without logits."""
    gamma = torch.randn(3, 2, 1, 5, generator=torch.Generator().manual_seed(5))
    slots = [
        random_deltas(shape, rank=3, every=2, bias=True),
        random_deltas(shape, ModulatedDelta, gamma=lambda n: n % 6, delta=lambda n: (n + 1) % 6, seed=1),
    ]
    lengths = [(30, None, None), (1, None, None), (290, None, None), (17, 0, None), (40, 1, gamma), (21, 1, gamma + 1)]
    return slots, lengths


def run_in_pieces(forward, ids, length, piece, **options):
    pages, at, out = options.pop("pages"), 0, []
    while at < length:
        n = min(piece, length - at)
        out.append(forward([Span(ids[at : at + n], at, pages, keep=n, **options)]).clone())
        at += n
    return torch.cat(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gemma", [False, True])
def test_a_token_gets_the_same_bits_alone_in_a_crowd_and_in_pieces(kernels, dtype, gemma, two_threads):
    shape = random_shape(dtype=dtype, layers=2, **(GEMMA if gemma else {}))
    slots, rows = crowd(shape)
    forward = make(shape, kernels, *slots)
    pages = pages_for(16 * 60, seed=3)
    spans, at = [], 0
    for seed, (length, slot, conditions) in enumerate(rows):
        count = (length + 15) // 16
        spans.append(Span(draw(length, seed), 0, pages[at : at + count], slot, conditions, keep=length))
        at += count
    together = forward(spans).split([len(span.tokens) for span in spans])
    together = [logits.clone() for logits in together]
    for span, expected in zip(spans, together, strict=True):
        for piece, threads in ((1, 1), (7, 2), (len(span.tokens), 1)):
            torch.set_num_threads(threads)
            options = {"slot": span.slot, "conditions": span.conditions, "pages": span.pages}
            found = run_in_pieces(forward, span.tokens, len(span.tokens), piece, **options)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_crowd_of_single_tokens_gets_the_bits_of_each_alone(kernels, dtype):
    shape = random_shape(dtype=dtype, hidden=96, inner=160, dim=16)
    forward = make(shape, kernels, random_deltas(shape, rank=8))
    pages = [pages_for(40, seed=i, first=1 + 3 * i, of=3) for i in range(17)]
    for i, table in enumerate(pages):
        forward([Span(draw(33, i), 0, table, keep=0)])
    spans = [Span([i + 3], 33, table, 0 if i > 9 else None) for i, table in enumerate(pages)]
    together = forward(spans).clone()
    for span, expected in zip(spans, together, strict=True):
        assert torch.equal(forward([span])[0], expected)


def test_threads_of_our_own_do_the_same_where_torch_has_no_libgomp(kernels, two_threads, monkeypatch):
    shape = random_shape()
    spans = [Span(draw(300), 0, pages_for(300, of=40), keep=5), Span(draw(9, 1), 0, pages_for(9, first=50, of=3))]
    expected = make(shape, kernels)(spans).clone()
    monkeypatch.setattr(forward_module, "_openmp", lambda: (None, None, None))
    forward = make(shape, kernels)
    for threads in (2, 1, 3, 2):
        torch.set_num_threads(threads)
        assert torch.equal(forward(spans), expected)


KINDS = {
    "plain": (Delta, {}, None),
    "bias": (Delta, {"bias": True, "rank": 20}, None),
    "some layers": (Delta, {"every": 3, "rank": 1}, None),
    "modulated": (ModulatedDelta, {"gamma": lambda n: 2 * n, "delta": lambda n: 2 * n + 1}, (22, 2, 1, 5)),
    "only gamma": (ModulatedDelta, {"gamma": lambda n: n, "delta": lambda n: None}, (22, 1, 1, 5)),
    "only delta": (ModulatedDelta, {"gamma": lambda n: None, "delta": lambda n: n}, (22, 1, 1, 5)),
    "bilinear": (BilinearDelta, {"part": lambda n: n}, (22, 1, 5, 5)),
}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-5), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("name", KINDS)
def test_adapters_agree_with_plain_torch_and_leave_other_rows_alone(kernels, dtype, limit, name):
    kind, options, size = KINDS[name]
    shape = random_shape(dtype=dtype, hidden=32)
    deltas = random_deltas(shape, kind, **options)
    conditions = None
    if size is not None:
        conditions = 1 + torch.randn(size, generator=torch.Generator().manual_seed(2))
        conditions = conditions.to(dtype) if kind is BilinearDelta else conditions
    forward = make(shape, kernels, random_deltas(shape, seed=9), deltas)
    ids = draw(21)
    plain = Span(ids, 0, pages_for(21), keep=21)
    guided = Span(ids, 0, pages_for(21, first=61, of=3), 1, conditions, keep=21)
    base, found = forward([plain, guided]).clone().split(21)
    assert_close(found, reference(shape, ids, deltas, conditions), limit)
    assert torch.equal(base, make(shape, kernels)([plain]))
    assert not torch.allclose(base, found)


def test_an_adapter_that_is_added_later_is_seen(kernels):
    shape = random_shape()
    deltas = Deltas()
    forward = native.NativeForward(shape, cache_for(shape), deltas, kernels=kernels)
    ids = draw(5)
    forward([Span(ids, 0, pages_for(5))])
    deltas.slots.append(random_deltas(shape))
    found = forward([Span(ids, 0, pages_for(5), 0, keep=5)])
    assert_close(found, reference(shape, ids, deltas.slots[0]), 3e-5)


def test_it_reads_the_adapters_of_the_engine(kernels, tmp_path):
    from peft import LoraConfig, PeftModel
    from safetensors.torch import load_file

    from trimtab.engine.adapters import read_deltas

    model = tiny.make_llama()
    folder = tiny.save_lora(tmp_path / "lora", model)
    adapters = RowAdapters(model)
    tensors = load_file(folder / "adapter_model.safetensors")
    slot = adapters.add(read_deltas(LoraConfig.from_pretrained(folder), tensors, model))
    forward = native.NativeForward(llama_shape(model), cache_for(llama_shape(model)), adapters, kernels=kernels)
    ids = draw(20, vocab=300)
    found = forward([Span(ids, 0, pages_for(20), slot, keep=20)])
    adapters.remove()
    assert_close(found, PeftModel.from_pretrained(model, folder)(torch.tensor([ids])).logits[0].detach(), 1e-4)


FORMATS = [(8, None, False), (8, 16, False), (8, 32, True), (4, 32, True), (4, 64, True), (4, 32, False)]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize(("bits", "group", "minima"), FORMATS)
def test_quantized_weights_stand_for_what_they_dequantize_to(kernels, dtype, limit, bits, group, minima):
    shape = random_shape(dtype=dtype, hidden=64, heads=4, dim=16, inner=128)
    small = replace_weights(shape, lambda w: quantized(w, bits, group or w.shape[1], minima=minima))
    ids = draw(25)
    forward = make(small, kernels)
    found = forward([Span(ids, 0, pages_for(25), keep=25)]).clone()
    assert_close(found, reference(small, ids), limit)
    assert torch.equal(run_in_pieces(forward, ids, 25, 3, pages=pages_for(25, seed=4)), found)


def test_all_codes_of_int8_are_read(kernels):
    from trimtab.models.quantized import QuantizedWeight

    shape = random_shape(hidden=64, vocab=256, dtype=torch.bfloat16)
    codes = torch.arange(-128, 128, dtype=torch.int8).repeat(64, 1).T.contiguous()
    head = QuantizedWeight(8, codes, torch.full((256, 1), 0.01), None, 64)
    import dataclasses

    small = dataclasses.replace(shape, head=dataclasses.replace(shape.head, weight=head))
    found = make(small, kernels)([Span(draw(5), 0, pages_for(5))])[0]
    steps = found.diff()
    assert torch.allclose(steps, steps[0].expand(255), rtol=1e-3, atol=1e-6)


def test_a_prompt_that_goes_on_later_asks_for_no_logits(kernels):
    shape = random_shape()
    forward = make(shape, kernels)
    assert forward([Span(draw(9), 0, pages_for(9), keep=0)]).shape == (0, 70)


def test_what_the_kernels_cannot_run_is_named():
    assert "float16" in native.unsupported(random_shape(dtype=torch.float16))
    assert "odd" in native.unsupported(random_shape(dim=9))
    strided = replace_weights(random_shape(), lambda w: w.t().contiguous().t())
    assert "contiguous" in native.unsupported(strided)
    assert native.unsupported(random_shape(dtype=torch.bfloat16)) is None
    with pytest.raises(RuntimeError, match="float16"):
        native.NativeForward(random_shape(dtype=torch.float16), None, Deltas())


@pytest.mark.real
def test_smollm2_agrees_with_hugging_face(kernels):
    from trimtab.models import load_base

    model = load_base("smollm2").model
    ids = draw(300, vocab=40000)
    forward = make(llama_shape(model), kernels)
    found = forward([Span(ids, 0, pages_for(300), keep=300)]).clone()
    pieces = run_in_pieces(forward, ids, 300, 64, pages=pages_for(300, seed=8))
    assert torch.equal(pieces, found)
    with torch.inference_mode():
        theirs = model(torch.tensor([ids])).logits[0].float()
        truth = model.float()(torch.tensor([ids])).logits[0]
    model.to(torch.bfloat16)
    assert (found - truth).square().mean() <= 1.1 * (theirs - truth).square().mean()
