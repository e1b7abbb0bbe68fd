"""lm-eval's model: the engine's numbers, at strength 0 those of lm-eval's own ``hf`` model, and its command lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import tiny
import tiny_guides
from engine.blends import save_conditioned
from trimtab.cli.main import main, normalise_flags
from trimtab.errors import ConfigError, GuidanceError
from trimtab.evaluation import harness
from trimtab.evaluation.harness_arguments import as_list, as_number, as_weights
from trimtab.evaluation.harness_model import TrimtabLM
from trimtab.models import load_base

TASKS = Path(__file__).parent / "lm_eval_task"
NAMES = ["tiny_choice", "tiny_answer", "tiny_rolling"]


@pytest.fixture(scope="module")
def guides(llama_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("guides")
    base = load_base(str(llama_folder), dtype="float32")
    tiny_guides.save_lora_guide(root / "polite", base)
    save_conditioned(base, root / "values", "moslora-text", k=2)
    return root


@pytest.fixture(scope="module")
def guided(llama_folder, guides):
    return TrimtabLM(
        str(llama_folder), guide=f"{guides / 'polite'};{guides / 'values'}", dtype="float32", device="cpu",
        weights="polite=1.5;helpful=0.4;harmless=0.2", strength=0.8, batch_size="4",
    )  # fmt: skip


@pytest.fixture(scope="module")
def hf(llama_folder):
    return HFLM(pretrained=str(llama_folder), dtype="float32", device="cpu", batch_size=3, max_length=200)


def _requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


PAIRS = [
    ("The quick brown", " fox jumps"),
    ("The quick brown", " dog"),
    ("", "happy to help"),
    ("ends in a space ", "so it moves"),
    ("x" * 600, " cut from the left"),
    ("naïve ☃", " 雨"),
]
TEXTS = ["the quick brown fox jumps over the lazy dog", "hi", "a long text, " * 60]


def test_log_likelihoods_are_the_engines(guided):
    found = guided.loglikelihood(_requests(*PAIRS), disable_tqdm=True)
    tokenizer, engine = guided.tokenizer, guided.engine
    for (context, continuation), (value, greedy) in list(zip(PAIRS, found, strict=True))[:2]:
        whole, before = tokenizer(context + continuation)["input_ids"], tokenizer(context)["input_ids"]
        score = engine.score(context, whole[len(before) :], guidance=guided.guidance)
        assert value == pytest.approx(score.combined_log_prob, abs=1e-5)
        assert value != pytest.approx(score.base_log_prob, abs=1e-2)
        written = engine.generate(context, guidance=guided.guidance, temperature=0, max_tokens=len(score.token_ids))
        assert greedy == (written[0].token_ids == score.token_ids)
    # What the model would write itself is greedy.
    context, own = "The quick brown", engine.generate(
        "The quick brown", guidance=guided.guidance, temperature=0, max_tokens=3, ignore_eos=True
    )[0].token_ids  # fmt: skip
    ((value, greedy),) = guided._loglikelihood_tokens([((context, ""), tokenizer(context)["input_ids"], own)])
    assert greedy
    ((_, greedy),) = guided._loglikelihood_tokens([((context, ""), tokenizer(context)["input_ids"], [*own[:2], 0])])
    assert not greedy


@pytest.mark.parametrize("chat", [False, True])
def test_strength_0_is_lm_evals_own_hf_model(llama_folder, guides, hf, chat):
    options = {"dtype": "float32", "device": "cpu", "max_length": 200}
    plain = TrimtabLM(str(llama_folder), guide=str(guides / "polite"), strength=0, batch_size="auto", **options)
    pairs = PAIRS
    if chat:
        turns = [{"role": "user", "content": "hi"}]
        assert plain.apply_chat_template(turns) == hf.apply_chat_template(turns)
        started = [*turns, {"role": "assistant", "content": "Well,"}]
        assert plain.apply_chat_template(started, False) == hf.apply_chat_template(started, False)
        assert plain.chat_template(True) == hf.chat_template(True)
        pairs = [(hf.apply_chat_template(turns), " yes"), (hf.apply_chat_template(turns), "No.")]
    hf_, our = (model.loglikelihood(_requests(*pairs), disable_tqdm=True) for model in (hf, plain))
    assert [value for value, _ in our] == pytest.approx([value for value, _ in hf_], abs=1e-4)
    assert [greedy for _, greedy in our] == [greedy for _, greedy in hf_]


def test_rolling_windows_are_lm_evals(llama_folder, hf):
    options = {"dtype": "float32", "device": "cpu", "max_length": 40}
    ours = TrimtabLM(str(llama_folder), **options)
    theirs = HFLM(pretrained=str(llama_folder), batch_size=2, **options)
    requests = _requests(*((text,) for text in TEXTS))
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected, abs=1e-3)
    whole = TrimtabLM(str(llama_folder), dtype="float32", device="cpu")
    assert whole.loglikelihood_rolling(_requests((TEXTS[0],)), disable_tqdm=True) == pytest.approx(
        hf.loglikelihood_rolling(_requests((TEXTS[0],)), disable_tqdm=True), abs=1e-4
    )


def test_answers_are_lm_evals_at_strength_0(llama_folder, guides, hf):
    options = {"dtype": "float32", "device": "cpu", "max_length": 200}
    plain = TrimtabLM(str(llama_folder), guide=str(guides / "polite"), strength=0, **options)
    greedy = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    requests = _requests(*((context, dict(greedy)) for context, _ in PAIRS if context))
    assert plain.generate_until(requests, disable_tqdm=True) == hf.generate_until(requests, disable_tqdm=True)


def test_answers_are_the_engines(guided):
    options = {"until": "e", "max_gen_toks": 6, "do_sample": False, "num_beams": 1}
    (answer,) = guided.generate_until(_requests(("The quick", options)), disable_tqdm=True)
    expected = guided.engine.generate("The quick", guidance=guided.guidance, temperature=0, max_tokens=6, stop=["e"])
    assert answer == expected[0].text
    drawn = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_gen_toks": 12, "until": []}
    one, two = guided.generate_until(_requests(("Hi", drawn), ("Hi", drawn)), disable_tqdm=True)
    assert one != two
    assert [one, two] == guided.generate_until(_requests(("Hi", drawn), ("Hi", drawn)), disable_tqdm=True)
    sampling = guided._sampling({"until": ["<|im_start|>", "e"], "do_sample": False})
    assert (sampling.stop, sampling.stop_token_ids, sampling.max_tokens) == (("e",), (1,), 256)
    with pytest.raises(ConfigError, match="length_penalty"):
        guided.generate_until(_requests(("Hi", {"length_penalty": 2.0})), disable_tqdm=True)
    with pytest.raises(ConfigError, match="max_gen_toks is 512, but base and guides read 512 tokens"):
        guided.generate_until(_requests(("Hi", {"max_gen_toks": 512})), disable_tqdm=True)


def test_evaluated_by_lm_eval_it_scores_as_hf(guided, llama_folder, hf):
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False)
    plain = get_model("trimtab").create_from_arg_string(
        f"base={llama_folder},dtype=float32,strength=0", {"batch_size": 4, "max_batch_size": None, "device": "cpu"}
    )
    ours, theirs = (
        lm_eval.evaluate(lm=model, task_dict=tasks.load(NAMES), bootstrap_iters=0)["results"] for model in (plain, hf)
    )
    for task, metric in (("tiny_choice", "acc"), ("tiny_answer", "exact_match"), ("tiny_rolling", "bits_per_byte")):
        assert ours[task][f"{metric},none"] == pytest.approx(theirs[task][f"{metric},none"], abs=1e-5), task
    info = guided.get_model_info()
    assert info["trimtab_weights"] == pytest.approx({"polite": 1.2, "values": 0.48})
    assert json.loads(json.dumps(info)) == info


def test_lm_evals_own_program_finds_the_model(llama_folder, guides, tmp_path):
    """``lm_eval --model trimtab …``: a file among --tasks imports our module before lm-eval looks for the model."""
    program = Path(sys.executable).parent / "lm_eval"
    arguments = f"base={llama_folder},guide={guides / 'polite'},strength=0.5,dtype=float32"
    command = [
        str(program), "--model", "trimtab", "--model_args", arguments, "--include_path", str(TASKS), "--tasks",
        f"{harness.plugin_file()},tiny_choice", "--device", "cpu", "--batch_size", "4", "--output_path", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.rglob("results_*.json")
    written = json.loads(file.read_text())
    assert written["config"]["trimtab_weights"] == {"polite": 0.5}
    assert 0 <= written["results"]["tiny_choice"]["acc,none"] <= 1


def test_our_own_verb_is_lm_evals_program(monkeypatch, capsys):
    seen = {}

    def evaluate():
        seen["argv"] = list(sys.argv)

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", evaluate)
    monkeypatch.setenv("TRIMTAB_DEBUG", "")  # --debug sets it: what it was comes back

    def run(*arguments):
        with pytest.raises(SystemExit) as leave:
            main(list(arguments))
        assert leave.value.code == 0

    run("--debug", "lm-eval", "--model_args", "base=x,max_length=3", "--tasks", "a,b", "--include_path", "t_t", "-x")
    assert seen["argv"] == [
        "lm_eval", "--model_args", "base=x,max_length=3", "--tasks", "a,b", "--include_path", "t_t", "-x",
        "--model", "trimtab", "--batch_size", "auto",
    ]  # fmt: skip
    run("lm-eval", "ls", "tasks")
    assert seen["argv"] == ["lm_eval", "ls", "tasks"]
    capsys.readouterr()
    run("lm-eval", "--plugin")
    assert Path(capsys.readouterr().out.strip()) == harness.plugin_file()


def test_flags_of_other_verbs_are_still_normalised():
    assert normalise_flags(["generate", "--max_tokens", "lm-eval", "--top_p"])[1::2] == ["--max-tokens", "--top-p"]
    assert harness.with_defaults(["--tasks", "x", "--model", "hf"]) == ["--tasks", "x", "--model", "hf"]
    assert harness.with_defaults(["--tasks", "x", "--batch_size", "2"])[-2:] == ["--model", "trimtab"]
    assert harness.with_defaults(["--config", "x.yaml"]) == ["--config", "x.yaml"]


def test_it_is_registered_beside_the_others():
    assert get_model("trimtab") is TrimtabLM
    assert get_model("hf") is HFLM
    harness.register()  # once more does nothing


def test_arguments():
    assert as_list("a;b", "guide") == as_list("[a, 'b']", "guide") == as_list(["a", "b"], "guide") == ["a", "b"]
    assert as_list(None, "guide") == []
    assert as_weights("a=1; b/c=-2.5", "weights") == {"a": 1.0, "b/c": -2.5}
    assert as_weights({"a": 1}, "weights") == {"a": 1.0}
    assert as_weights("g=smollm2", "guide_base", text=True) == {"g": "smollm2"}
    for bad in ("a", "a=", "=1", "a=b", "a=1;a=2"):
        with pytest.raises(ConfigError, match="weights"):
            as_weights(bad, "weights")
    for value in (True, "x", None):
        with pytest.raises(ConfigError, match="strength"):
            as_number(value, "strength")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigError, "names no base"),
        ({"base": "BASE", "strenght": 1}, ConfigError, "Did you mean 'strength'"),
        ({"base": "BASE", "weights": "polite=1"}, GuidanceError, "no guide is loaded"),
        ({"base": "BASE", "batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"base": "BASE", "max_length": 512}, ConfigError, "1 to 511"),
    ],
)
def test_wrong_arguments(llama_folder, arguments, error, message):
    given = {name: str(llama_folder) if value == "BASE" else value for name, value in arguments.items()}
    with pytest.raises(error, match=message):
        TrimtabLM(**given)


def test_a_tokenizer_without_a_template_or_a_pair_that_fits_no_window(gpt2_folder):
    model = TrimtabLM(str(gpt2_folder), dtype="float32", device="cpu", max_length=8)
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]) == "User: hi\n\nAssistant:"
    with pytest.raises(ConfigError, match="more than max_length 8"):
        model.loglikelihood(_requests(("a", "b" * 30)), disable_tqdm=True)
    assert model.loglikelihood(_requests(("a", "")), disable_tqdm=True) == [(0.0, True)]


def test_a_bos_token_is_added_as_asked(tmp_path):
    folder = tiny.save_base(tmp_path / "base", tiny.make_llama(), tiny.make_tokenizer())
    model = TrimtabLM(str(folder), dtype="float32", device="cpu")
    assert model.tok_encode("hi") == model.tok_encode("hi", add_special_tokens=False)
    assert model.prefix_token_id == 1
    assert model.eot_token_id == 2
    assert model.batch_size == 16
