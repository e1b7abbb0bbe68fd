"""Lossless speculation: which drafted tokens the guided distribution keeps. Pure functions on logits.

A drafter proposes m tokens, one forward of base and guides gives the combined logits z' at all m + 1 positions, and
:func:`verify` writes between 1 and m + 1 tokens from them. With p_t the distribution that plain decoding would draw
token t from and q_t the drafter's, there are two exact rules:

``coupled``
    The token at a position is always plain decoding's own: the inverse cumulative distribution of p_t at the
    request's uniform number u_t. The drafter draws from q_t with the same u_t, so the two often agree, and a draft is
    kept where they do. Whatever is drafted, the text for a seed is that of plain decoding, token for token. Sharing
    random numbers so that two sides draw the same token without telling each other their distributions is called
    coupling without communication, and what it gives here drafter-invariant speculative decoding (Daliri, Musco and
    Suresh, arXiv 2408.07978; they couple by Gumbel noise, this by one number through both inverse distributions).

``rejection``
    Leviathan et al. (arXiv 2211.17192) and Chen et al. (arXiv 2302.01318): keep x ~ q_t with probability
    min(1, p_t(x)/q_t(x)), else draw from the residual (p_t - q_t)_+ / Σ(p_t - q_t)_+. It keeps Σ_v min(p_t, q_t) of
    the drafts, the most that any rule can, and the text has the right distribution, but which text a seed gives
    depends on the drafts.

Where sampling is greedy both are the same: a draft is kept if it is the likeliest token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from trimtab.decoding.adjusting import Adjustments, adjusted
from trimtab.decoding.config import Sampling
from trimtab.decoding.sampling import choose, distribution, draw
from trimtab.errors import ConfigError

Rule = Literal["coupled", "rejection"]

UNIFORMS: dict[str, int] = {"coupled": 1, "rejection": 2}
"""Uniform numbers that belong to one position of an answer: u, which tokens are drawn with, and for ``rejection`` v,
which decides whether a draft is kept and, where not, draws from the residual."""

_Position = tuple[int, int]
"""Request b and how many of its drafted tokens come before."""


class Uniforms:
    """The random numbers of one request, by position in its answer, so that drafter and target read the same ones.

    They come from the request's own generator in order, as many as :data:`UNIFORMS` says for a position, and stay
    until the position is written: a position that was drafted and dropped is drafted again with the same numbers.
    That changes no probability, because what decides that a draft is dropped are numbers of earlier positions.

    Args:
        generator: the request's own.
        rule: which rule they are for.
    """

    def __init__(self, generator: torch.Generator, rule: Rule = "coupled") -> None:
        self._generator = generator
        self._each = UNIFORMS[rule]
        self._waiting: list[Tensor] = []

    def ahead(self, count: int) -> Tensor:
        """Return the numbers of the next ``count`` positions, (count, 1 or 2) float64 in [0, 1)."""
        while len(self._waiting) < count:
            # One call a position: how a generator fills a longer tensor may differ from repeated short ones.
            self._waiting.append(torch.rand(self._each, generator=self._generator, dtype=torch.float64))
        return torch.stack(self._waiting[:count])

    def written(self, count: int) -> None:
        """Drop the numbers of ``count`` positions, which have their tokens now."""
        self.ahead(count)
        del self._waiting[:count]


def propose(z: Tensor, sampling: Sampling, *, uniforms: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Draw one drafted token a row, the same way as the target will.

    Args:
        z: (B, V) the drafter's combined logits by the BASE's token ids (``VocabularyMap.gather`` maps the scores of a
            smaller model and gives -inf to tokens that it does not know, so q is 0 there), adjusted as the target's are
            (:func:`adjusted`, with the tokens drafted so far).
        sampling: the requests' own; another one is lossless too, but fewer drafts are kept.
        uniforms: (B,) float64, u of the position that is drafted; needed unless greedy.

    Returns:
        (B,) long tokens, and the (B, V) probabilities q that they were drawn with; ``None`` where greedy (each token
        is then certain).
    """
    if sampling.is_greedy or uniforms is None:
        return choose(z, sampling), None
    q = distribution(z, sampling)
    return draw(q, uniforms), q


def verify(
    z: Tensor,
    drafts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    rule: Rule = "coupled",
    uniforms: Tensor | None = None,
    adjustments: Sequence[Adjustments | None] | None = None,
    proposals: Sequence[Tensor | None] | None = None,
    at_once: bool | None = None,
) -> list[list[int]]:
    """Return the tokens each of B requests writes: the drafts that are kept, and one token more.

    Args:
        z: (Σ_b (m_b + 1), V) float32 combined logits, request after request; row i of a request is the position after
            i of its drafted tokens.
        drafts: the m_b drafted tokens of each request, base ids; m_b may differ and may be 0.
        sampling: one config for all B requests.
        rule: ``coupled`` or ``rejection``.
        uniforms: (Σ_b (m_b + 1), 1 or 2) float64 in [0, 1), rows as in ``z`` (:meth:`Uniforms.ahead`); needed unless
            greedy.
        adjustments: of each request, as of before its drafts, which are counted in as the positions advance.
        proposals: for ``rejection``, (m_b, V) probabilities that each request's drafts were drawn with; ``None`` for
            one whose drafts are certain (n-gram lookup, greedy drafters).
        at_once: ``False`` goes through the positions one after the other and a request leaves at its first dropped
            draft, so the work is that of plain decoding for the tokens written; ``True`` does all positions together,
            because asking a GPU for each answer costs more than the work it saves. Default: by where ``z`` is.

    Returns:
        B lists of between 1 and m_b + 1 tokens; all but the last of each are drafts that were kept.

    Raises:
        ConfigError: an unknown rule, or numbers of rows that do not fit the drafts.
    """
    first = _first_rows(drafts)
    _check(z, first[-1], sampling, rule, uniforms)

    def decide(positions: Sequence[_Position]) -> list[int]:
        rows = torch.tensor([first[b] + i for b, i in positions], device=z.device)
        part = z.index_select(0, rows)
        if adjustments is not None:
            part = adjusted(part, [(adjustments[b], drafts[b][:i]) for b, i in positions])
        if sampling.is_greedy or uniforms is None:
            return choose(part, sampling).tolist()
        u = uniforms.to(z.device).index_select(0, rows)
        if rule == "coupled":
            return choose(part, sampling, uniforms=u[:, 0]).tolist()
        p = distribution(part, sampling)
        tokens = [drafts[b][i] if i < len(drafts[b]) else -1 for b, i in positions]
        q = [_proposal(proposals, b, i) for b, i in positions]
        return _rejection(p, tokens, q, u).tolist()

    return _walk(drafts, decide, at_once=z.device.type != "cpu" if at_once is None else at_once)


