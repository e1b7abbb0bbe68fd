"""What guided decoding reaches, on a world small enough to enumerate: the numbers of docs/theory.md.

Run ``python studies/theorem.py``; it takes about two minutes on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import toy

SEEDS = range(5)
SETTINGS = ((1.0, 1.0), (0.5, 1.0), (0.5, 0.25))
"""Pairs of β (of the optimum) and β_r (of the training loss); guided decoding uses w = β_r/β."""

PULLS = (0.5, 1.0, 2.0, 4.0)
"""The w that a guide for several strengths is trained for, at β_r = 1: each asks for the optimum at β = 1/w."""

UNSEEN = (0.7, 1.4, 2.8)
"""Pulls between those, which no guide was trained for."""


@dataclass(frozen=True)
class World:
    """A tree with a base and a reward.

    Attributes:
        tree: every response.
        base: (S, V) next-token log-probabilities of the base.
        reward: (N,) trajectory reward.
    """

    tree: toy.Tree
    base: Tensor
    reward: Tensor

    @property
    def base_sequences(self) -> Tensor:
        """(N,) log π_b(y)."""
        return toy.sequence_logprobs(self.tree, self.base)


def random_world(seed: int, *, eos: bool = False, vocabulary: int = 4, length: int = 4) -> World:
    """Return a base that depends on the whole prefix, a reward that depends on the whole response."""
    generator = torch.Generator().manual_seed(seed)
    tree = toy.make_tree(vocabulary, length, eos=0 if eos else None)
    base = toy.random_base(tree, generator)
    return World(tree, base, torch.randn(len(tree.tokens), generator=generator, dtype=torch.float64))


def additive_world(seed: int, *, base_sees_prefix: bool, vocabulary: int = 4) -> World:
    """Fixed length and a reward Σ_t f_t(y_t); the base's next token depends on the position only, unless asked."""
    generator = torch.Generator().manual_seed(seed)
    tree = toy.make_tree(vocabulary, 4)
    positions = torch.tensor([len(prefix) for prefix in tree.prefixes])
    base = toy.random_base(tree, generator)
    if not base_sees_prefix:
        base = base[:4][positions]  # one distribution a position
    f = torch.randn(4, vocabulary, generator=generator, dtype=torch.float64)
    return World(tree, base, f[torch.arange(4), tree.tokens].sum(-1))


def uniform_world(seed: int, *, vocabulary: int = 4) -> World:
    """Fixed length, any reward, and a base that finds every token equally likely."""
    world = random_world(seed, vocabulary=vocabulary)
    return World(world.tree, torch.zeros_like(world.base).log_softmax(-1), world.reward)


def expressiveness(world: World, beta: float) -> float:
    """(i) Largest error of a guided next-token probability with π_r(v|s) ∝ (π*(v|s)/π_b(v|s))^β and w = 1/β."""
    target = toy.next_token_logprobs(world.tree, toy.optimum(world.base_sequences, world.reward, beta))
    arm = (beta * (target - world.base)).log_softmax(-1)
    return float((toy.decode(world.base, arm, 1 / beta).exp() - target.exp()).abs().max())


@dataclass(frozen=True)
class Outcome:
    """What a converged fit reaches.

    Attributes:
        reward_error: largest error of β_r·log π_r against r, constants removed.
        sequence_kl: KL(π*‖π_b·π_r^w normalised over whole responses), nats.
        gap: KL(π_dec‖π*) of decoding token by token, nats.
        reverse_gap: KL(π*‖π_dec), nats.
        reward_base: E[r] under the base.
        reward_decoded: E[r] under token-by-token decoding.
        reward_optimum: E[r] under π*.
        objective_lost: J(π*) − J(π_dec) with J(π) = E[r] − β·KL(π‖π_b).
    """

    reward_error: float
    sequence_kl: float
    gap: float
    reverse_gap: float
    reward_base: float
    reward_decoded: float
    reward_optimum: float
    objective_lost: float


def train(world: World, beta_r: float) -> Tensor:
    """Return the reward model that a converged fit on exact Bradley–Terry probabilities gives, (S, V)."""
    return toy.fit_arm(world.tree, toy.preference_probabilities(world.reward), beta_r)


