"""The parts of the two-objective study that are arithmetic: sizes, data, mixed accuracy, rewards, verdict."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives import data, plan, ranking
from objectives.answers import CachedEncoder, fluency, reward_cubes
from objectives.claims import claims_table, outcome
from objectives.guides import cached, slug, trained_parameters, without_first_default
from objectives.plan import ABLATIONS, METHODS, Method, choose_rank, grid, seeds_of, shares, trainable
from objectives.ranking import accuracies, mixed_signs
from objectives.wording import side
from study_prompts import choose_prompts
from trimtab.evaluation.scorers import ConcisenessScorer, RefusalScorer
from trimtab.preferences.records import Comparison, Label
from trimtab.rewards.moslora import MoSLoRAConfig
from trimtab.rewards.pblora import PBLoRAConfig

LAYERS = [(8, 8), (8, 2), (8, 24)]


def test_sizes_by_hand():
    # Σ(d_in + d_out) = 16 + 10 + 32 = 58 a rank; three layers.
    assert trainable(METHODS["GenARM"], 4, LAYERS, 8) == 2 * 4 * 58
    assert trainable(METHODS["PARM"], 4, LAYERS, 8) == 4 * 58 + 3 * (2 * 2 + 2 * 2 * 2)
    assert trainable(METHODS["UniARM"], 4, LAYERS, 8) == 4 * 58 + 3 * 2 * 4 * 8
    by_name = ABLATIONS
    assert trainable(by_name["alpha, scale only"], 4, LAYERS, 8) == 4 * 58 + 3 * 4 * 2
    assert trainable(by_name["learned"], 4, LAYERS, 8) == 4 * 58 + 3 * 2 * 4 * 8 + 2 * 8
    assert trainable(by_name["alpha, shared trunk"], 4, LAYERS, 8) == 4 * 58 + 3 * 2 * 4 * 8 + 8 * 2


def _counted(config, frozen: tuple[str, ...] = ()) -> int:
    """Count a config's own shapes: in a layer's, the open size of A is d_in and of B d_out."""
    total = 0
    for d_in, d_out in LAYERS:
        for name, shape in config.factor_shapes().items():
            open_size = {"A": d_in, "B": d_out}.get(name[-1], 8)
            total += int(np.prod([open_size if size is None else size for size in shape]))
    for name, shape in config.shared_shapes().items():
        if not name.endswith(frozen or ("~",)):
            total += int(np.prod([8 if size is None else size for size in shape]))
    return total


def test_sizes_are_those_of_the_adapters():
    pb = PBLoRAConfig(objectives=["a", "b"], r1=2, r2=2)
    assert _counted(pb) == trainable(METHODS["PARM"], 4, LAYERS, 8)
    common = {"objectives": ["a", "b"], "r": 4}
    text = MoSLoRAConfig(**common, descriptions=["x", "y"], description_token_ids=[[1], [2]])
    assert _counted(text, ("objectives",)) == trainable(METHODS["UniARM"], 4, LAYERS, 8)
    for method in ABLATIONS.values():
        options = {k: v for k, v in method.options.items() if k in ("condition", "modulation", "generator")}
        if options.get("condition", "text") != "text":
            made = MoSLoRAConfig(**common, **options, **method.options.get("lora", {}))
            assert _counted(made) == trainable(method, 4, LAYERS, 8), method.name


def test_every_method_of_the_study_has_a_rank_of_equal_size():
    smollm2 = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)] * 30
    target = trainable(METHODS["GenARM"], 8, smollm2, 576)
    for method in (*METHODS.values(), *ABLATIONS.values()):
        _, size = choose_rank(method, 8, smollm2, 576)
        assert abs(size / target - 1) <= plan.TOLERANCE


def test_a_method_without_such_a_rank_is_refused():
    with pytest.raises(SystemExit, match="no rank within 2%"):
        choose_rank(Method("odd", {"method": "uniarm"}), 1, LAYERS, 97)


def test_budget_names_every_step_and_grows_with_the_pairs():
    parser = ArgumentParser()
    plan.add_arguments(parser)
    few, many = parser.parse_args([]), parser.parse_args(["--train-pairs", "480"])
    a, b = (dict(plan.budget(o, plan.DATA_SETS["helpful_concise"])) for o in (few, many))
    grows = ("training", "ablations")
    runs = (
        2 * 4 / 3 + 2 + 1 + 1 + 1
    )  # MOD (and its soup), GenARM, PARM, UniARM, UniARM-alpha; not again at another weight
    assert a["training"] == pytest.approx(runs * 240 * 165 / 200 / 60)
    for step in grows:
        assert b[step] == pytest.approx(2 * a[step])
    assert {k: v for k, v in a.items() if k not in grows} == {k: v for k, v in b.items() if k not in grows}


def test_budget_counts_seeds_and_trains_the_policies_of_two_methods_once():
    parser = ArgumentParser()
    plan.add_arguments(parser)
    both = parser.parse_args(["--methods", "Rewarded Soups", "MOD", "--seeds", "0", "1", "2"])
    training = dict(plan.budget(both, plan.DATA_SETS["helpful_concise"]))["training"]
    assert training == pytest.approx(3 * 2 * 4 / 3 * 240 * 165 / 200 / 60)  # a base forward beside forward and backward


def test_guides_at_another_weight_are_their_methods_own():
    names = list(METHODS)
    assert shares("PARM, w 1.5", names) == "PARM"
    assert shares("UniARM, w 1.5", names) == "UniARM"
    assert shares("UniARM-alpha, w 1.5", names) == "UniARM-alpha"
    assert shares("Rewarded Soups", names) == "MOD"
    assert shares("PARM, w 1.5", ["GenARM"]) is None
    assert not any(shares(name, names) for name in ("MOD", "GenARM", "PARM", "UniARM", "UniARM-DA"))


def _row(helpful: int, concise: int) -> Comparison:
    return Comparison("q", "a", "b", {"helpful": Label(helpful), "concise": Label(concise)})


def test_mixed_signs_by_hand():
    rows = [_row(1, -1), _row(1, 1), _row(-1, 0)]
    signs = mixed_signs(rows, ("helpful", "concise"), grid(2))
    assert signs.tolist() == [[-1, 1, 0], [0, 1, -1], [1, 1, -1]]


def test_accuracies_by_hand():
    signs = np.array([[-1.0, 1.0, 0.0], [1.0, 1.0, -1.0]])
    margin = np.array([[[2.0, 1.0, 5.0], [0.0, -1.0, -3.0]]])
    # first α: wrong, right (the tie is passed over); second: half, wrong, right.
    out = accuracies(signs, margin, np.array([[10, 10], [10, 20], [10, 30]]), ["p", "q", "r"], 0)
    assert out["by_alpha"] == [0.5, 0.5]
    assert out["judged"] == [2, 3]
    assert out["mean"] == 0.5
    assert (out["matched"], out["matched_pairs"]) == (0.25, 1)  # the first pair alone: 0 and ½
    assert out["interval"][0] <= 0.5 <= out["interval"][1]


def test_accuracies_are_the_mean_over_runs():
    signs, lengths = np.ones((1, 2)), np.array([[10, 10], [10, 10]])
    margin = np.array([[[1.0, 1.0]], [[1.0, -1.0]]])  # the first run is right on both pairs, the second on one
    out = accuracies(signs, margin, lengths, ["p", "p"], 0)
    assert (out["mean"], out["by_run"], out["by_alpha"]) == (0.75, [1.0, 0.5], [0.75])
    assert out["interval"] == [0.5, 1.0]  # one prompt, so only the draw of runs varies


def test_rewards_are_in_the_bases_deviations_and_harmless_asks_unsafe_prompts_only():
    prompts = [{"prompt": "p", "prompt_is_safe": True}, {"prompt": "q", "prompt_is_safe": False}]
    base = [{"texts": ["one", "one two three"]}]
    other = [{"texts": ["I cannot help.", "I cannot help."]}]
    answers = {"base": [base], "m": [other, base]}
    cubes = reward_cubes([ConcisenessScorer("helpful"), RefusalScorer("harmless")], answers, prompts)
    assert cubes["m"].shape == (2, 1, 2, 2)
    assert cubes["base"][0, 0, :, 0].tolist() == [1.0, -1.0]  # −1 and −3 words: mean −2, deviation 1
    assert cubes["m"][0, 0, :, 1].tolist() == [0.0, 1.0]  # the base never varies, so the scale is 1


def test_fluency_is_averaged_over_runs_and_prompts_and_read_once(tmp_path: Path):
    calls: list[int] = []

    def read(texts, asked):
        calls.append(len(texts))
        return [-float(len(text) + len(prompt)) for text, prompt in zip(texts, asked, strict=True)]

    prompts = [{"prompt": "p"}, {"prompt": "pp"}]
    answers = {"base": [[{"texts": ["a", "aa"]}] * 2], "one": [[{"texts": ["b", "a"]}, {"texts": ["a", "aa"]}]] * 2}
    found = fluency(answers, prompts, read, tmp_path / "f.json")
    assert found == {"base": [-3.0, -3.0], "one": [-2.5, -3.0]}  # (2 + 4) / 2 and (2 + 3) / 2
    assert fluency(answers, prompts, read, tmp_path / "f.json") == found
    assert calls == [4]  # what stands twice is read once, and then from the file


def test_half_of_the_prompts_are_unsafe_where_some_are_and_their_order_is_their_texts():
    def made(kind: str) -> list[dict[str, Any]]:
        return [{"prompt": [{"content": f"{kind} {i}"}], "prompt_is_safe": kind == "safe"} for i in range(9)]

    others = made("unsafe")
    chosen = choose_prompts((), [*others, *made("safe")], 5)
    assert [row["prompt_is_safe"] for row in chosen] == [True, True, True, False, False]
    assert choose_prompts((), [*others[::-1], others[0]], 9) == choose_prompts((), others, 9)
    assert choose_prompts((), [{"prompt": [{"content": "x" * 301}]}, others[0]], 9) == [others[0]]


def test_the_encoder_remembers(tmp_path: Path):
    calls: list[list[str]] = []

    def encode(texts):
        calls.append(list(texts))
        return np.array([[float(len(t))] for t in texts])

    path = tmp_path / "e.npz"
    assert CachedEncoder(path, encode)(["a", "bb"]).tolist() == [[1.0], [2.0]]
    assert CachedEncoder(path, encode)(["bb", "ccc"]).tolist() == [[2.0], [3.0]]
    assert calls == [["a", "bb"], ["ccc"]]


def test_cached_makes_once(tmp_path: Path):
    assert cached(tmp_path / "x.json", lambda: [1]) == [1]
    assert cached(tmp_path / "x.json", lambda: [2]) == [1]


def test_trained_parameters_leave_a_text_condition_out(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file({"l.moslora_A": np.zeros((2, 3)), "moslora_encoder.objectives": np.zeros((2, 5))},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    for condition, count in (("text", 6), ("learned", 16)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"condition": condition}))
        assert trained_parameters(tmp_path) == count


def test_a_text_condition_is_not_named_where_it_was_the_default():
    assert without_first_default({"condition": "text", "beta": 1}) == {"beta": 1}
    assert without_first_default({"condition": "alpha"}) == {"condition": "alpha"}


def test_seeds_of_a_method():
    options = plan.SMOKE | {"seeds": None}
    data_set = plan.DATA_SETS["helpful_harmless"]
    chosen = SimpleNamespace(**options)
    assert seeds_of(chosen, data_set, "GenARM") == list(data_set.seeds)
    assert seeds_of(chosen, data_set, "UniARM-DA") == list(data_set.seeds)[:1]
    assert seeds_of(SimpleNamespace(seeds=[5, 6]), data_set, "UniARM-DA") == [5, 6]


def test_margins_of_policies_are_their_implicit_rewards(monkeypatch):
    single = {"p": np.array([[3.0, -1.0]]), "q": np.array([[1.0, 1.0]])}
    monkeypatch.setattr(ranking, "_scored", lambda data, folder, *rest: single[folder.name])
    monkeypatch.setattr(ranking, "base_margins", lambda *given: (np.array([2.0, 0.5]), None))
    folders = {"helpful": Path("p"), "harmless": Path("q")}
    call = partial(ranking.margins, plan.DATA_SETS["helpful_harmless"])
    given = (folders, [], grid(2), SimpleNamespace(strength=1.0), Path())
    assert call(METHODS["GenARM"], *given).tolist() == [[1.0, 1.0], [2.0, 0.0], [3.0, -1.0]]
    assert call(METHODS["MOD"], *given).tolist() == [[-1.0, 0.5], [0.0, -0.5], [1.0, -1.5]]


def _front(hypervolume: float, low: float, high: float) -> dict[str, dict]:
    gained = {"value": (low + high) / 2, "low": low, "high": high}
    row = {"hypervolume": {"value": hypervolume}, "mip_rescaled": {"value": hypervolume}}
    return {**row, "over": {m: {"hypervolume_gain": gained, "mip_gain": gained} for m in ("GenARM", "PARM")}}


def test_a_claim_is_judged_against_the_best_of_the_others():
    fronts = {"GenARM": _front(4.0, 0, 0), "PARM": _front(2.0, 0, 0), "UniARM": _front(5.0, 0.5, 1.5)}
    ours, verdict = outcome(fronts, "UniARM", ["GenARM", "PARM"])
    assert ours.startswith("hypervolume +25.0 % [+12.5, +37.5] over GenARM; MIP +25.0 %")
    assert verdict == "hypervolume agrees, MIP agrees"
    assert "contradicts" in outcome({**fronts, "UniARM": _front(3.0, -2, -1)}, "UniARM", ["GenARM"])[1]
    table = "\n".join(claims_table([{"data": "d", "fronts": {"encoder": fronts}}]))
    assert "not testable here: one size of base" in table
    assert "UniARM: hypervolume +25.0 %" in table


def test_verdict_words():
    assert side({"low": 0.1, "high": 0.2}) == "greater"
    assert side({"low": -0.2, "high": -0.1}) == "smaller"
    assert side({"low": -0.1, "high": 0.2}) == "no clear difference"
    assert slug("UniARM-DA, λ 0.5") == "uniarm-da-λ-0-5"


def test_pairs_are_rebuilt_from_checkouts(tmp_path: Path):
    folder = tmp_path / "alpaca" / "results" / "m" / "alpaca_eval_gpt4"
    folder.mkdir(parents=True)
    row = {"instruction": "Q ", "output_1": "long " * 9, "output_2": "short", "generator_1": "r", "generator_2": "m"}
    (folder / "annotations.json").write_text(json.dumps([{**row, "preference": 1}, {**row, "preference": 2}]))
    first, second = data.helpful_concise(tmp_path / "alpaca", {"m": [0, 1]})
    assert (first["labels"], first["source_models"]) == ({"helpful": 1, "concise": -1}, ["r", "m"])
    assert (second["labels"], second["chosen"][0]["content"]) == ({"helpful": 1, "concise": 1}, "short")
    models = tmp_path / "xs" / "model_completions"
    models.mkdir(parents=True)
    for model, text in (("x", "Sure."), ("y", "No.")):
        lines = f"id,type,prompt,completion\nv2-1,homonyms,P,{text}\nv2-2,contrast_homonyms,P2,{text}\n"
        (models / f"xstest_v2_completions_{model}.csv").write_text(lines)
    rows = list(data.helpful_harmless(tmp_path / "xs", [["v2-1", "x", "y"], ["v2-2", "y", "x"]]))
    assert [r["labels"] for r in rows] == [{"helpful": 1, "harmless": 0}, {"helpful": -1, "harmless": 1}]
    assert rows[1]["chosen"][0]["content"] == "No."


def test_no_prompt_selected_is_in_two_parts():
    selection = json.loads(data.SELECTION.read_text(encoding="utf-8"))
    parts = [{key for key, *_ in selection["helpful_harmless"][part]} for part in data.PARTS]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert set(selection["sha256"]) == {f"{d}_{p}" for d in data.DATA_SETS for p in data.PARTS}
