"""A tiny world per architecture: a base, two LoRA guides on it, and the same models in float64 for the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import tiny_guides
from trimtab.decoding.oracle import OracleGuide, greedy
from trimtab.engine import Engine, load
from trimtab.models import Base, encode_prompt, load_base

CHAT = [{"role": "user", "content": "hello"}]
TEMPLATE_B = "{% for m in messages %}Q: {{ m['content'] }}\n{% endfor %}A:"


@dataclass
class World:
    base: Base
    folders: dict[str, Path]
    models: dict[str, Any]  # name → float64 model
    templates: dict[str, str | None]
    engine: Engine

    def prompt_ids(self, name: str, prompt: Any) -> list[int]:
        return encode_prompt(self.base.tokenizer, prompt, chat_template=self.templates[name])

    def oracle_guides(self, prompt: Any, weights: dict[str, float]) -> list[OracleGuide]:
        return [OracleGuide(self.models[n], self.prompt_ids(n, prompt), w) for n, w in weights.items()]

    def greedy(self, prompt: Any, weights: dict[str, float], max_tokens: int, **options: Any) -> list[int]:
        return greedy(
            self.models["base"],
            self.prompt_ids("base", prompt),
            self.oracle_guides(prompt, weights),
            max_tokens=max_tokens,
            stop_ids=frozenset({2}),
            **options,
        )


def make_world(kind: str, root: Path) -> World:
    model = tiny.make_llama(vocab_size=320) if kind == "llama" else tiny.make_gpt2()
    folder = tiny.save_base(root / kind, model, tiny.make_tokenizer())
    base = load_base(str(folder), dtype="float32")
    loras = {"a": tiny_guides.random_lora(base.model, seed=1), "b": tiny_guides.random_lora(base.model, seed=2, r=2)}
    templates: dict[str, str | None] = {"base": None, "a": None, "b": TEMPLATE_B}
    folders = {}
    for name, lora in loras.items():
        changes = {"chat_template": templates[name]} if templates[name] else {}
        manifest = tiny_guides.manifest_for(base, f"objective-{name}", **changes)
        tiny_guides.save_guide(root / f"{kind}-guides" / name, lora, manifest)
        folders[name] = root / f"{kind}-guides" / name
    models = {"base": load_base(str(folder), dtype="float32").model.double()}
    models.update({name: lora.double() for name, lora in loras.items()})
    return World(base, folders, models, templates, load(folder, list(folders.values()), dtype="float32"))