def constant(w: float) -> Sequence[float]:
    """One table for every pull: a plain guide."""
    return (1.0,)


def affine(w: float) -> Sequence[float]:
    """Two tables, one of them weighted by log w: what one more input does to a linear model."""
    return (1.0, math.log(w))


def piecewise(w: float) -> Sequence[float]:
    """A table for each of PULLS; between two of them, both, linear in log w."""
    step = math.log(PULLS[1] / PULLS[0])  # the same between all of them
    return [max(0.0, 1 - abs(math.log(w / pull)) / step) for pull in PULLS]


def train_decode_aware(world: World, beta_r: float, pulls: Sequence[float], basis: toy.Basis = constant) -> Tensor:
    """Return the tables that a converged decode-aware fit on exact probabilities gives, (M, S, V)."""
    preferences = toy.preference_probabilities(world.reward)
    return toy.fit_decode_aware(world.tree, preferences, world.base, beta_r, pulls, basis)


def compare(world: World, arm: Tensor, beta: float, beta_r: float) -> Outcome:
    """(ii) and (iii): compare a trained reward model, used with w = β_r/β, with π*."""
    tree, base, reward = world.tree, world.base_sequences, world.reward
    weight = beta_r / beta
    logp = toy.sequence_logprobs(tree, arm)
    best = toy.optimum(base, reward, beta)
    whole = (base + weight * logp).log_softmax(0)
    decoded = toy.sequence_logprobs(tree, toy.decode(world.base, arm, weight))
    difference = beta_r * logp - reward

    def objective(policy: Tensor) -> float:
        return float((policy.exp() * reward).sum()) - beta * toy.kl(policy, base)

    return Outcome(
        reward_error=float((difference - difference.mean()).abs().max()),
        sequence_kl=toy.kl(best, whole),
        gap=toy.kl(decoded, best),
        reverse_gap=toy.kl(best, decoded),
        reward_base=float((base.exp() * reward).sum()),
        reward_decoded=float((decoded.exp() * reward).sum()),
        reward_optimum=float((best.exp() * reward).sum()),
        objective_lost=objective(best) - objective(decoded),
    )


def sampled(count: int, seed: int = 0) -> Outcome:
    """(ii) with ``count`` drawn comparisons in place of exact probabilities: 27 responses, β = β_r = 1."""
    generator = torch.Generator().manual_seed(seed)
    tree = toy.make_tree(3, 3)
    reward = torch.randn(len(tree.tokens), generator=generator, dtype=torch.float64)
    world = World(tree, toy.random_base(tree, generator), reward)
    return compare(world, toy.fit_arm(tree, toy.sampled_preferences(reward, count, generator), 1.0), 1.0, 1.0)


