"""The engine at its edges: loading, other bases, limits, stops, failures, cost."""

from __future__ import annotations

import shutil

import pytest
import torch

import tiny
import tiny_guides
from engine.worlds import CHAT
from trimtab.decoding.oracle import OracleGuide, greedy, next_distribution
from trimtab.engine import load
from trimtab.engine.backbone import Backbone, Pending
from trimtab.errors import (
    ConfigError,
    GuidanceError,
    GuideError,
    NumericalError,
    PromptTooLongError,
    VocabularyMismatchError,
)
from trimtab.models import load_base


@pytest.fixture
def small(tmp_path):
    """A smaller base with the same tokenizer but fewer padding rows, and two guides trained on it."""
    folder = tiny.save_base(
        tmp_path / "small", tiny.make_llama(300, seed=5, hidden=16, layers=1), tiny.make_tokenizer()
    )
    base = load_base(str(folder), dtype="float32")
    for i in (1, 2):
        tiny_guides.save_lora_guide(tmp_path / f"weak{i}", base, seed=i)
    return base


def _oracle_guide(base, seed, prompt_ids, weight, width):
    model = tiny_guides.random_lora(base.model, seed=seed).double()
    return OracleGuide(model, prompt_ids, weight, [v if v < 300 else -1 for v in range(width)])


def test_guides_of_a_smaller_base_share_one_backbone_and_equal_the_oracle(small, llama_folder, tmp_path):
    engine = load(llama_folder, [tmp_path / "weak1", tmp_path / "weak2"], dtype="float32")
    assert [g.backbone for g in engine.guides.values()] == [1, 1]
    assert len(engine._core.backbones) == 2
    ids = engine.base.tokenizer("the quick")["input_ids"]
    weights = {"weak1": 1.0, "weak2": -0.5}
    model = load_base(str(llama_folder), dtype="float32").model.double()
    known = [_oracle_guide(small, s, ids, w, 320) for s, w in ((1, 1.0), (2, -0.5))]
    expected = greedy(model, ids, known, max_tokens=10, stop_ids=frozenset({2}))
    assert engine.generate("the quick", guidance=weights, temperature=0, max_tokens=10)[0].token_ids == expected
    # ids 300…319 pad the base's output layer: possible for the base, impossible under guidance whatever the sign
    assert sum(next_distribution(model, ids)[300:]) > 0
    assert sum(next_distribution(model, ids, known)[300:]) == 0


def test_the_guides_base_can_be_named(small, llama_folder, tmp_path):
    moved = shutil.move(str(tmp_path / "small"), str(tmp_path / "elsewhere"))
    with pytest.raises(GuideError, match=r"weak1.*--guide-base weak1="):
        load(llama_folder, [tmp_path / "weak1"], dtype="float32")
    engine = load(llama_folder, [tmp_path / "weak1"], guide_bases={"weak1": moved}, dtype="float32")
    assert engine.guides["weak1"].backbone == 1
    with pytest.raises(GuideError, match="other weights"):
        load(llama_folder, [tmp_path / "weak1"], guide_bases={"weak1": str(_other(tmp_path))}, dtype="float32")
    with pytest.raises(GuidanceError, match=r"'weak'.*Did you mean 'weak1'"):
        load(llama_folder, [tmp_path / "weak1"], guide_bases={"weak": moved}, dtype="float32")


def _other(tmp_path):
    return tiny.save_base(tmp_path / "third", tiny.make_llama(300, seed=9), tiny.make_tokenizer())


def test_another_tokenizer_is_an_error_that_names_both(llama_folder, tmp_path):
    tokenizer = tiny.make_tokenizer(vocab_size=280)
    folder = tiny.save_base(tmp_path / "foreign", tiny.make_llama(280, seed=5), tokenizer)
    tiny_guides.save_lora_guide(tmp_path / "g", folder)
    with pytest.raises(VocabularyMismatchError, match=r"llama.*'g'"):
        load(llama_folder, [tmp_path / "g"], dtype="float32")


