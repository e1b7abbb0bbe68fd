"""What the engine returns: answers and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Watch:
    """What is noted of each token of an answer while it is written, or read.

    Attributes:
        top: how many of the likeliest tokens are noted beside the chosen one.
        base: whether the base's own log-probabilities are noted too.
        objectives: whether every guide and every objective alone scores the token, those of weight 0 included; they
            then read along in rows of the same forward.
    """

    top: int = 0
    base: bool = False
    objectives: bool = False


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What base, guides and their combination think of one token; log-probabilities in nats.

    They are those of the models: before penalties, biases, temperature and the cuts of sampling.

    Attributes:
        token_id: the token.
        log_prob: of the guided distribution.
        top: (token id, log-probability) of the likeliest tokens under the guided distribution, likeliest first.
        base_log_prob: log π_b; ``None`` if not asked for.
        base_top: as ``top``, under the base.
        kl: KL(guided ‖ base) of the distribution that the token was drawn from; ``None`` if not asked for.
        guides: guide name → its score at its preference in force, if asked for: log π_r, or log π − log π_ref of a
            policy.
        objectives: objective (GUIDE/OBJECTIVE where several guides have it) → the guide's score at that objective
            alone, if asked for. A plain guide that rewards a mixture of objectives has none of them alone.
        policies: names of guides whose score is a log-ratio already, which policies' are.
        policy_objectives: likewise of objectives.
    """

    token_id: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
    base_log_prob: float | None = None
    base_top: tuple[tuple[int, float], ...] = ()
    kl: float | None = None
    guides: Mapping[str, float] = field(default_factory=dict[str, float])
    objectives: Mapping[str, float] = field(default_factory=dict[str, float])
    policies: frozenset[str] = frozenset()
    policy_objectives: frozenset[str] = frozenset()

    def log_ratio(self, *, objective: str | None = None, guide: str | None = None) -> float | None:
        """Return how much better an objective alone, or a guide, likes the token than an untrained model, in nats.

        That is log π_r − log π_b, and of a policy its score, log π − log π_ref. ``None`` where it was not noted.
        """
        if objective is not None:
            value, is_ratio = self.objectives.get(objective), objective in self.policy_objectives
        else:
            value, is_ratio = self.guides.get(guide or ""), guide in self.policies
        if value is None or is_ratio:
            return value
        return None if self.base_log_prob is None else value - self.base_log_prob


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer, without special tokens and without the stop string that ended it.
        token_ids: every token that was chosen, the end-of-answer token included.
        finish_reason: ``"stop"`` (end-of-answer token or stop string) or ``"length"`` (max_tokens, or context full).
        stopped_by: the stop string that ended it, or ``None``.
        prompt_index: which prompt of the call it answers.
        sample_index: which of its prompt's n answers it is.
        prompt_tokens: tokens of the base's prompt.
        seed: what its random numbers were drawn with; ``None`` if greedy.
        weights: weight of each guide as applied at the end of the answer, strength included.
        preferences: for each guide that takes a preference, objective → α, likewise.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stopped_by: str | None
    prompt_index: int
    sample_index: int
    prompt_tokens: int
    seed: int | None
    weights: Mapping[str, float]
    preferences: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Score:
    """How likely base, guides and their combination find one given answer; all numbers in nats.

    Attributes:
        token_ids: the answer's T tokens, the end-of-answer token last unless left out.
        tokens: their texts.
        base: T log-probabilities log π_b(y_t | x, y_<t).
        guides: guide name → T scores s_t, the reward of each token, at the guide's preference where it takes one:
            log π_r(y_t | x, y_<t), or log π − log π_ref of a policy, π_ref the model that it was trained from.
        contributions: guide name → T values w·s_t, what the guide adds to log π_b of that token; base and contributions
            sum to z', of which ``combined`` is the log-softmax.
        combined: T log-probabilities of the guided distribution.
        rewards: guide name → Σ_t s_t, the guide's reward of the whole answer.
        weights: guide name → w, strength included.
        preferences: for each guide that takes a preference, objective → α.
        objectives: guide name → objective → T scores of that guide at the one objective, if asked for.
    """

    token_ids: list[int]
    tokens: list[str]
    base: list[float]
    guides: Mapping[str, list[float]]
    contributions: Mapping[str, list[float]]
    combined: list[float]
    rewards: Mapping[str, float]
    weights: Mapping[str, float]
    preferences: Mapping[str, Mapping[str, float]]
    objectives: Mapping[str, Mapping[str, list[float]]]

    @property
    def base_log_prob(self) -> float:
        """Log-probability of the whole answer under the base, nats."""
        return sum(self.base)

    @property
    def combined_log_prob(self) -> float:
        """Log-probability of the whole answer under guided decoding, nats."""
        return sum(self.combined)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            **asdict(self),
            "base_log_prob": self.base_log_prob,
            "combined_log_prob": self.combined_log_prob,
        }