def _range(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def print_decode_aware(worlds: dict[str, list[World]]) -> None:
    """(iv) decode-aware training, for one pull and for several."""
    print("\n(iv) guide trained to convergence with the decode-aware loss: KL(π_dec‖π*)")
    for name, members in worlds.items():
        for beta, beta_r in SETTINGS:
            w = beta_r / beta
            guides = [toy.at_pull(train_decode_aware(m, beta_r, [w]), w, constant) for m in members]
            found = [compare(m, guide, beta, beta_r) for m, guide in zip(members, guides, strict=True)]
            decoded, best = ([getattr(o, f"reward_{k}") for o in found] for k in ("decoded", "optimum"))
            off = max(abs(d - b) for d, b in zip(decoded, best, strict=True))
            print(f"  {name:14} β={beta:<4g} β_r={beta_r:<5g} w={w:<4g} {_range([o.gap for o in found]):24}", end="")
            print(f" mean reward {sum(decoded) / len(found):.2f}, off the optimum's by at most {off:.1g}")
    print("\n(iv) one guide at several pulls, β_r = 1, so w asks for the optimum at β = 1/w: KL(π_dec‖π*)")
    for name, members in worlds.items():
        print(f"  {name:28}" + "".join(f"  w={w:<18g}" for w in (*PULLS, *UNSEEN)))
        rows = {f"decode-aware at w={pull:g}": (constant, (pull,)) for pull in PULLS}
        rows |= {"every w, not told": (constant, PULLS), "every w, affine in log w": (affine, PULLS)}
        rows |= {"every w, a table each": (piecewise, PULLS)}
        arms = [train(m, 1.0) for m in members]
        _print_pulls("GenARM", members, lambda i, w, arms=arms: arms[i])
        for label, (basis, pulls) in rows.items():
            if basis is piecewise:  # at each of PULLS one table counts, so each is a fit of its own
                fits = [torch.cat([train_decode_aware(m, 1.0, [w]) for w in pulls]) for m in members]
            else:
                fits = [train_decode_aware(m, 1.0, pulls, basis) for m in members]
            _print_pulls(label, members, lambda i, w, fits=fits, basis=basis: toy.at_pull(fits[i], w, basis))


def _print_pulls(label: str, members: list[World], guide: Callable[[int, float], Tensor]) -> None:
    gaps = [[compare(m, guide(i, w), 1 / w, 1.0).gap for i, m in enumerate(members)] for w in (*PULLS, *UNSEEN)]
    print(f"    {label:26}" + "".join(f"  {_range(found):20}" for found in gaps))


def main() -> None:
    """Print every number of docs/theory.md."""
    worlds = {
        "fixed length": [random_world(s) for s in SEEDS],
        "with EOS": [random_world(s, eos=True) for s in SEEDS],
    }
    print(f"{len(SEEDS)} seeds each; 4 tokens, at most 4 steps; ranges are over seeds\n")
    print("(i) largest error of a guided next-token probability, exact ARM")
    for name, members in worlds.items():
        for beta in (1.0, 0.5, 0.1):
            print(f"  {name:14} β={beta:<5} {_range([expressiveness(w, beta) for w in members])}")
    print("\n(ii) and (iii): ARM trained to convergence on exact Bradley–Terry probabilities")
    for name, members in worlds.items():
        arms = {beta_r: [train(w, beta_r) for w in members] for beta_r in sorted({b for _, b in SETTINGS})}
        for beta, beta_r in SETTINGS:
            found = [compare(w, arm, beta, beta_r) for w, arm in zip(members, arms[beta_r], strict=True)]
            print(f"  {name}, β={beta:g}, β_r={beta_r:g}, w={beta_r / beta:g}")
            print(f"    (ii)  largest error of the reward        {_range([o.reward_error for o in found])}")
            print(f"    (ii)  KL of the normalised product to π*  {_range([o.sequence_kl for o in found])}")
            print(f"    (iii) KL(π_dec‖π*)                       {_range([o.gap for o in found])}")
            print(f"    (iii) KL(π*‖π_dec)                       {_range([o.reverse_gap for o in found])}")
            means = [sum(getattr(o, f"reward_{k}") for o in found) / len(found) for k in ("base", "decoded", "optimum")]
            print("    (iii) mean reward: base {:.2f}, decoded {:.2f}, optimum {:.2f}".format(*means))
    print("\n(iii) where the gap closes, KL(π_dec‖π*)")
    special = {
        "additive reward, base sees position only": [additive_world(s, base_sees_prefix=False) for s in SEEDS],
        "additive reward, base sees the prefix": [additive_world(s, base_sees_prefix=True) for s in SEEDS],
        "any reward, uniform base": [uniform_world(s) for s in SEEDS],
    }
    for name, members in special.items():
        arms_of = [train(w, 1.0) for w in members]
        for beta in (1.0, 0.5):
            gaps = [compare(w, arm, beta, 1.0).gap for w, arm in zip(members, arms_of, strict=True)]
            print(f"  {name:42} w={1 / beta:g}  {_range(gaps)}")
    print("\n(ii) with drawn comparisons: KL of the normalised product to π*, 27 responses, 5 seeds")
    for count in (10**3, 10**4, 10**5, 10**6):
        print(f"  {count:>9,} comparisons  {_range([sampled(count, s).sequence_kl for s in SEEDS])}")
    print_decode_aware(worlds)


if __name__ == "__main__":
    main()