def test_a_token_the_guide_does_not_know(small, llama_folder, tmp_path):
    engine = load(llama_folder, [tmp_path / "weak1"], dtype="float32")
    with pytest.raises(GuidanceError, match=r"token 310.*'weak1'"):
        engine.score("x", [5, 310, 6])


def test_missing_and_plain_peft_folders(llama_folder, tmp_path):
    with pytest.raises(GuideError, match="no guide folder"):
        load(llama_folder, [tmp_path / "nothing"])
    tiny.save_lora(tmp_path / "peft", tiny.make_llama(320))
    with pytest.raises(GuideError, match=r"no guide\.json"):
        load(llama_folder, [tmp_path / "peft"])


def test_names(world):
    folder = world.folders["a"]
    assert list(load(world.base, {"x": folder, "y": folder}).guides) == ["x", "y"]
    assert list(load(world.base, folder).guides) == ["a"]


def test_prompt_longer_than_the_context(gpt2_folder):
    engine = load(gpt2_folder, dtype="float32")
    with pytest.raises(PromptTooLongError, match=r"256 tokens.*at most 256"):
        engine.generate("a" * 256)
    answer = engine.generate("a" * 250, max_tokens=100, ignore_eos=True, seed=1)[0]
    assert (answer.prompt_tokens, len(answer.token_ids), answer.finish_reason) == (250, 6, "length")
    with pytest.raises(PromptTooLongError, match="do not fit"):
        engine.score("a" * 250, "b" * 9)


def test_the_guides_context_counts_too(llama_folder, tmp_path):
    folder = tiny.save_base(tmp_path / "short", tiny.make_llama(300, seed=5, context=16), tiny.make_tokenizer())
    tiny_guides.save_lora_guide(tmp_path / "g", folder)
    engine = load(llama_folder, [tmp_path / "g"], dtype="float32")
    with pytest.raises(PromptTooLongError, match="the guide 'g' reads at most 16"):
        engine.generate("a" * 20)
    options = {"max_tokens": 30, "ignore_eos": True, "seed": 1}
    assert len(engine.generate("a" * 10, **options)[0].token_ids) == 6
    assert len(engine.generate("a" * 10, guidance=0, **options)[0].token_ids) == 30
    stream = engine.stream("a" * 10, guidance=0, **options)
    while len(stream.token_ids) < 8:
        next(stream)
    with pytest.raises(PromptTooLongError, match="ends 6 tokens"):
        stream.set_guidance(1)
    assert len("".join(stream)) > 0
    assert len(stream.token_ids) == 30


def test_nan_is_never_a_token(world, monkeypatch):
    engine = load(world.base, [world.folders["a"]])
    run = Backbone.run_async
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "run_async", lambda self, spans: Pending(run(self, spans).logits * float("nan")))
        with pytest.raises(NumericalError, match=r"NaN.*base"):
            engine.generate("x", guidance=0, temperature=0)
        with pytest.raises(NumericalError, match="NaN"):
            engine.score("x", "y")
    with pytest.raises(NumericalError, match="weights are too large"):
        engine.generate("x", guidance={"a": 1e38}, temperature=0)


def test_closing_gives_the_base_back(world):
    base = load_base(str(world.base.folder), dtype="float32")
    ids = torch.tensor([[5, 6, 7]])
    plain = base.model(input_ids=ids).logits
    with load(base, list(world.folders.values())) as engine:
        engine.generate("x", seed=1, max_tokens=3)
        assert torch.equal(base.model(input_ids=ids).logits, plain)
        hooked = any(m._forward_hooks for m in base.model.modules())
        assert hooked == (engine._core.backbones[0].kernels == "generic")
    assert not any(m._forward_hooks for m in base.model.modules())
    with pytest.raises(ConfigError, match="closed"):
        engine.generate("x")


def test_finished_answers_leave_the_batch(world, reads):
    """Limits 2, 4 and 6 with one guide: rows of the forwards are 3+3, then 2+2 after two tokens, then 1+1."""
    limits = [{"max_tokens": m, "ignore_eos": True} for m in (2, 4, 6)]
    answers = world.engine.generate(["x", "yy", "zzz"], guidance={"a": 1, "b": 0}, sampling=limits, seed=1)
    assert [len(a.token_ids) for a in answers] == [2, 4, 6]
    assert [len(spans) for spans in reads] == [6, 6, 4, 4, 2, 2]


