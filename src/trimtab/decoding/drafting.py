"""Drafting: what to propose without a model, and how many tokens to propose at all. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimtab.errors import ConfigError


class NGramDrafter:
    """Drafts by looking the text up in itself: what followed the last tokens when they were seen before?

    This is prompt lookup decoding (an idea of A. Saxena's, 2023): no model, so a draft costs nothing, and it pays
    where answers repeat their prompt or themselves (summaries, edits, code). The longest suffix of at most ``longest``
    tokens that was seen before decides, and of its places the latest. Such a draft is certain: q is 1 for each token.

    Each token costs O(longest) to add and a lookup O(longest + drafted), however long the text is.

    Args:
        tokens: the text so far: the base's prompt and the answer's beginning, base ids.
        longest: most tokens of the suffix that is looked up.
        shortest: fewest.
    """

    def __init__(self, tokens: Iterable[int] = (), *, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ConfigError(f"An n-gram drafter needs 1 ≤ shortest ≤ longest, and got {shortest} and {longest}.")
        self._sizes = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Add tokens that were written (never drafts that may still be dropped)."""
        for token in tokens:
            end = len(self._tokens)
            # A suffix is entered only now that something follows it, so that a lookup cannot find itself.
            for size in self._sizes:
                if size <= end:
                    self._follows[tuple(self._tokens[end - size :])] = end
            self._tokens.append(token)

    def draft(self, count: int) -> list[int]:
        """Return up to ``count`` tokens that may come next: all of them where a suffix is found, else none.

        A copy that reaches the end of the text goes on in what it has copied, as a repetition would.
        """
        if count < 1:
            return []
        end = len(self._tokens)
        for size in self._sizes:
            place = self._follows.get(tuple(self._tokens[end - size :])) if size <= end else None
            if place is not None:
                found = self._tokens[place : place + count]
                period = end - place
                while len(found) < count:
                    found.append(found[len(found) - period])
                return found
        return []


@dataclass(frozen=True)
class Costs:
    """What speculation costs, in units of one plain decode step.

    Under the rule ``rejection`` a text depends on how much was drafted, so costs that are measured by the clock make
    texts vary between runs; take them from sizes instead (:meth:`of_reads`). Under ``coupled`` only speed can vary.

    Attributes:
        draft: of drafting one token.
        verify: of verifying m drafts, by m from 0 (a plain step, so 1) up; beyond the last one costs go on in a line.
        round: what a round with drafts costs beyond those.
    """

    draft: float
    verify: Sequence[float] = (1.0, 1.0)
    round: float = 0.0

    def __post_init__(self) -> None:
        if len(self.verify) < 2 or min(*self.verify, self.draft + 1) <= 0 or self.draft < 0 or self.round < 0:
            raise ConfigError("Costs of speculation are for 0 and 1 drafts at least, and none is negative.")

    @classmethod
    def of_reads(cls, target_bytes: float, draft_bytes: float, *, position: float = 0.0) -> Costs:
        """Return the costs where reading weights is what takes time.

        Args:
            target_bytes: read in one step of base and guides.
            draft_bytes: read in one step of the drafter; 0 for n-gram lookup.
            position: what one more position adds to a step of the target, as a share of it.
        """
        return cls(draft_bytes / target_bytes, (1.0, 1.0 + position))

    def of(self, drafted: int) -> float:
        """Return the cost of a round that drafts so many tokens."""
        if drafted == 0:
            return self.verify[0]
        last = len(self.verify) - 1
        beyond = max(0, drafted - last) * (self.verify[last] - self.verify[last - 1])
        return self.round + drafted * self.draft + self.verify[min(drafted, last)] + beyond


def expected_tokens(acceptance: float, drafted: int) -> float:
    """Return the tokens that a round writes on average, (1 - a^(m+1)) / (1 - a) (arXiv 2211.17192, equation 1).

    Args:
        acceptance: a, the chance that a draft is kept, given that all before it are.
        drafted: m.
    """
    if acceptance >= 1:
        return drafted + 1.0
    return (1 - acceptance ** (drafted + 1)) / (1 - acceptance)


def best_length(acceptance: float, costs: Costs, most: int) -> int:
    """Return the m from 0 to ``most`` that writes most tokens for its cost; the shortest of equals, so 0 on a tie."""
    return max(range(most + 1), key=lambda m: expected_tokens(acceptance, m) / costs.of(m))


class DraftLength:
    """How many tokens to draft next, for one request.

    The chance a that a draft is kept is estimated from the request's own rounds, older ones counting less, as the mean
    of a Beta distribution that starts at ``start``. The length is the one that writes most tokens for its cost. Where
    that is 0 drafting is off, and every ``probe`` tokens one token is drafted to see whether it would pay by now:
    while such drafts are kept the next token is probed too, and each failure doubles the wait (up to 16 times).

    The length follows from the tokens of the request alone, never from the clock or from other requests, so a text
    under the rule ``rejection`` stays the same in any company.

    Args:
        costs: of drafting and verifying.
        most: most tokens to draft; 0 turns drafting off for good.
        start: a before anything is known; it counts like ``prior`` drafts.
        prior: weight of ``start``.
        memory: what a past draft's weight is multiplied by at each round with drafts.
        probe: tokens between probes at first.
    """

    def __init__(
        self,
        costs: Costs,
        *,
        most: int = 8,
        start: float = 0.7,
        prior: float = 2.0,
        memory: float = 0.9,
        probe: int = 32,
    ) -> None:
        if not (most >= 0 and 0 < start < 1 and prior > 0 and 0 < memory <= 1 and probe >= 1):
            raise ConfigError(
                "A draft length needs most ≥ 0, 0 < start < 1, prior > 0, 0 < memory ≤ 1 and probe ≥ 1, and got "
                f"{most}, {start}, {prior}, {memory} and {probe}."
            )
        self._costs, self._most, self._memory = costs, most, memory
        self._prior = (start * prior, prior)
        self._kept = self._tried = 0.0
        self._first_wait = self._wait = self._until_probe = probe
        self._best = best_length(start, costs, most)

    @property
    def acceptance(self) -> float:
        """The chance that a draft is kept, as estimated now."""
        kept, tried = self._prior
        return (kept + self._kept) / (tried + self._tried)

    @property
    def speedup(self) -> float:
        """Tokens for the cost of a plain step that are expected of the length chosen now; 1 where drafting is off."""
        return expected_tokens(self.acceptance, self._best) / self._costs.of(self._best) * self._costs.of(0)

    def next(self) -> int:
        """Return how many tokens to draft now."""
        if self._best == 0 and self._most and self._until_probe <= 0:
            return 1
        return self._best

    def update(self, drafted: int, kept: int) -> None:
        """Learn from a round.

        Args:
            drafted: tokens that were drafted, which may be fewer than :meth:`next` asked for.
            kept: how many of them stayed.
        """
        if drafted == 0:
            self._until_probe -= 1
            return
        is_probe = self._best == 0
        # Drafts after the first dropped one say nothing, so they are not tried.
        self._kept = self._memory * self._kept + kept
        self._tried = self._memory * self._tried + min(kept + 1, drafted)
        self._best = best_length(self.acceptance, self._costs, self._most)
        if self._best:
            self._wait = self._until_probe = self._first_wait
        elif not is_probe or kept == 0:
            self._wait = min(2 * self._wait, 16 * self._first_wait) if is_probe else self._wait
            self._until_probe = self._wait
