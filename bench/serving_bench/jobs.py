"""What clients ask, and what the right answer is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TOPICS = (
    "rain",
    "bread",
    "the moon",
    "a violin",
    "gravity",
    "winter",
    "a bicycle",
    "honey",
    "salt",
    "an echo",
    "the tide",
    "a mirror",
)


@dataclass(frozen=True)
class Job:
    """One request: what it asks for, and the text that answers it."""

    messages: tuple[dict[str, str], ...]
    weights: dict[str, float]
    strength: float
    seed: int
    tokens: int
    golden: str = ""
    plain: str = ""

    def body(self, model: str, *, guided: bool) -> dict[str, Any]:
        """Return the body of the request, streamed."""
        steer = {"guidance": {"weights": self.weights, "strength": self.strength}} if guided else {}
        return {
            "model": model if guided else f"{model}:plain",
            "messages": list(self.messages),
            "max_tokens": self.tokens,
            "temperature": 0.8,
            "seed": self.seed,
            "ignore_eos": True,
            "stream": True,
            **steer,
        }


def make_jobs(engine: Any, objectives: Sequence[str], count: int, tokens: int, seed: int = 0) -> list[Job]:
    """Return jobs with their answers, each written alone by the library."""
    rng = random.Random(seed)
    jobs: list[Job] = []
    for i, topic in zip(range(count), itertools.cycle(TOPICS), strict=False):
        share = round(rng.random(), 3)
        weights = dict(zip(objectives, (share, round(1 - share, 3)), strict=True))
        strength = round(rng.uniform(0.3, 2.0), 2)
        messages = ({"role": "user", "content": f"Tell me about {topic}, in {1 + i % 5} sentences."},)
        options: dict[str, Any] = {"seed": 1000 + i, "max_tokens": tokens, "temperature": 0.8, "ignore_eos": True}
        (guided,) = engine.generate(
            [list(messages)], guidance=[_guidance(weights, strength)], max_batch_size=1, **options
        )
        (plain,) = engine.generate([list(messages)], guidance=0, max_batch_size=1, **options)
        jobs.append(Job(messages, weights, strength, 1000 + i, tokens, guided.text, plain.text))
    return jobs


def _guidance(weights: dict[str, float], strength: float) -> Any:
    from trimtab.engine import Guidance

    return Guidance(weights=weights, strength=strength)
