"""``model.generate(custom_generate=…)``: transformers' own results unguided, the engine's and the oracle's guided."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

import tiny
import tiny_guides
import trimtab
from engine.blends import save_conditioned
from trimtab.decoding.oracle import OracleGuide, next_distribution
from trimtab.engine.backbone import Backbone
from trimtab.engine.fusing import lay_side_by_side
from trimtab.errors import (
    ConfigError,
    GuidanceError,
    GuideError,
    ModelError,
    NumericalError,
    PromptTooLongError,
    VocabularyMismatchError,
)
from trimtab.models import load_base

TEXTS = ["the quick brown fox", "hi", "I would be happy to help you, thank you for asking. The quick"]


class Case:
    """A model as a user of plain transformers has it, and two guides for it."""

    def __init__(self, world, root):
        self.world = world
        self.base = load_base(str(world.base.folder), dtype="float32")
        self.model, self.tokenizer = self.base.model, self.base.tokenizer
        self.tokenizer.padding_side = "left"
        second = tiny_guides.save_lora_guide(root / "c", self.base, objective="objective-c", seed=3)
        self.folders = {"a": world.folders["a"], "c": second}
        doubles = {"c": tiny_guides.random_lora(self.base.model, seed=3).double()}
        self.models = {"a": world.models["a"], **doubles}

    def inputs(self, texts):
        texts = [texts] if isinstance(texts, str) else texts
        return dict(self.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False))

    def plain(self, texts, **options):
        return self.model.generate(**self.inputs(texts), **options)

    def guided(self, texts, steer, **options):
        return self.model.generate(**self.inputs(texts), custom_generate=steer, **options)


@pytest.fixture
def case(world, tmp_path):
    made = Case(world, tmp_path)
    yield made
    made.tokenizer.padding_side = "right"


@pytest.fixture
def steer(case):
    made = trimtab.custom_generate(case.folders, guidance={"a": 1.0, "c": -0.5})
    yield made
    made.close()


OPTIONS = {
    "greedy": {},
    "a length": {"max_length": 40, "max_new_tokens": None},
    "sampling": {"do_sample": True},
    "warped": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "typical": {"do_sample": True, "typical_p": 0.5},
    "cutoffs": {"do_sample": True, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
    "repetition": {"repetition_penalty": 1.7},
    "n-grams": {"no_repeat_ngram_size": 2},
    "words": {"bad_words_ids": [[70], [71, 72]], "suppress_tokens": [80, 81], "begin_suppress_tokens": [82]},
    "bias": {"sequence_bias": [[[90], 5.0]]},
    "shortest": {"min_new_tokens": 6},
    "forced": {"forced_eos_token_id": 2, "exponential_decay_length_penalty": (3, 1.1)},
    "ends": {"eos_token_id": [2, 75, 100, 101, 102, 103], "pad_token_id": 7},
    "no end": {"eos_token_id": None, "stop_strings": None},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")},
}


@pytest.mark.parametrize("texts", [TEXTS[0], TEXTS], ids=["one", "padded"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_without_guidance_it_is_transformers_generate(case, steer, texts, options):
    """The same tensor, drawn tokens included: the same processors, the same draws of the same generator."""
    options = {"max_new_tokens": 12, **options}
    torch.manual_seed(5)
    expected = case.plain(texts, **options)
    torch.manual_seed(5)
    found = case.guided(texts, steer, guidance=0, **options)
    assert found.dtype == expected.dtype
    assert found.tolist() == expected.tolist()
    torch.manual_seed(5)
    if options != {"max_new_tokens": 12, "eos_token_id": [2, 75, 100, 101, 102, 103], "pad_token_id": 7}:
        assert case.guided(texts, steer, **options).tolist() != expected.tolist()


def test_guided_it_is_the_engine_and_the_oracle(case, steer):
    weights = {"a": 1.0, "c": -0.5}
    engine = trimtab.load(case.world.base.folder, case.folders, dtype="float32")
    out = case.guided(TEXTS, steer, max_new_tokens=12)
    width = out.shape[1] - 12
    for row, text in zip(out.tolist(), TEXTS, strict=True):
        written = engine.generate(text, guidance=weights, temperature=0, max_tokens=12)[0].token_ids
        assert row[width:] == written + [0] * (12 - len(written))
        ids = case.tokenizer(text)["input_ids"]
        known = [OracleGuide(case.models[name], ids, w) for name, w in weights.items()]
        token = max(enumerate(next_distribution(case.world.models["base"], ids, known)), key=lambda p: p[1])[0]
        assert row[width] == token


def test_sampled_tokens_have_the_guided_distribution(case, steer):
    ids = case.tokenizer(TEXTS[0])["input_ids"]
    known = [OracleGuide(case.models["a"], ids, 1.0), OracleGuide(case.models["c"], ids, -0.5)]
    expected = torch.tensor(next_distribution(case.world.models["base"], ids, known))
    torch.manual_seed(0)
    asked = {"do_sample": True, "top_k": 0, "max_new_tokens": 1, "num_return_sequences": 1000}
    drawn = torch.cat([case.guided(TEXTS[0], steer, **asked)[:, -1] for _ in range(2)])
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    often = expected > 5 / 2000
    tail = (counts[~often].sum() - 2000 * expected[~often].sum()) ** 2 / (2000 * expected[~often].sum())
    chi2 = float(((counts - 2000 * expected) ** 2 / (2000 * expected))[often].sum() + tail)
    freedom = int(often.sum())
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


def test_a_padded_batch_equals_single_runs(case, steer):
    out = case.guided(TEXTS, steer, max_new_tokens=10)
    for row, text in zip(out, TEXTS, strict=True):
        alone = case.guided(text, steer, max_new_tokens=10)[0]
        kept = row[int((row != 0).long().argmax()) :].tolist()
        assert kept[: len(alone)] == alone.tolist()
        assert set(kept[len(alone) :]) <= {0}


def test_each_prompt_has_its_own_guidance(case, steer):
    each = [{"a": 2.0}, 0, {"c": 1.0}]
    out = case.guided(TEXTS, steer, guidance=each, num_return_sequences=2, do_sample=True, top_k=1, max_new_tokens=8)
    for i, (text, one) in enumerate(zip(TEXTS, each, strict=True)):
        alone = case.guided(text, steer, guidance=one, max_new_tokens=8)[0].tolist()
        for row in out[2 * i : 2 * i + 2].tolist():
            kept = row[next(j for j, token in enumerate(row) if token) :]
            assert kept[: len(alone)] == alone
    steer.guidance = [{"a": 1.0}, {"a": 1.0}]
    with pytest.raises(GuidanceError, match="3 prompts but 2"):
        case.guided(TEXTS, steer, max_new_tokens=2)
    with pytest.raises(GuidanceError, match="mapping"):
        steer.guidance = ["much"]
    steer.guidance = {"d": 1.0}
    with pytest.raises(GuidanceError, match="no guide or objective 'd'"):
        case.guided("hi", steer, max_new_tokens=2)


def test_finished_answers_leave_and_equal_prompts_are_read_once(case, steer, reads):
    ends = {"eos_token_id": [2, *range(60, 320, 2)], "pad_token_id": 0}
    case.guided(TEXTS, steer, max_new_tokens=1)
    reads.clear()
    out = case.guided(TEXTS, steer, guidance=0, max_new_tokens=12, **ends)
    lengths = sorted(int((row != 0).sum()) for row in out[:, -12:])
    assert lengths[0] < lengths[-1]
    assert len(reads[-1]) < 3
    reads.clear()
    steer.close()
    case.guided(TEXTS[2], steer, max_new_tokens=2, num_return_sequences=4, do_sample=True)
    length = len(case.tokenizer(TEXTS[2])["input_ids"])
    assert sum(tokens for spans in reads for _, tokens in spans) <= 3 * length + 4 * 3 * (16 + 1)


def test_it_returns_scores_and_logits(case, steer):
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": 5}
    asked |= {"do_sample": True, "temperature": 0.5, "top_k": 4}
    torch.manual_seed(1)
    expected = case.plain(TEXTS[0], **asked)
    torch.manual_seed(1)
    found = case.guided(TEXTS[0], steer, guidance=0, **asked)
    assert type(found) is type(expected)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert len(ours) == len(theirs)
        torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=1e-4, rtol=1e-4)
    assert case.guided("hi", steer, return_dict_in_generate=True, output_scores=False, max_new_tokens=2).scores is None


class Heard(BaseStreamer):
    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard.append(value.tolist())

    def end(self):
        self.heard.append("end")


def test_a_streamer_hears_what_it_hears_from_transformers(case, steer):
    expected, found = Heard(), Heard()
    case.plain(TEXTS, streamer=expected, max_new_tokens=5)
    case.guided(TEXTS, steer, guidance=0, streamer=found, max_new_tokens=5)
    assert found.heard == expected.heard
    assert found.heard[-1] == "end"


class Only(LogitsProcessor):
    """Allows two tokens in turn, by a count of its own calls."""

    def __init__(self):
        self.calls, self.shapes = 0, []

    def __call__(self, input_ids, scores):
        self.shapes.append((tuple(input_ids.shape), tuple(scores.shape)))
        kept = torch.full_like(scores, float("-inf"))
        kept[:, 65 + self.calls % 2] = 0.0
        self.calls += 1
        return kept


class AfterFour(StoppingCriteria):
    def __init__(self, width):
        self.width = width

    def __call__(self, input_ids, scores, **kwargs):
        first = torch.arange(len(input_ids)) == 0
        return first & (input_ids.shape[1] - self.width >= 4)


def test_own_processors_and_criteria_act_on_the_whole_batch(case, steer):
    width = case.inputs(TEXTS)["input_ids"].shape[1]
    mine = Only()
    out = case.guided(TEXTS, steer, logits_processor=LogitsProcessorList([mine]), max_new_tokens=6)
    assert out[:, width:].tolist() == [[65, 66] * 3] * 3
    vocabulary = case.model.config.vocab_size
    assert mine.shapes == [((3, width + i), (3, vocabulary)) for i in range(6)]
    for eos in (2, None):
        options = {"stopping_criteria": StoppingCriteriaList([AfterFour(width)]), "eos_token_id": eos}
        options |= {"max_new_tokens": 8, "pad_token_id": 0}
        expected = case.plain(TEXTS, **options)
        assert case.guided(TEXTS, steer, guidance=0, **options).tolist() == expected.tolist()
    shorter = StoppingCriteriaList([MaxLengthCriteria(width + 3)])
    assert case.guided(TEXTS, steer, stopping_criteria=shorter, max_new_tokens=6).shape[1] == width + 3

    def allowed(row, ids):
        return [100 + row]

    out = case.guided(TEXTS, steer, prefix_allowed_tokens_fn=allowed, max_new_tokens=2)
    assert out[:, width:].tolist() == [[100, 100], [101, 101], [102, 102]]


def test_stop_strings_end_answers(case, steer):
    free = case.guided(TEXTS, steer, max_new_tokens=30)
    width = free.shape[1] - 30
    texts = [case.tokenizer.decode(row) for row in free[:, width:]]
    places = ((i, text[k]) for i, text in enumerate(texts) for k in range(1, len(text)) if text[k] not in text[:k])
    row, stop = next((i, one) for i, one in places if one.isascii())
    options = {"stop_strings": [stop], "tokenizer": case.tokenizer, "max_new_tokens": 12}
    assert case.guided(TEXTS, steer, guidance=0, **options).tolist() == case.plain(TEXTS, **options).tolist()
    stopped = case.guided(TEXTS, steer, stop_strings=stop, max_new_tokens=30)
    assert stop in case.tokenizer.decode(stopped[row, width:])
    assert stopped[row, width:].tolist() != free[row, width:].tolist()[: stopped.shape[1] - width]


def test_pipelines_and_threads_can_use_it(case, steer):
    pipe = pipeline("text-generation", model=case.model, tokenizer=case.tokenizer)
    [[answer]] = pipe(["hi"], custom_generate=steer, max_new_tokens=6, do_sample=False, return_full_text=False)
    out = case.guided("hi", steer, max_new_tokens=6)
    assert answer["generated_text"] == case.tokenizer.decode(out[0, 2:], skip_special_tokens=True)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: case.guided(text, steer, max_new_tokens=10).tolist(), TEXTS * 4))
    assert found == [case.guided(text, steer, max_new_tokens=10).tolist() for text in TEXTS] * 4


REFUSED = {
    "beams": ({"num_beams": 2}, "beam search"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
    "guidance scale": ({"guidance_scale": 1.5}, r"guidance_scale.*generate\(guidance=…\)"),
    "attentions": ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
    "gpus": ({"synced_gpus": True}, "one device"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(case, steer, options, message):
    with pytest.raises(ConfigError, match=message):
        case.guided("hi", steer, max_new_tokens=2, **options)


def test_inputs_that_it_cannot_read_are_refused(case, steer):
    with pytest.raises(ConfigError, match="assisted generation"):
        case.guided("hi", steer, assistant_model=copy.deepcopy(case.model), max_new_tokens=2)
    case.tokenizer.padding_side = "right"
    with pytest.raises(ConfigError, match=r"row 0.*padding_side = 'left'"):
        case.guided(TEXTS, steer, max_new_tokens=2)
    inputs = case.inputs("hi")
    with pytest.raises(ConfigError, match="past_key_values"):
        cache = case.model(**inputs, use_cache=True).past_key_values
        case.model.generate(**inputs, custom_generate=steer, past_key_values=cache, max_new_tokens=2)
    with pytest.raises(ConfigError, match="position_ids of row 0"):
        places = torch.full_like(inputs["input_ids"], 3)
        case.model.generate(**inputs, custom_generate=steer, position_ids=places, max_new_tokens=2)
    with pytest.raises(ConfigError, match="'inputs_embeds'"):
        embeds = case.model.get_input_embeddings()(inputs["input_ids"])
        case.model.generate(**inputs, inputs_embeds=embeds, custom_generate=steer, max_new_tokens=2)
    with pytest.raises(ConfigError, match="Row 0 of input_ids is empty"):
        empty = torch.zeros_like(inputs["attention_mask"])
        case.model.generate(inputs["input_ids"], attention_mask=empty, custom_generate=steer, max_new_tokens=2)
    with pytest.raises(ConfigError, match="for transformers to call"):
        steer(case.model, inputs["input_ids"])
    with pytest.raises(ConfigError, match="merge_and_unload"):
        tiny_guides.random_lora(case.model).generate(**inputs, custom_generate=steer, max_new_tokens=2)
    with pytest.raises(ConfigError, match="training mode"):
        case.model.train()
        case.guided("hi", trimtab.custom_generate(), max_new_tokens=2)
    case.model.eval()


def test_a_batch_that_does_not_fit_or_ends_with_the_context(case, caplog):
    steer = trimtab.custom_generate(case.folders, config={"kv_cache_memory_gib": 1e-3})
    with pytest.raises(PromptTooLongError, match="kv_cache_memory_gib"):
        case.guided(TEXTS, steer, max_new_tokens=200, num_return_sequences=40, do_sample=True)
    long = torch.full((1, case.base.context_length - 3), 65)
    with caplog.at_level("WARNING", logger="trimtab"):
        out = case.model.generate(
            long,
            attention_mask=torch.ones_like(long),
            custom_generate=trimtab.custom_generate(),
            eos_token_id=None,
            max_new_tokens=9,
        )
    assert out.shape[1] == case.base.context_length
    assert "after 3 tokens" in caplog.text


def test_the_model_is_as_before_when_it_is_closed(case):
    def hooks():
        return sum(len(module._forward_hooks) for module in case.model.modules())

    before = hooks()
    steer = trimtab.custom_generate(case.folders)
    first = case.guided(TEXTS, steer, max_new_tokens=4)
    assert list(steer.guides(case.model)) == ["a", "c"]
    uses_hooks = not hasattr(case.model, "model")  # the GPT-2, which runs generically
    assert (hooks() > before) == uses_hooks
    assert "_trimtab_engines" in case.model.__dict__
    assert pickle.loads(pickle.dumps(case.model.__dict__["_trimtab_engines"])) == {}
    assert copy.deepcopy(case.model).__dict__["_trimtab_engines"] == {}
    steer.close()
    assert hooks() == before
    assert "_trimtab_engines" not in case.model.__dict__
    assert case.guided(TEXTS, steer, max_new_tokens=4).tolist() == first.tolist()
    del steer
    gc.collect()
    assert hooks() == before


def test_it_keeps_no_model_alive(llama_folder):
    model = load_base(str(llama_folder), dtype="float32").model
    steer = trimtab.custom_generate()
    model.generate(
        torch.tensor([[65]]), attention_mask=torch.ones(1, 1).long(), custom_generate=steer, max_new_tokens=2
    )
    ref = weakref.ref(model)
    del model
    gc.collect()
    assert ref() is None
    steer.close()


def test_the_engine_is_kept_until_the_weights_change(case, monkeypatch):
    made = []
    original = Backbone.__init__
    monkeypatch.setattr(Backbone, "__init__", lambda self, *a, **k: made.append(1) or original(self, *a, **k))
    steer = trimtab.custom_generate(case.folders)
    for _ in range(2):
        case.guided("hi", steer, max_new_tokens=2)
    assert len(made) == 1
    bare = trimtab.custom_generate()
    with torch.no_grad():
        case.guided(TEXTS[2], bare, max_new_tokens=2)
        next(case.model.parameters()).mul_(1.5)
    assert case.guided(TEXTS[2], bare, max_new_tokens=6).tolist() == case.plain(TEXTS[2], max_new_tokens=6).tolist()
    assert [guide.backbone for guide in steer.guides(case.model).values()] == [1, 1]  # the base they were trained on
    steer.close()


def test_weights_that_lie_side_by_side_stay_where_they_are():
    """Two engines may share one model: the second must not move what the first reads."""
    model = tiny.make_llama()
    before = [p.data_ptr() for p in model.parameters()]
    lay_side_by_side(model)
    once = [p.data_ptr() for p in model.parameters()]
    lay_side_by_side(model)
    assert before != once == [p.data_ptr() for p in model.parameters()]


def test_nothing_is_drafted(case, llama_folder):
    for asked in ({"speculation": "ngram"}, {"draft_model": str(llama_folder)}):
        with pytest.raises(ConfigError, match="drafts no tokens"):
            trimtab.custom_generate(case.folders, config=asked)


def test_guides_that_read_otherwise_are_refused(case, world, tmp_path):
    with pytest.raises(GuideError, match="'b' was trained with another chat template"):
        case.guided("hi", trimtab.custom_generate(world.folders["b"]), max_new_tokens=2)
    assert not any(module._forward_hooks for module in case.model.modules())
    other = tiny.save_base(tmp_path / "other", tiny.make_llama(280, seed=5), tiny.make_tokenizer(vocab_size=280))
    foreign = tiny_guides.save_lora_guide(tmp_path / "foreign", other)
    with pytest.raises(VocabularyMismatchError):
        case.guided("hi", trimtab.custom_generate(foreign), max_new_tokens=2)
    case.model.config._name_or_path = ""
    case.model.name_or_path = ""
    with pytest.raises(ModelError, match="tokenizer="):
        case.guided("hi", trimtab.custom_generate(), max_new_tokens=2)
    given = trimtab.custom_generate(case.folders, tokenizer=case.tokenizer)
    assert case.guided("hi", given, max_new_tokens=2).shape[1] > 2


def test_nan_is_an_error(case):
    steer = trimtab.custom_generate()
    case.guided("hi", steer, max_new_tokens=2)
    with torch.no_grad():
        case.model.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(NumericalError, match="base"):
        case.guided("hi", steer, max_new_tokens=2)


def test_a_guide_of_a_smaller_base_reads_the_same_ids(llama_folder, tmp_path):
    folder = tiny.save_base(
        tmp_path / "small", tiny.make_llama(300, seed=5, hidden=16, layers=1), tiny.make_tokenizer()
    )
    small = load_base(str(folder), dtype="float32")
    weak = tiny_guides.save_lora_guide(tmp_path / "weak", small)
    model = load_base(str(llama_folder), dtype="float32").model
    ids = small.tokenizer("the quick", return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**ids, custom_generate=trimtab.custom_generate(weak, guidance=1.5), max_new_tokens=8)
    engine = trimtab.load(llama_folder, [weak], dtype="float32")
    expected = engine.generate("the quick", guidance=1.5, temperature=0, max_tokens=8)[0].token_ids
    assert out[0, ids["input_ids"].shape[1] :].tolist() == expected
    with pytest.raises(GuidanceError, match=r"token 310.*'weak'"):
        model.generate(
            torch.tensor([[65, 310]]),
            attention_mask=torch.ones(1, 2).long(),
            max_new_tokens=2,
            custom_generate=trimtab.custom_generate(weak),
        )


def test_a_conditioned_guide_takes_a_preference_for_each_prompt(llama_folder, tmp_path):
    base = load_base(str(llama_folder), dtype="float32")
    base.tokenizer.padding_side = "left"
    save_conditioned(base, tmp_path / "both", "moslora-text")
    steer, engine = trimtab.custom_generate(tmp_path / "both"), trimtab.load(base, [tmp_path / "both"])
    names = engine.guides["both"].objectives
    each = [{names[0]: 1.0}, {names[0]: 0.3, names[1]: 0.7}]
    inputs = base.tokenizer(TEXTS[:2], return_tensors="pt", padding=True, return_token_type_ids=False)
    expected = engine.generate(TEXTS[:2], guidance=each, temperature=0, max_tokens=8)
    out = base.model.generate(**inputs, custom_generate=steer, guidance=each, max_new_tokens=8)
    width = inputs["input_ids"].shape[1]
    for row, answer in zip(out[:, width:].tolist(), expected, strict=True):
        assert row == answer.token_ids + [0] * (len(row) - len(answer.token_ids))


def test_a_generation_config_object_and_the_models_own_count(case, steer):
    config = GenerationConfig(max_new_tokens=7, do_sample=True, top_k=3, pad_token_id=0, eos_token_id=2)
    case.model.generation_config.repetition_penalty = 1.4
    torch.manual_seed(2)
    expected = case.plain(TEXTS, generation_config=config)
    torch.manual_seed(2)
    assert case.guided(TEXTS, steer, guidance=0, generation_config=config).tolist() == expected.tolist()


@pytest.mark.real
def test_the_real_model_too(tmp_path):
    base = load_base("smollm2", dtype="float32")
    base.tokenizer.padding_side = "left"
    guide = tiny_guides.save_lora_guide(tmp_path / "g", base, scale=0.01)
    steer = trimtab.custom_generate(guide)
    inputs = base.tokenizer(["The capital of France is", "Rain"], return_tensors="pt", padding=True)
    expected = base.model.generate(**inputs, max_new_tokens=10)
    found = base.model.generate(**inputs, custom_generate=steer, guidance=0, max_new_tokens=10)
    assert found.tolist() == expected.tolist()
    out = base.model.generate(**inputs, custom_generate=steer, max_new_tokens=10)
    answers = trimtab.load(base, [guide]).generate(["The capital of France is", "Rain"], temperature=0, max_tokens=10)
    width = inputs["input_ids"].shape[1]
    for row, answer in zip(out[:, width:].tolist(), answers, strict=True):
        assert row[: len(answer.token_ids)] == answer.token_ids
