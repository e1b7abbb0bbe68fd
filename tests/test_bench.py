"""The pieces of bench/engine.py on a tiny model: what is timed is what is said to be timed."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trimtab.engine import load
from trimtab.models import load_base

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module")
def bench():
    """The package bench/engine_bench; its folder is not put on the path, where its engine.py would hide ours."""
    folder = BENCH / "engine_bench"
    spec = importlib.util.spec_from_file_location(
        "engine_bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules["engine_bench"] = importlib.util.module_from_spec(spec)
    names = ("making", "measuring", "ways", "running")
    pieces = {name: importlib.import_module(f"engine_bench.{name}") for name in names}
    spec = importlib.util.spec_from_file_location("bench_quantization", BENCH / "quantization.py")
    assert spec is not None
    assert spec.loader is not None
    pieces["quantization"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pieces["quantization"])
    return SimpleNamespace(**pieces)


@pytest.fixture(scope="module")
def base(llama_folder):
    return load_base(str(llama_folder), dtype="float32")


@pytest.fixture(scope="module")
def folders(bench, base, tmp_path_factory):
    return bench.making.make_guides(base, tmp_path_factory.mktemp("guides"), ("arm-1", "arm-2", "uniarm-2"))


@pytest.fixture(scope="module")
def ways(bench, base, folders):
    names = ["ours", "arm", "uniarm-2", "2-arms", "int8", "int4-arm", "hf", "second-model", "recipe"]
    return bench.running.make_ways(base, folders, names, SimpleNamespace(kernels_wait=0))


def test_prompts_have_the_length_asked_for_and_differ(bench, base):
    texts, ids = bench.making.make_prompts(base.tokenizer, 3, 20, seed=1)
    assert [len(row) for row in ids] == [20] * 3
    assert len(set(texts)) == 3
    assert bench.making.make_prompts(base.tokenizer, 3, 20, seed=1)[0] == texts
    assert not set(bench.making.make_prompts(base.tokenizer, 3, 20, seed=2)[0]) & set(texts)


def test_unguided_ways_write_the_same(bench, base, ways):
    texts, ids = bench.making.make_prompts(base.tokenizer, 2, 12, seed=3)
    assert ways["ours"].write(texts, ids, 6) == ways["hf"].write(texts, ids, 6)


def test_guided_ways_write_the_same(bench, base, ways):
    """Our engine, a logits processor with a second model, and the recipe with PEFT: one distribution."""
    texts, ids = bench.making.make_prompts(base.tokenizer, 2, 12, seed=4)
    expected = ways["arm"].write(texts, ids, 6)
    assert ways["second-model"].write(texts, ids, 6) == expected
    assert ways["recipe"].write(texts, ids, 6) == expected


def test_every_way_takes_its_turns(bench, base, ways):
    case = bench.measuring.Case(2, 8, 3)
    found = bench.measuring.measure(ways, case, base.tokenizer, rounds=2)
    assert list(found) == list(ways)
    for name, timings in found.items():
        assert [t.written for t in timings] == [2 if name == "recipe" else 4] * 2
        assert all(t.first > 0 and t.overall > 0 for t in timings)
    models = {"ours": base.model, "hf": base.model}
    text = bench.running.table(found, case, models, bandwidth=1e9) + bench.running.summary(found, case)
    assert text.count("\n| ") == len(ways) + 2 + 3  # two headers, and three of the ratios that are asked for


def test_ratios_are_of_one_round(bench):
    assert bench.measuring.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (1.0, 2.0, 3.0)


def test_bytes_a_step_by_hand(bench, base):
    """Two layers of q, k, v, o, gate, up, down on 32 inputs, the head, and the keys and values of the rows."""
    layer = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64
    weights = 4 * (2 * layer + 320 * 32)
    a_token = 4 * 2 * 2 * 2 * 8  # float32, keys and values, two layers, two heads of 8
    case = bench.measuring.Case(3, 10, 4)
    assert bench.measuring.bytes_a_step(base.model, case) == weights + 3 * 12 * a_token
    int8 = bench.making.quantised(base, "int8").model
    smaller = bench.measuring.bytes_a_step(int8, case)
    rows = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32) + 320
    assert smaller == weights / 4 + 4 * rows + 3 * 12 * a_token


def test_bandwidth_and_memory_are_positive(bench):
    assert bench.measuring.read_bandwidth(torch.device("cpu"), megabytes=4, repeats=1) > 1e6
    assert bench.measuring.peak_memory(torch.device("cpu")) > 1e6


def test_options(bench):
    options = bench.running.parse(["--long", "--ways", "arm", "ours"])
    assert [str(case) for case in options.cases][-1] == "batch 1, prompt 2000 + 256"
    assert options.ways == ["ours", "arm"]
    assert "llama.cpp" not in bench.running.parse([]).ways
    assert bench.running.parse(["--quick"]).rounds == 1
    with pytest.raises(SystemExit):
        bench.running.parse(["--ways", "llama.cpp"])


def test_a_random_model_of_a_known_shape(bench, llama_folder):
    options = SimpleNamespace(shape="tiny", base=str(llama_folder), dtype="float32", device="cpu")
    one, two = (bench.making.make_base(options) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert one.model.config.num_hidden_layers == 2
    (answer,) = load(one).generate(["the"], temperature=0, max_tokens=2, ignore_eos=True)
    assert len(answer.token_ids) == 2


def test_comparison_of_distributions_by_hand(bench):
    """KL(½ ½ ‖ ¼ ¾) = ½ ln 2 + ½ ln ⅔; the token taken was twice as likely."""
    plain, found = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    figures = bench.quantization.compare([found], [plain], [[0]])
    assert figures["kl"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert figures["perplexity"] == pytest.approx(2)
    assert figures["top1"] == 0
    assert bench.quantization.compare([plain], [plain], [[1]])["kl"] == 0


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantised_numbers_in_plain_layers_say_what_quantised_layers_say(bench, llama_folder, folders, name):
    own = bench.quantization.with_quantised_numbers(load_base(str(llama_folder), dtype="float32"), name)
    ids = torch.arange(10).unsqueeze(0)
    with torch.inference_mode():
        found = own.model(input_ids=ids).logits
        expected = load_base(str(llama_folder), dtype="float32", quantization=name).model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    base, guide, both = bench.quantization.distributions(own, folders["arm-1"], [([1, 2, 3], [4, 5])])
    assert base[0].shape == guide[0].shape == both[0].shape == (2, 320)
    assert torch.allclose(base[0].exp().sum(-1), torch.ones(2), atol=1e-5)
    assert not torch.allclose(base[0], guide[0], atol=1e-2)


def test_off_the_grid_no_weight_moves_further_than_half_a_step(bench, llama_folder):
    before = load_base(str(llama_folder), dtype="float32").model.model.layers[0].mlp.up_proj.weight
    moved = bench.quantization.off_grid(load_base(str(llama_folder), dtype="float32"))
    after = moved.model.model.layers[0].mlp.up_proj.weight
    step = (before.amax(-1) - before.amin(-1)) / 15  # 32 inputs: one group a row
    assert 0.3 < ((after - before).abs() / step.unsqueeze(-1)).max() < 0.55
    assert moved.fingerprint == load_base(str(llama_folder)).fingerprint
