"""Which token owes what to which objective: base, guides and objectives read one text, token by token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from trimtab.engine.answers import applied
from trimtab.engine.guidance import resolve
from trimtab.engine.readings import Reading
from trimtab.engine.results import TokenScores, Watch
from trimtab.models import is_ids
from trimtab.models.token_text import TokenTexts

if TYPE_CHECKING:
    from trimtab.engine import Engine
    from trimtab.engine.guidance import GuidanceLike
    from trimtab.models import Text


@dataclass(frozen=True)
class Attribution:
    r"""A text's tokens, with what each objective adds to or takes from each; log-probabilities in nats.

    Attributes:
        prompt: what the text answers.
        response: the text; ``None`` if it was given as token ids.
        tokens: text of each of the T tokens; of one that is not whole characters its bytes, as ``bytes:\xe2``.
        scores: what was noted of each.
        names: token id → its text, of every token that is named as an alternative.
        weights: guide name → w as applied, strength included.
        preferences: for each guide that takes a preference, objective → α.
        mixed: plain guides that reward a mixture of objectives.
    """

    prompt: Text
    response: Text | None
    tokens: Sequence[str]
    scores: Sequence[TokenScores]
    names: Mapping[int, str]
    weights: Mapping[str, float]
    preferences: Mapping[str, Mapping[str, float]]
    mixed: Sequence[str] = ()

    @property
    def rows(self) -> dict[str, list[float]]:
        """Objective → T log-ratios log π_r − log π_base (of a policy log π − log π_ref), in nats.

        A plain guide that rewards a mixture of objectives has none of them alone and stands under its own name. Tokens
        that a guide does not know, and those after them, are NaN.
        """
        names = dict.fromkeys(name for score in self.scores for name in score.objectives)
        rows = {name: [_number(score.log_ratio(objective=name)) for score in self.scores] for name in names}
        return rows | {name: [_number(score.log_ratio(guide=name)) for score in self.scores] for name in self.mixed}

    @property
    def totals(self) -> dict[str, float]:
        """Row → Σ_t of its log-ratios; NaN where a token is missing."""
        return {name: sum(values) for name, values in self.rows.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values; ``tokens`` as the server's ``guidance.tokens``."""
        totals: dict[str, Any] = {
            "logprob": sum(score.log_prob for score in self.scores),
            "base_logprob": sum(score.base_log_prob or 0.0 for score in self.scores),
            "kl": sum(score.kl or 0.0 for score in self.scores),
            "log_ratio": {name: None if math.isnan(value) else value for name, value in self.totals.items()},
        }
        return {
            "prompt": self.prompt,
            "response": self.response,
            "weights": dict(self.weights),
            "preferences": {name: dict(value) for name, value in self.preferences.items()},
            "tokens": [self._token(text, score) for text, score in zip(self.tokens, self.scores, strict=True)],
            "totals": totals,
        }

    def _token(self, text: str, score: TokenScores) -> dict[str, Any]:
        return {
            "token": text,
            "token_id": score.token_id,
            "logprob": score.log_prob,
            "base_logprob": score.base_log_prob,
            "kl": score.kl,
            "guides": dict(score.guides),
            "objectives": {
                name: {
                    "logprob": None if name in score.policy_objectives else value,
                    "log_ratio": score.log_ratio(objective=name),
                }
                for name, value in score.objectives.items()
            },
            "top": self._named(score.top),
            "base_top": self._named(score.base_top),
        }

    def _named(self, top: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"token": self.names[token], "token_id": token, "logprob": value} for token, value in top]


def attribute(
    engine: Engine,
    texts: Sequence[tuple[Text, Text | Sequence[int]]],
    *,
    guidance: GuidanceLike = None,
    top: int = 0,
    include_eos: bool = True,
    max_batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Attribution]:
    """Say of every token of given texts what base, guides and objectives think of it.

    Args:
        engine: base and guides.
        texts: (prompt, answer) pairs; an answer as text, turns or token ids.
        guidance: as in :meth:`Engine.generate`; guides of weight 0 read along too.
        top: how many of the likeliest tokens before (base) and after guidance are named at each place.
        include_eos: whether the token that ends an answer counts as one of its tokens.
        max_batch_size: most texts read at a time.
        progress: called with (texts done, texts in all).

    Raises:
        DataError: an answer is empty.
        PromptTooLongError: a text does not fit a context.
        GuidanceError: unknown guide, NaN weight and the like.
    """
    watch = Watch(top=top, base=True, objectives=True)
    guides = list(engine.guides.values())
    said = applied(guides, resolve(guidance, guides))
    mixed = [guide.name for guide in guides if not guide.conditioned and len(guide.objectives) > 1]
    readings = [
        engine.reading(prompt, answer, guidance=guidance, include_eos=include_eos, watch=watch)
        for prompt, answer in texts
    ]
    for done, _ in enumerate(read_each(engine, readings, max_batch_size=max_batch_size), start=1):
        if progress:
            progress(done, len(readings))
    names = TokenTexts(engine.base.tokenizer)
    found: list[Attribution] = []
    for (prompt, answer), reading in zip(texts, readings, strict=True):
        scores = list(reading.noted)
        named = {token for score in scores for token, _ in (*score.top, *score.base_top)}
        found.append(
            Attribution(
                prompt,
                None if is_ids(answer) else cast("Text", answer),
                [names.text(score.token_id) for score in scores],
                scores,
                {token: names.text(token) for token in named},
                mixed=mixed,
                **said,
            )
        )
    return found


def read_each(engine: Engine, readings: Iterable[Reading], *, max_batch_size: int = 16) -> Iterator[Reading]:
    """Let an engine read given texts, several at a time, and yield each when it is finished, not in order.

    Args:
        engine: what reads.
        readings: from :meth:`Engine.reading`, not begun; taken as there is room for them.
        max_batch_size: most texts read at a time; the next begins when one is finished.

    Raises:
        TrimtabError: what ended one of them before its time.
    """
    _, driver = engine.parts
    queue, going = iter(readings), list[Reading]()
    try:
        while True:
            for reading in itertools.islice(queue, max_batch_size - len(going)):
                driver.add(reading, tokens=len(reading.answer))
                going.append(reading)
            if not going:
                return
            driver.drive(going, until=any)
            finished = [reading for reading in going if reading.finished]
            going = [reading for reading in going if not reading.finished]
            yield from finished
    finally:
        driver.forget(going)


def _number(ratio: float | None) -> float:
    return math.nan if ratio is None else ratio
