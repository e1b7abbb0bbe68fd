"""lm-evaluation-harness, unchanged, against a real server; its numbers are those of the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.talk import COMPLETIONS

TASKS = Path(__file__).parent / "lm_eval_task"
DOCS = [json.loads(line) for line in (TASKS / "docs.jsonl").read_text(encoding="utf-8").splitlines()]
# The harness and what it imports warn of things that are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def evaluate(server, monkeypatch, tmp_path):
    """Run a task; return its samples."""
    import datasets

    monkeypatch.chdir(TASKS)  # the task names its data beside it
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def run(model: str, task: str, path: str, **options) -> list[dict]:
        import lm_eval
        from lm_eval.tasks import TaskManager

        name = options.pop("name", "tiny")
        arguments = {"model": name, "base_url": server.url + path, "max_retries": 1, "max_length": 400, **options}
        results = lm_eval.simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=[task],
            task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
            apply_chat_template="chat" in model,
            bootstrap_iters=0,
            log_samples=True,
        )
        return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])

    yield run
    assert server.idle()


@pytest.mark.parametrize(
    ("name", "weights", "options"),
    [
        ("tiny", None, {}),
        ("tiny:plain", 0.0, {"batch_size": 4}),
        ("tiny:balanced", {"helpful": 0.5, "harmless": 0.5}, {"num_concurrent": 3}),
    ],
)
def test_log_likelihoods(evaluate, engine, name, weights, options):
    samples = evaluate("local-completions", "trimtab_choice", COMPLETIONS, name=name, **options)
    tokenizer = engine.base.tokenizer
    for doc, sample in zip(DOCS, samples, strict=True):
        context = tokenizer(doc["question"])["input_ids"]
        for choice, response in zip(doc["choices"], sample["filtered_resps"], strict=True):
            whole = tokenizer(f"{doc['question']} {choice}")["input_ids"]
            score = engine.score(whole[:1], whole[1:], guidance=weights)
            assert float(response[0]) == pytest.approx(sum(score.combined[len(context) - 1 :]), abs=1e-3)
            written = engine.generate([context], guidance=weights, temperature=0, max_tokens=len(whole) - len(context))
            assert (str(response[1]) == "True") == (written[0].token_ids == whole[len(context) :])


def test_generation(evaluate, engine):
    samples = evaluate("local-completions", "trimtab_generate", COMPLETIONS, seed=3)
    for doc, sample in zip(DOCS, samples, strict=True):
        stop = ["\n\n", engine.base.tokenizer.eos_token]
        (expected,) = engine.generate([doc["question"]], temperature=0, max_tokens=8, stop=stop)
        assert sample["resps"][0][0] == expected.text


def test_chat(evaluate, engine):
    samples = evaluate("local-chat-completions", "trimtab_generate", "/v1/chat/completions")
    for doc, sample in zip(DOCS, samples, strict=True):
        turns = [{"role": "user", "content": doc["question"]}]
        (expected,) = engine.generate([turns], temperature=0, max_tokens=8, stop=["\n\n"])
        assert sample["resps"][0][0] == expected.text
