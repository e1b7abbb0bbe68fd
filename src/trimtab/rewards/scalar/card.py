"""The model card of a scalar reward model."""

from __future__ import annotations

from typing import Any

import yaml

from trimtab.rewards.card import hub_id
from trimtab.rewards.scalar.manifest import ScalarManifest

_ROWS = (
    ("guide", "this model"),
    ("length", "length alone"),
    ("matched_guide", "this model, answers of like length"),
)


def render(manifest: ScalarManifest) -> str:
    """Return the card's text: YAML metadata, then Markdown."""
    header = yaml.safe_dump(_metadata(manifest), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join([
        f"# Reward model: {_line(manifest.objective.name)}",
        f"{_what(manifest)} It gives a prompt with an answer one number, in nats of preference: P(y₁ ≻ y₂ | x) = "
        "σ(r(x, y₁) − r(x, y₂)) (Bradley–Terry). Only differences between answers to one prompt mean anything.",
        _line(manifest.objective.description),
        "## Use",
        "As a scorer of `trimtab evaluate`: `--scorers reward:FOLDER`. It must not judge a guide that was trained on "
        "the same pairs, and trimtab refuses to let it. In plain transformers:",
        _snippet(manifest),
        "## Held-out accuracy",
        _results(manifest),
        "## Training",
        _training(manifest),
        "## Limits",
        "It knows what its labels knew and shares their errors; answers far from those it was trained on, guided ones "
        "among them, may get high rewards for no good reason. Compare it with other scorers, and at like length.",
    ]).replace("\n\n\n\n", "\n\n") + "\n"  # fmt: skip


def _metadata(manifest: ScalarManifest) -> dict[str, Any]:
    full, base = manifest.adapter == "full", hub_id(manifest.base.id)
    content: dict[str, Any] = {
        "library_name": "transformers" if full else "peft",
        "pipeline_tag": "text-classification",
    }
    if base:
        content |= {"base_model": base, "base_model_relation": "finetune" if full else "adapter"}
    if manifest.license:
        content["license"] = manifest.license
    return content | {"tags": ["trimtab", "reward-model", "bradley-terry", "preference"]}


def _what(manifest: ScalarManifest) -> str:
    kind = "A whole model" if manifest.adapter == "full" else "A LoRA with a scalar head"
    return f"{kind} on `{_line(manifest.base.id)}` ({_line(manifest.base.architecture)})."


def _snippet(manifest: ScalarManifest) -> str:
    pad = manifest.pad_token_id
    if manifest.adapter == "full":
        load = 'model = AutoModelForSequenceClassification.from_pretrained(".").eval()  # "." is this folder'
    else:
        load = (
            f"base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1, pad_token_id={pad})\n"
            'model = PeftModel.from_pretrained(base, ".").eval()  # "." is this folder'
        )
    peft = "" if manifest.adapter == "full" else "from peft import PeftModel\n"
    if manifest.segments:
        text = "inputs = tokenizer(prompt, answer, return_tensors='pt')"
    else:
        end = f"tokenizer.convert_ids_to_tokens({manifest.end_token_id})"
        template = "tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)"
        prompt = template if manifest.chat_template else "prompt"
        special = "False" if manifest.chat_template else "True"
        text = (
            f"text = {prompt} + answer + {end}\n"
            f"inputs = tokenizer(text, add_special_tokens={special}, return_tensors='pt')"
        )
    return (
        f"```python\n{peft}from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained(".")\n{load}\n{text}\nreward = model(**inputs).logits[0, 0]\n```'
    )


def _results(manifest: ScalarManifest) -> str:
    found = manifest.metrics.get("held_out")
    if not found:
        return "Not measured: train with `--eval-data`."
    rows = [f"| {label} | {_accuracy(found[key])} |" for key, label in _ROWS if found.get(key)]
    note = f"Length alone means: the {found['length_rule']} answer wins."
    return "| | accuracy on held-out pairs [95 %] |\n| --- | --- |\n" + "\n".join(rows) + f"\n\n{note}"


def _training(manifest: ScalarManifest) -> str:
    data = manifest.data
    what = "Not recorded."
    if data is not None:
        files = ", ".join(f"`{_line(name)}`" for name in data.files)
        by = f", labelled by {_line(data.labelled_by)}" if data.labelled_by else ""
        what = f"{data.comparisons} pairs from {files}{by} (SHA-256 `{data.sha256[:16]}…`)."
    settings = "\n".join(f"- {key}: {_line(value)}" for key, value in manifest.training.items())
    return f"{what}\n\n{settings}"


def _accuracy(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}], n = {value['n']}"


def _line(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("`", "'")
