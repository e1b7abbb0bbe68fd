"""A world small enough to enumerate: every response, a random base, a known reward, and a tabular reward model.

Letters: S prefixes, V vocabulary, N responses, T longest response. All tensors are float64, all logs in nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.rewards.guided_logprobs import decoded_reward
from trimtab.training.losses import preference_loss


@dataclass(frozen=True)
class Tree:
    """All responses over a vocabulary, as paths from the empty prefix.

    Attributes:
        vocabulary: V.
        prefixes: the S prefixes that have a next token.
        tokens: (N, T) long, the t-th token of each response (0 beyond its end).
        nodes: (N, T) long, the prefix that the t-th token follows (0 beyond the end).
        mask: (N, T) bool, where a response has a t-th token.
    """

    vocabulary: int
    prefixes: tuple[tuple[int, ...], ...]
    tokens: Tensor
    nodes: Tensor
    mask: Tensor

    @property
    def responses(self) -> list[tuple[int, ...]]:
        """The N responses as tuples of tokens."""
        return [tuple(row[keep].tolist()) for row, keep in zip(self.tokens, self.mask, strict=True)]


def make_tree(vocabulary: int, length: int, *, eos: int | None = None) -> Tree:
    """Enumerate every response of ``length`` tokens; with ``eos`` a response ends at that token, if it comes first."""
    responses: dict[tuple[int, ...], None] = {}
    for word in itertools.product(range(vocabulary), repeat=length):
        end = word.index(eos) + 1 if eos is not None and eos in word else length
        responses[word[:end]] = None
    prefixes = tuple(dict.fromkeys(word[:t] for word in responses for t in range(len(word))))
    index = {prefix: s for s, prefix in enumerate(prefixes)}
    tokens = torch.zeros(len(responses), length, dtype=torch.long)
    nodes, mask = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for n, word in enumerate(responses):
        for t, token in enumerate(word):
            tokens[n, t], nodes[n, t], mask[n, t] = token, index[word[:t]], True
    return Tree(vocabulary, prefixes, tokens, nodes, mask)


def sequence_logprobs(tree: Tree, next_token: Tensor) -> Tensor:
    """Return log π(y) of every response: (S, V) next-token log-probabilities → (N,)."""
    return (next_token[tree.nodes, tree.tokens] * tree.mask).sum(-1)


def next_token_logprobs(tree: Tree, sequence: Tensor) -> Tensor:
    """Return log π(v|s) of a distribution over responses: (N,) log-probabilities → (S, V)."""
    place = (tree.nodes * tree.vocabulary + tree.tokens)[tree.mask]
    mass = sequence.exp().unsqueeze(-1).expand_as(tree.mask)[tree.mask]
    through = torch.zeros(len(tree.prefixes) * tree.vocabulary, dtype=sequence.dtype).index_add(0, place, mass)
    return through.view(-1, tree.vocabulary).log().log_softmax(-1)


def random_base(tree: Tree, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Return a base that depends on the whole prefix: (S, V) log-probabilities."""
    logits = scale * torch.randn(len(tree.prefixes), tree.vocabulary, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def optimum(base: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Return log π* of KL-regularised RL, π*(y) ∝ π_b(y)·exp(r(y)/β): (N,), (N,) → (N,)."""
    return (base + reward / beta).log_softmax(0)


def decode(base: Tensor, arm: Tensor, weight: float) -> Tensor:
    """Return guided next-token log-probabilities, π_b·π_r^w normalised at EVERY step: (S, V), (S, V) → (S, V)."""
    return (base + weight * arm).log_softmax(-1)


def kl(p: Tensor, q: Tensor) -> float:
    """Return KL(p‖q) in nats of two (N,) vectors of log-probabilities."""
    return float((p.exp() * (p - q)).sum())


def preference_probabilities(reward: Tensor) -> Tensor:
    """Return Bradley–Terry's P[i beats j] = σ(r_i − r_j): (N,) → (N, N)."""
    return torch.sigmoid(reward.unsqueeze(1) - reward.unsqueeze(0))


def sampled_preferences(reward: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return how often i beat j in ``count`` comparisons of random pairs: (N,) → (N, N)."""
    n = len(reward)
    first = torch.randint(n, (count,), generator=generator)
    second = (first + torch.randint(1, n, (count,), generator=generator)) % n
    wins = torch.rand(count, generator=generator, dtype=torch.float64) < torch.sigmoid(reward[first] - reward[second])
    place = torch.where(wins, first * n + second, second * n + first)
    return torch.bincount(place, minlength=n * n).view(n, n).double()


def fit_arm(tree: Tree, preferences: Tensor, beta_r: float, steps: int = 2000) -> Tensor:
    """Train a table of next-token logits with GenARM's loss to convergence.

    Args:
        tree: the responses.
        preferences: (N, N), how much weight the comparison "i beats j" has (a probability or a count).
        beta_r: β_r of the loss.
        steps: most steps of L-BFGS.

    Returns:
        (S, V) next-token log-probabilities of the trained reward model.
    """
    weight = _shares(preferences)
    table = torch.zeros(len(tree.prefixes), tree.vocabulary, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        logp = sequence_logprobs(tree, table.log_softmax(-1))
        return (weight * preference_loss(logp.unsqueeze(1), logp.unsqueeze(0), beta=beta_r)).sum()

    _minimise(loss, table, steps)
    return table.detach().log_softmax(-1)


Basis = Callable[[float], Sequence[float]]
"""What a guide that is told its pull makes of it: M numbers, by which its M tables are added up."""


def fit_decode_aware(
    tree: Tree,
    preferences: Tensor,
    base: Tensor,
    beta_r: float,
    pulls: Sequence[float],
    basis: Basis,
    steps: int = 2000,
) -> Tensor:
    """Train tables of next-token logits with the decode-aware loss, the mean over pulls, to convergence.

    Args:
        tree: the responses.
        preferences: (N, N), as for :func:`fit_arm`.
        base: (S, V) next-token log-probabilities of the base.
        beta_r: β_r of the loss.
        pulls: the w with which the guide is decoded, equally often.
        basis: w → M numbers; one constant for a guide that is not told w.
        steps: most steps of L-BFGS.

    Returns:
        (M, S, V) logits; see :func:`at_pull`.
    """
    weight = _shares(preferences)
    tables = torch.zeros(len(basis(pulls[0])), *base.shape, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for w in pulls:
            logits = at_pull(tables, w, basis)
            h = decoded_reward(base[tree.nodes], logits[tree.nodes], tree.tokens, torch.tensor(w)).reward
            h = (h * tree.mask).sum(-1)
            total = total + (weight * preference_loss(h.unsqueeze(1), h.unsqueeze(0), beta=beta_r)).sum()
        return total / len(pulls)

    _minimise(loss, tables, steps)
    return tables.detach()


def at_pull(tables: Tensor, w: float, basis: Basis) -> Tensor:
    """Return a guide's next-token log-probabilities when it is told w: (M, S, V) → (S, V)."""
    return torch.tensordot(torch.tensor(basis(w), dtype=tables.dtype), tables, 1).log_softmax(-1)


def _shares(preferences: Tensor) -> Tensor:
    weight = preferences.clone().fill_diagonal_(0)
    return weight / weight.sum()


def _minimise(loss: Callable[[], Tensor], table: Tensor, steps: int) -> None:
    optimiser = torch.optim.LBFGS(
        [table],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=50,
        tolerance_grad=1e-9,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