def _walk(
    drafts: Sequence[Sequence[int]], decide: Callable[[Sequence[_Position]], list[int]], *, at_once: bool
) -> list[list[int]]:
    """Go along the drafts of all requests together, each until the token decided is not the one drafted."""
    written: list[list[int]] = [[] for _ in drafts]
    found: dict[_Position, int] = {}
    if at_once:
        positions = [(b, i) for b, draft in enumerate(drafts) for i in range(len(draft) + 1)]
        found = dict(zip(positions, decide(positions), strict=True))
    going, i = list(range(len(drafts))), 0
    while going:
        here = [(b, i) for b in going]
        tokens = [found[position] for position in here] if at_once else decide(here)
        for b, token in zip(going, tokens, strict=True):
            written[b].append(token)
        going = [b for b in going if i < len(drafts[b]) and written[b][i] == drafts[b][i]]
        i += 1
    return written


def _rejection(p: Tensor, drafted: Sequence[int], q: Sequence[Tensor | None], uniforms: Tensor) -> Tensor:
    """Return the token of each position under the rejection rule.

    A dropped draft x has p(x) < q(x), so the residual never gives x again: the token equals the draft exactly where
    the draft was kept.

    Args:
        p: (N, V) probabilities of plain decoding.
        drafted: N tokens; -1 where there is no draft, and the token is drawn from p with u.
        q: N times (V,) probabilities the drafter drew with; ``None``: the draft was certain.
        uniforms: (N, 2) float64, u and v.
    """
    x = torch.tensor(drafted, device=p.device)
    p_x = p.gather(-1, x.clamp_min(0).unsqueeze(-1)).squeeze(-1).to(torch.float64)
    q_x = torch.stack([p.new_ones(()) if row is None else row[token] for token, row in zip(drafted, q, strict=True)])
    # 0/0 is a draft that neither side can write: it is dropped, like every token that p forbids.
    kept = torch.where(x < 0, 0.0, (p_x / q_x).nan_to_num(0.0, posinf=1.0).clamp_max(1.0))
    u, v = uniforms.unbind(-1)
    redrawn = ((x < 0) | (v >= kept)).nonzero().squeeze(-1)
    # Given that v is not below the chance of keeping, what it leaves over is uniform again and draws the residual.
    left = torch.where(x < 0, u, (v - kept) / (1 - kept))
    residual = p.index_select(0, redrawn)
    for row, n in enumerate(redrawn.tolist()):
        chances = q[n]
        if drafted[n] >= 0 and chances is None:
            residual[row, drafted[n]] = 0
        elif drafted[n] >= 0 and chances is not None:
            residual[row] -= chances
    residual = residual.clamp_min(0)
    # Where p and q differ by rounding only there may be no residual at all; p itself is then as right.
    nothing = residual.sum(dim=-1, keepdim=True) <= 0
    residual = torch.where(nothing, p.index_select(0, redrawn), residual)
    return x.index_copy(0, redrawn, draw(residual, left.index_select(0, redrawn)))


def _proposal(proposals: Sequence[Tensor | None] | None, b: int, i: int) -> Tensor | None:
    rows = proposals[b] if proposals is not None else None
    return rows[i] if rows is not None and i < rows.shape[0] else None


def _first_rows(drafts: Sequence[Sequence[int]]) -> list[int]:
    """Return where each request's rows begin, and how many there are in all."""
    first = [0]
    for draft in drafts:
        first.append(first[-1] + len(draft) + 1)
    return first


def _check(z: Tensor, rows: int, sampling: Sampling, rule: str, uniforms: Tensor | None) -> None:
    if rule not in UNIFORMS:
        raise ConfigError(f"Unknown rule {rule!r}: drafts are verified by {' or '.join(map(repr, UNIFORMS))}.")
    if z.shape[0] != rows:
        raise ConfigError(f"The drafts need {rows} rows of logits and there are {z.shape[0]}: one more than drafted.")
    if not sampling.is_greedy and (uniforms is None or uniforms.shape != (rows, UNIFORMS[rule])):
        found = None if uniforms is None else tuple(uniforms.shape)
        raise ConfigError(f"Rule {rule!r} needs ({rows}, {UNIFORMS[rule]}) uniform numbers and got {found}.")
