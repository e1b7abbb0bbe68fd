"""Speculation: hand-worked rules, the plain text for the coupled rule, the right distribution for both."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decoding.adjusting import Adjustments, adjusted
from trimtab.decoding.config import Sampling, make_sampling
from trimtab.decoding.sampling import choose, distribution, draw
from trimtab.decoding.speculation import UNIFORMS, Uniforms, propose, verify
from trimtab.errors import ConfigError
from trimtab.models.vocabulary import VocabularyMap

INF = math.inf
PLAIN = Sampling()
GREEDY = Sampling(temperature=0)
SAMPLINGS = [
    PLAIN,
    Sampling(temperature=0.6),
    Sampling(top_k=2),
    Sampling(top_p=0.7),
    Sampling(min_p=0.3),
    Sampling(repetition_penalty=1.8),
    Sampling(presence_penalty=1.5, frequency_penalty=-0.5, logit_bias={1: 0.7, 2: -100}),
    Sampling(repetition_penalty=0.7, frequency_penalty=0.9, min_tokens=3, stop_token_ids=(3,), temperature=0.8),
    Sampling(temperature=1.3, top_k=3, top_p=0.9, min_p=0.05, repetition_penalty=0.7),
]
IDS = [str(i) for i in range(len(SAMPLINGS))]


def _z(*rows):
    return torch.tensor(rows, dtype=torch.float64).log().float()


def _u(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# -- by hand --


def test_coupled_by_hand():
    z = _z([0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2])
    # u = 0.6 is in [0.5, 0.8): token 1; 0.95 is past 0.9: token 2; 0.3: token 0
    u = _u([0.6], [0.95], [0.3])
    assert verify(z, [[1, 2]], PLAIN, uniforms=u) == [[1, 2, 0]]
    assert verify(z, [[1, 1]], PLAIN, uniforms=u) == [[1, 2]]
    assert verify(z, [[0, 2]], PLAIN, uniforms=u) == [[1]]
    assert verify(z[:1], [[]], PLAIN, uniforms=u[:1]) == [[1]]


def _rejected(v, *, p=(0.5, 0.4, 0.1), q=(0.2, 0.2, 0.6), drafted=2, u=0.0):
    proposals = None if q is None else [torch.tensor([q])]
    z = _z(p, [0.0, 0.0, 1.0])
    return verify(z, [[drafted]], PLAIN, rule="rejection", uniforms=_u([u, v], [0.5, 0.5]), proposals=proposals)


def test_rejection_by_hand():
    # p/q of token 2 is 0.1/0.6 = 1/6
    assert _rejected(0.166) == [[2, 2]]
    # (p - q)+ = 0.3, 0.2, 0, that is 0.6 and 0.4; what v leaves over, (v - 1/6)/(5/6), draws from it
    assert _rejected(1 / 6 + 5 / 6 * 0.59) == [[0]]
    assert _rejected(1 / 6 + 5 / 6 * 0.61) == [[1]]
    # a draft that p likes better than q does is always kept
    assert _rejected(0.9999, drafted=0) == [[0, 2]]


def test_rejection_of_a_certain_draft_by_hand():
    # kept with p = 0.4; else tokens 0 and 2 in proportion 0.5 : 0.1
    assert _rejected(0.39, q=None, drafted=1) == [[1, 2]]
    assert _rejected(0.4 + 0.6 * 0.83, q=None, drafted=1) == [[0]]
    assert _rejected(0.4 + 0.6 * 0.84, q=None, drafted=1) == [[2]]


def test_the_token_after_the_last_draft_is_drawn_with_u():
    z = _z([1.0, 0.0], [0.3, 0.7])
    assert verify(z, [[0]], PLAIN, rule="rejection", uniforms=_u([0.9, 0.9], [0.2, 0.9])) == [[0, 0]]
    assert verify(z, [[0]], PLAIN, rule="rejection", uniforms=_u([0.9, 0.9], [0.4, 0.1])) == [[0, 1]]


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_greedy_keeps_the_likeliest(rule):
    z = _z([0.2, 0.8], [0.6, 0.4], [0.3, 0.7])
    assert verify(z, [[1, 0]], GREEDY, rule=rule) == [[1, 0, 1]]
    assert verify(z, [[1, 1]], GREEDY, rule=rule) == [[1, 0]]
    assert verify(z, [[0, 0]], GREEDY, rule=rule) == [[1]]


def test_a_drafted_token_is_penalised_at_the_next_position():
    z = torch.tensor([[2.0, 1.9], [2.0, 1.9]])
    for sampling in (Sampling(temperature=0, repetition_penalty=2), Sampling(temperature=0, presence_penalty=0.2)):
        adjustments = Adjustments(sampling, 2)
        assert verify(z, [[0]], sampling, adjustments=[adjustments]) == [[0, 1]]  # 2.0/2 < 1.9, 2.0 - 0.2 < 1.9
        # the caller's own record changes only when it takes the tokens
        assert verify(z[:1], [[]], sampling, adjustments=[adjustments]) == [[0]]


# -- supports that differ --


def test_tokens_that_the_target_forbids_are_never_kept():
    z = _z([0.0, 0.5, 0.5], [1.0, 0.0, 0.0])
    proposals = [torch.tensor([[1.0, 0.0, 0.0]])]
    for u in torch.linspace(0, 0.999, 20).tolist():
        assert verify(z, [[0]], PLAIN, uniforms=_u([u], [u]))[0][0] in (1, 2)
        for given_q in (proposals, None):
            written = verify(z, [[0]], PLAIN, rule="rejection", uniforms=_u([0.0, u], [u, u]), proposals=given_q)
            assert len(written[0]) == 1 and written[0][0] in (1, 2)


def test_a_draft_that_neither_side_can_write_is_dropped():
    z = _z([0.0, 1.0], [1.0, 0.0])
    q = [torch.tensor([[0.0, 1.0]])]
    assert verify(z, [[0]], PLAIN, rule="rejection", uniforms=_u([0.0, 0.0], [0.0, 0.0]), proposals=q) == [[1]]


def test_tokens_the_small_model_does_not_know_are_never_drafted_and_still_written():
    known = VocabularyMap(4, 3, torch.tensor([0, -1, 2, 1]))
    small = torch.tensor([[0.1, 0.2, 0.3]])
    n = 400
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, q = propose(known.gather(small).expand(n, 4), PLAIN, uniforms=u)
    assert set(tokens.tolist()) == {0, 2, 3}
    assert q is not None and q[0, 1] == 0
    # ids 1 and 2 of the small model are the base's 3 and 2
    assert torch.allclose(q[0, [0, 3, 2]], small.softmax(-1)[0])
    v = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.zeros(2 * n, 4)
    numbers = torch.stack([u, v], -1).repeat_interleave(2, 0)
    drafts = [[token] for token in tokens.tolist()]
    rows = [row.unsqueeze(0) for row in q]
    written = verify(z, drafts, PLAIN, rule="rejection", uniforms=numbers, proposals=rows)
    first = torch.bincount(torch.tensor([w[0] for w in written]), minlength=4) / n
    assert (first - 0.25).abs().max() < 0.07  # 3.2 standard deviations of a proportion of 400


def test_no_residual_left_but_by_rounding():
    p = torch.tensor([0.25, 0.75])
    proposals = [(p * (1 + 1e-6)).unsqueeze(0)]  # more than p everywhere, as rounding may have it
    u = _u([0.5, 1 - 1e-12], [0.5, 0.5])
    for token in (0, 1):
        written = verify(
            _z(p.tolist(), p.tolist()), [[token]], PLAIN, rule="rejection", uniforms=u, proposals=proposals
        )
        assert all(t in (0, 1) for t in written[0])


# -- how often drafts are kept --


@pytest.mark.parametrize("sampling", SAMPLINGS[:5], ids=IDS[:5])
def test_rejection_keeps_the_overlap(sampling):
    z = torch.tensor([[0.3, -1.0, 1.2, 0.1, -0.4]])
    q = torch.tensor([0.3, 0.1, 0.2, 0.4, 0.0])
    p = distribution(z, sampling)[0]
    n = 1000
    u = torch.stack([torch.zeros(n), (torch.arange(n) + 0.5) / n], -1).double().repeat_interleave(2, 0)
    rate = 0.0
    for token in range(4):
        written = verify(
            z.expand(2 * n, 5),
            [[token]] * n,
            sampling,
            rule="rejection",
            uniforms=u,
            proposals=[q.unsqueeze(0)] * n,
        )
        rate += float(q[token]) * sum(len(w) == 2 for w in written) / n
    assert rate == pytest.approx(float(torch.minimum(p, q).sum()), abs=2e-3)


def test_coupled_keeps_where_the_intervals_of_a_token_overlap():
    z, other = _z([0.5, 0.3, 0.2]), _z([0.4, 0.2, 0.4])
    # token 0: [0, .5) and [0, .4) share .4; 1: [.5, .8) and [.4, .6) share .1; 2: [.8, 1) and [.6, 1) share .2
    n = 1000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drafted, _ = propose(other.expand(n, 3), PLAIN, uniforms=u)
    drafts = [[token] for token in drafted.tolist()]
    written = verify(z.expand(2 * n, 3), drafts, PLAIN, uniforms=u.repeat_interleave(2).unsqueeze(-1))
    assert sum(len(w) == 2 for w in written) / n == pytest.approx(0.7, abs=2e-3)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=IDS)
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_a_drafter_that_is_the_target_is_always_right(rule, sampling):
    world = World(5, seed=3)
    requests = [Request(world, world, sampling, rule, seed, lengths=[3]) for seed in range(30)]
    for request in requests:
        request.round()
        assert len(request.tokens) == 4


# -- a world in which every context has its own logits --


class World:
    """Random next-token logits for every context, the same each time they are asked for."""

    def __init__(self, width, *, seed, scale=1.5):
        self.width, self.seed, self.scale = width, seed, scale
        self._known = {}

    def __call__(self, context):
        key = tuple(context)
        if key not in self._known:
            number = self.seed
            for token in key:
                number = number * (self.width + 1) + token + 1
            generator = torch.Generator().manual_seed(number)
            self._known[key] = torch.randn(self.width, generator=generator) * self.scale
        return self._known[key]


class Request:
    """One request as an engine would run it: drafts, verifies, takes."""

    def __init__(self, target, drafter, sampling, rule, seed, *, lengths, prompt=()):
        self.target, self.drafter, self.sampling, self.rule = target, drafter, sampling, rule
        self.uniforms = Uniforms(torch.Generator().manual_seed(seed), rule)
        self.lengths, self.tokens, self.prompt = itertools.cycle(lengths), [], list(prompt)
        self.adjustments = Adjustments(sampling, target.width, prompt=self.prompt, ends=ENDS)

    def draft(self):
        m = next(self.lengths)
        u = self.uniforms.ahead(m + 1)
        drafted, rows = [], []
        for i in range(m):
            context = [*self.tokens, *drafted]
            z = adjusted(self.drafter(context).unsqueeze(0), [(self.adjustments, drafted)])
            token, q = propose(z, self.sampling, uniforms=u[i : i + 1, 0])
            drafted.append(int(token))
            rows.append(q)
        q = torch.cat(rows) if rows and rows[0] is not None else None
        return drafted, q, u

    def round(self):
        drafted, q, u = self.draft()
        z = torch.stack([self.target([*self.tokens, *drafted[:i]]) for i in range(len(drafted) + 1)])
        uniforms = None if self.sampling.is_greedy else u
        options = {"uniforms": uniforms, "adjustments": [self.adjustments], "proposals": [q]}
        (new,) = verify(z, [drafted], self.sampling, rule=self.rule, **options)
        self.tokens += new
        for token in new:
            self.adjustments.add(token)
        self.uniforms.written(len(new))

    def write(self, count):
        while len(self.tokens) < count:
            self.round()
        return self.tokens[:count]


ENDS = (0,)


def _by_hand(z, sampling, prompt, answer):
    """Logits as they are drawn from, one token after the other, by the order that the options name."""
    z = z.tolist()
    for v in range(len(z)):
        if v in prompt or v in answer:
            z[v] = z[v] * sampling.repetition_penalty if z[v] < 0 else z[v] / sampling.repetition_penalty
        z[v] -= sampling.presence_penalty * (v in answer) + sampling.frequency_penalty * answer.count(v)
        z[v] += sampling.logit_bias.get(v, 0)
        if len(answer) < sampling.min_tokens and v in (*ENDS, *sampling.stop_token_ids):
            z[v] = -math.inf
    return torch.tensor([z])


def _plain(world, sampling, seed, count, prompt=()):
    generator, tokens = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        u = None if sampling.is_greedy else torch.rand(1, generator=generator, dtype=torch.float64)
        tokens.append(int(choose(_by_hand(world(tokens), sampling, prompt, tokens), sampling, uniforms=u)))
    return tokens


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    other=st.integers(0, 3),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    sampling=st.sampled_from([*SAMPLINGS, GREEDY, *(make_sampling(s, temperature=0) for s in SAMPLINGS[5:])]),
)
def test_coupled_writes_what_plain_decoding_writes(seed, other, lengths, sampling):
    world, prompt = World(6, seed=seed), [1, 4]
    drafter = World(6, seed=seed + other)  # other = 0: the drafter is the target
    written = Request(world, drafter, sampling, "coupled", seed, lengths=lengths, prompt=prompt).write(8)
    assert written == _plain(world, sampling, seed, 8, prompt)


def test_greedy_rejection_writes_what_plain_decoding_writes():
    world, sampling = World(6, seed=5), Sampling(temperature=0, repetition_penalty=1.2)
    written = Request(world, World(6, seed=6), sampling, "rejection", 0, lengths=[3, 1]).write(10)
    assert written == _plain(world, sampling, 0, 10)


def _joint(world, sampling, count, prompt=()):
    """Return each sequence's probability, one token's after the other."""
    found = {(): 1.0}
    for _ in range(count):
        longer = {}
        for context, chance in found.items():
            z = _by_hand(world(context), sampling, prompt, context)
            for token, p in enumerate(distribution(z, sampling)[0].tolist()):
                if p > 0:
                    longer[(*context, token)] = chance * p
        found = longer
    return found


def _chi_square(counts, expected, n):
    """Return χ² as standard deviations from its mean; cells that expect fewer than 5 are put together."""
    assert set(counts) <= set(expected), "a sequence of probability 0 was written"
    cells = [(counts.get(s, 0), n * p) for s, p in expected.items()]
    large = [cell for cell in cells if cell[1] >= 5]
    small = [cell for cell in cells if cell[1] < 5]
    if small:
        large.append((sum(c for c, _ in small), max(sum(e for _, e in small), 1e-9)))
    chi = sum((c - e) ** 2 / e for c, e in large)
    freedom = max(len(large) - 1, 1)
    return (chi - freedom) / math.sqrt(2 * freedom)


class Crowd:
    """Many requests with the same prompt, drafted and verified together; drafts have lengths 0, 1, 2, ... mixed."""

    def __init__(self, rule, sampling, n, *, certain, prompt):
        self.world, self.drafter = World(4, seed=11), World(4, seed=12)
        self.rule, self.sampling, self.certain, self.prompt = rule, sampling, certain, prompt
        generator = torch.Generator().manual_seed(99)
        self.u = torch.rand(n, 16, UNIFORMS[rule], generator=generator, dtype=torch.float64)
        self.tokens = [[] for _ in range(n)]
        self.adjustments = [Adjustments(sampling, 4, prompt=prompt, ends=ENDS) for _ in range(n)]

    def draft(self, going, lengths):
        drafts, chances = {r: [] for r in going}, {r: [] for r in going}
        for i in range(max(lengths.values())):
            here = [r for r in going if lengths[r] > i]
            if self.certain:
                for r in here:
                    drafts[r].append((len(self.tokens[r]) + i) % 4)
                continue
            contexts = [[*self.tokens[r], *drafts[r]] for r in here]
            z = torch.stack([self.drafter(context) for context in contexts])
            u = torch.stack([self.u[r, len(context), 0] for r, context in zip(here, contexts, strict=True)])
            z = adjusted(z, [(self.adjustments[r], drafts[r]) for r in here])
            drawn, q = propose(z, self.sampling, uniforms=u)
            for r, token, row in zip(here, drawn.tolist(), q, strict=True):
                drafts[r].append(token)
                chances[r].append(row)
        return [drafts[r] for r in going], [torch.stack(chances[r]) if chances[r] else None for r in going]

    def round(self, going):
        # A length may follow from the text so far, and must not from numbers of tokens to come.
        lengths = {r: (r + 2 * len(self.tokens[r])) % 4 for r in going}
        drafts, chances = self.draft(going, lengths)
        rows = [(r, [*self.tokens[r], *d[:i]]) for r, d in zip(going, drafts, strict=True) for i in range(len(d) + 1)]
        new = verify(
            torch.stack([self.world(context) for _, context in rows]),
            drafts,
            self.sampling,
            rule=self.rule,
            uniforms=torch.stack([self.u[r, len(context)] for r, context in rows]),
            adjustments=[self.adjustments[r] for r in going],
            proposals=chances,
        )
        for r, tokens in zip(going, new, strict=True):
            self.tokens[r] += tokens
            for token in tokens:
                self.adjustments[r].add(token)


def _written(rule, sampling, n, count, *, certain=False, prompt=()):
    """Return how often each sequence of so many first tokens was written, and its true probability."""
    crowd = Crowd(rule, sampling, n, certain=certain, prompt=prompt)
    while going := [r for r, tokens in enumerate(crowd.tokens) if len(tokens) < count]:
        crowd.round(going)
    counts = {}
    for tokens in crowd.tokens:
        key = tuple(tokens[:count])
        counts[key] = counts.get(key, 0) + 1
    return counts, _joint(crowd.world, sampling, count, prompt)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=IDS)
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_sequences_have_the_target_s_distribution(rule, sampling):
    n = 1600
    counts, expected = _written(rule, sampling, n, 3, prompt=[2])
    assert _chi_square(counts, expected, n) < 4


def test_certain_drafts_have_the_target_s_distribution():
    for rule in ("coupled", "rejection"):
        n = 1600
        counts, expected = _written(rule, SAMPLINGS[-1], n, 3, certain=True)
        assert _chi_square(counts, expected, n) < 4


def test_the_chi_square_notices_a_wrong_distribution():
    n = 1600
    counts, _ = _written("rejection", PLAIN, n, 3)
    assert _chi_square(counts, _joint(World(4, seed=11), Sampling(temperature=0.8), 3), n) > 10


# -- batches --


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    sampling=st.sampled_from([*SAMPLINGS, GREEDY]),
    rule=st.sampled_from(["coupled", "rejection"]),
)
def test_neighbours_and_order_of_work_do_not_matter(seed, lengths, sampling, rule):
    generator = torch.Generator().manual_seed(seed)
    width, rows = 6, [m + 1 for m in lengths]
    z = torch.randn(sum(rows), width, generator=generator)
    drafts = [torch.randint(width, (m,), generator=generator).tolist() for m in lengths]
    chances = [torch.rand(m, width, generator=generator).softmax(-1) if m % 2 else None for m in lengths]
    u = torch.rand(sum(rows), 1 if rule == "coupled" else 2, generator=generator, dtype=torch.float64)
    every = [Adjustments(sampling, width, prompt=[b % width], ends=ENDS) for b in range(len(lengths))]
    together = {
        at_once: verify(
            z, drafts, sampling, rule=rule, uniforms=u, adjustments=every, proposals=chances, at_once=at_once
        )
        for at_once in (False, True)
    }
    alone = []
    for b, (part, number) in enumerate(zip(z.split(rows), u.split(rows), strict=True)):
        alone += verify(
            part, drafts[b : b + 1], sampling, rule=rule, uniforms=number, adjustments=every[b : b + 1],
            proposals=chances[b : b + 1],
        )  # fmt: skip
    assert together[False] == together[True] == alone
    for tokens, draft in zip(alone, drafts, strict=True):
        assert 1 <= len(tokens) <= len(draft) + 1
        assert tokens[:-1] == draft[: len(tokens) - 1]


# -- numbers --


def test_uniforms_are_those_of_plain_decoding_and_stay_until_written():
    plain = [
        torch.rand(1, generator=g, dtype=torch.float64) for g in [torch.Generator().manual_seed(7)] for _ in range(6)
    ]
    uniforms = Uniforms(torch.Generator().manual_seed(7))
    assert torch.equal(uniforms.ahead(4), torch.stack(plain[:4]))
    assert torch.equal(uniforms.ahead(2), torch.stack(plain[:2]))
    uniforms.written(3)
    assert torch.equal(uniforms.ahead(3), torch.stack(plain[3:6]))
    assert Uniforms(torch.Generator(), "rejection").ahead(3).shape == (3, 2)


def test_numbers_that_were_never_looked_at_can_be_passed():
    uniforms = Uniforms(torch.Generator().manual_seed(7))
    uniforms.written(2)
    again = Uniforms(torch.Generator().manual_seed(7))
    assert torch.equal(uniforms.ahead(1), again.ahead(3)[2:])


def test_a_greedy_drafter_is_certain():
    tokens, q = propose(torch.tensor([[0.1, 3.0], [2.0, 1.0]]), GREEDY)
    assert tokens.tolist() == [1, 0] and q is None


def test_propose_draws_as_the_target_would():
    z, u = torch.randn(3, 5), torch.rand(3, dtype=torch.float64)
    sampling = SAMPLINGS[-1]
    tokens, q = propose(z, sampling, uniforms=u)
    assert torch.equal(tokens, choose(z, sampling, uniforms=u))
    assert torch.equal(tokens, draw(q, u))


def test_what_does_not_fit_is_refused():
    z = torch.zeros(3, 4)
    with pytest.raises(ConfigError, match="need 2 rows of logits and there are 3"):
        verify(z, [[1]], GREEDY)
    with pytest.raises(ConfigError, match=r"needs \(3, 2\) uniform numbers and got \(3, 1\)"):
        verify(z, [[1, 2]], PLAIN, rule="rejection", uniforms=torch.zeros(3, 1))
    with pytest.raises(ConfigError, match="'coupled' or 'rejection'"):
        verify(z, [[1, 2]], PLAIN, rule="typical", uniforms=torch.zeros(3, 1))  # type: ignore[arg-type]