def test_n_answers_share_the_pages_that_their_prompt_fills(world, reads):
    prompt = "a" * 20 + str(world)[:19]
    count = len(world.base.tokenizer(prompt)["input_ids"])
    world.engine.generate(prompt, guidance={"a": 1, "b": 0}, n=3, max_tokens=2, seed=1, ignore_eos=True)
    rest = count - (count - 1) // 16 * 16
    assert reads[0] == [(None, count), (0, count)]
    assert sorted(reads[1], key=str) == sorted([(None, rest)] * 2 + [(0, rest)] * 2 + [(None, 1), (0, 1)], key=str)


def test_eos_ends_an_answer(world, monkeypatch):
    end = torch.zeros(world.base.vocabulary_size)
    end[2] = 100.0
    run = Backbone.run_async
    monkeypatch.setattr(Backbone, "run_async", lambda self, spans: Pending(run(self, spans).logits + end))
    answer = world.engine.generate("x", max_tokens=5, seed=1)[0]
    longer = world.engine.generate("x", max_tokens=5, seed=1, ignore_eos=True)[0]
    assert (answer.token_ids, answer.text, answer.finish_reason) == ([2], "", "stop")
    assert (longer.token_ids, longer.finish_reason) == ([2] * 5, "length")


def test_stop_string(world):
    whole = world.engine.generate(CHAT, max_tokens=30, seed=4, ignore_eos=True)[0]
    stop = whole.text[5:7]
    cut = world.engine.generate(CHAT, max_tokens=30, seed=4, ignore_eos=True, stop=stop)[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stopped_by) == ("stop", stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


def test_progress_and_chunks(world):
    seen = []
    answers = world.engine.generate(
        ["a", "bb", "ccc"],
        n=2,
        max_tokens=2,
        seed=1,
        max_batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [a.prompt_index for a in answers] == [0, 0, 1, 1, 2, 2]
    assert seen[-1] == (6, 6)
    assert world.engine.generate([]) == []


def test_fresh_seeds_differ_and_are_recorded(world):
    one, two = (world.engine.generate("x", max_tokens=8)[0] for _ in range(2))
    assert one.seed != two.seed
    assert world.engine.generate("x", max_tokens=8, seed=one.seed)[0].token_ids == one.token_ids


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompts": ["x"], "guidance": [1, 2]}, "1 prompts but 2 entries in guidance"),
        ({"prompts": [True]}, "not 'True'"),
        ({"prompts": [[1, "a"]]}, "base's token ids"),
        ({"prompts": [[{"role": "user"}]]}, "list of chat turns"),
        ({"prompts": "x", "max_batch_size": 0}, "max_batch_size is 0"),
        ({"prompts": "x", "max_token": 3}, "Did you mean 'max_tokens'"),
    ],
)
def test_wrong_calls(world, call, message):
    with pytest.raises(ConfigError, match=message):
        world.engine.generate(**call)


def test_streams_write_one_answer(world):
    with pytest.raises(ConfigError, match="n is 2"):
        world.engine.stream("x", n=2)


def test_a_failed_change_of_guidance_leaves_the_old_one(world):
    stream = world.engine.stream("x", guidance={"a": 1, "b": 0}, seed=1, max_tokens=5, ignore_eos=True)
    with pytest.raises(GuidanceError):
        stream.set_guidance({"nobody": 1})
    "".join(stream)
    assert (
        stream.result == world.engine.generate("x", guidance={"a": 1, "b": 0}, seed=1, max_tokens=5, ignore_eos=True)[0]
    )


def test_bfloat16_runs_and_combines_in_float32(world):
    engine = load(str(world.base.folder), [world.folders["a"]], dtype="bfloat16")
    answer = engine.generate(CHAT, max_tokens=4, seed=1)[0]
    assert 1 <= len(answer.token_ids) <= 4
    score = engine.score(CHAT, "hi")
    assert score.base_log_prob == pytest.approx(sum(score.base))
    assert score.to_dict()["combined_log_prob"] < 0
