"""How many drafts each acceptance rule keeps, on the distributions of real models.

Text is sampled from the guided target, target and drafter read it again, and at each position the chance that a draft
is kept is computed exactly from the two distributions (no draws, so little noise):

- maximal: Σ_v min(p, q), what the rule ``rejection`` keeps and the most that any rule can;
- shared u: the rule ``coupled``, one uniform number through both inverse distributions in the order of token ids;
- sorted: the same with each side's tokens in the order of its own probabilities;
- gumbel: Gumbel noise shared by both sides (arXiv 2408.07978), Σ_i 1 / Σ_j max(p_j/p_i, q_j/q_i).

Run ``python studies/weak_to_strong/acceptance.py GUIDE`` with a guide trained on the 0.5B model of ``models.py``.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trimtab
from trimtab.decoding.config import Sampling
from trimtab.decoding.rules import combine
from trimtab.decoding.sampling import distribution
from trimtab.models import encode_prompt, load_base

PROMPTS = Path(__file__).resolve().parent.parent / "data" / "eval_prompts.jsonl.gz"
SETTINGS = (
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
)
SPAN = 48
"""Tokens an answer may have."""


def maximal(p: Tensor, q: Tensor) -> Tensor:
    return torch.minimum(p, q).sum(-1)


def shared_u(p: Tensor, q: Tensor) -> Tensor:
    high_p, high_q = p.cumsum(-1), q.cumsum(-1)
    return (torch.minimum(high_p, high_q) - torch.maximum(high_p - p, high_q - q)).clamp_min(0).sum(-1)


def by_probability(p: Tensor, q: Tensor) -> Tensor:
    def highs(x: Tensor) -> Tensor:
        ordered, index = x.sort(dim=-1, descending=True, stable=True)
        return torch.zeros_like(x).scatter(-1, index, ordered.cumsum(-1))

    high_p, high_q = highs(p), highs(q)
    return (torch.minimum(high_p, high_q) - torch.maximum(high_p - p, high_q - q)).clamp_min(0).sum(-1)


def gumbel(p: Tensor, q: Tensor) -> Tensor:
    """Σ_i 1/Σ_j max(p_j/p_i, q_j/q_i), by sorting the tokens by p/q."""
    both = (p > 0) & (q > 0)
    ratio = torch.where(both, p / q, torch.where(p > 0, torch.inf, torch.zeros_like(p)))
    index = ratio.argsort(dim=-1)
    p, q, both = p.gather(-1, index), q.gather(-1, index), both.gather(-1, index)
    below = q.cumsum(-1)  # tokens whose p/q is at most this one's: max is q_j/q_i
    above = p.sum(-1, keepdim=True) - p.cumsum(-1)
    total = torch.where(both, above / p + below / q, torch.inf)
    return (1 / total).sum(-1)


RULES = {"maximal": maximal, "shared u": shared_u, "sorted": by_probability, "gumbel": gumbel}


def logits(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return (T, V) float32 logits of the positions of an answer."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[*prompt, *answer]]), logits_to_keep=len(answer) + 1).logits
    return out[0, :-1].float()


def report(name: str, setting: dict[str, float], pairs: list[tuple[Tensor, Tensor]]) -> None:
    rates: dict[str, list[Tensor]] = {rule: [] for rule in RULES}
    same: list[Tensor] = []
    for target, draft in pairs:
        p, q = (distribution(z, Sampling(**setting)).double() for z in (target, draft))  # type: ignore[arg-type]
        for rule, rate in RULES.items():
            rates[rule].append(rate(p, q))
        same.append((target.argmax(-1) == draft.argmax(-1)).double())
    what = " ".join(f"{key}={value:g}" for key, value in setting.items())
    means = " ".join(f"{rule} {torch.cat(rate).mean():.3f}" for rule, rate in rates.items())
    print(
        f"{name:32} {what:38} {means} | same argmax {torch.cat(same).mean():.3f} n={torch.cat(same).numel()}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("guide", type=Path)
    parser.add_argument("--base", default=None, help="the large base (default: the 1.5B model of models.py)")
    parser.add_argument("--small", default=None, help="what the guide was trained on (default: the 0.5B model)")
    parser.add_argument("--prompts", type=int, default=12)
    options = parser.parse_args()
    if options.base is None or options.small is None:
        import models

        options.base = options.base or str(models.folder("qwen2.5-coder-1.5b"))
        options.small = options.small or str(models.folder("qwen2.5-coder-0.5b"))
    from peft import PeftModel

    with gzip.open(PROMPTS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    prompts = [row["prompt"] for row in rows if row["source"] == "alpaca_eval"][: options.prompts]
    engine = trimtab.load(options.base, {"guide": options.guide})
    loaded = load_base(options.small)
    small: Any = PeftModel.from_pretrained(loaded.model, options.guide).eval()
    with torch.no_grad():
        for setting in SETTINGS:
            made = engine.generate(prompts, max_tokens=SPAN, seed=0, **setting)
            one = [torch.ones(1)]
            found: dict[str, list[tuple[Tensor, Tensor]]] = {}
            for generation in made:
                prompt = list(encode_prompt(engine.base.tokenizer, prompts[generation.prompt_index]))
                answer = generation.token_ids
                large = logits(engine.base.model, prompt, answer)
                reward = logits(small, prompt, answer)
                with small.disable_adapter():
                    weak = logits(small, prompt, answer)
                width = min(large.shape[-1], weak.shape[-1])
                large, reward, weak = large[:, :width], reward[:, :width], weak[:, :width]
                target = combine(large, [reward], one)
                found.setdefault("small x guide for base x guide", []).append((target, combine(weak, [reward], one)))
                found.setdefault("small for base x guide", []).append((target, weak))
                found.setdefault("guide for base x guide", []).append((target, reward))
                found.setdefault("small for base (off its text)", []).append((large, weak))
            for name, pairs in found.items():
                report(name, setting, pairs)


if __name__ == "__main__":
    main()
