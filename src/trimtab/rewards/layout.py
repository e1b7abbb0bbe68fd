"""How pairs of answers become one batch: what they share is encoded once, and several pairs share a row.

Both answers continue one prompt, and often each other: everything before the first token in which they differ is the
TRUNK; the two different ends are its BRANCHES. All prompts of a batch often begin alike too (a system prompt, a chat
template's first tokens): that is the ROOT of each row::

    root ──┬── trunk of pair 1: prompt + common beginning ──┬── rest of answer a
           │                                                └── rest of answer b
           └── trunk of pair 2 ──┬── …

Each of these pieces is a NODE. A token attends to its own node and to the nodes above it, and its position counts along
that path, so the log-probabilities are those of separate sequences for every model that reads order from
``position_ids`` and obeys a 4-D attention mask. An answer's last token is only ever predicted, never part of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor

from trimtab.rewards.encoding import EncodedPair

_ATTENTION_COST = 1500
"""Length of a row at which attention costs as much as everything else; a rough mean over small and large models."""

_MOST_ROWS_MERGED = 2048
"""Rows are not made longer than this to save padding (their masks and attention grow with the square)."""


class PairBatch(TypedDict):
    """P pairs packed into R rows of L tokens; N tokens to predict, M more that both answers of a pair have in common.

    ``pair_index`` comes first because Trainer takes the first tensor's length for the batch size.
    """

    pair_index: Tensor
    """(P,) long: 0 … P−1."""
    input_ids: Tensor
    """(R, L) long; padding is 0."""
    position_ids: Tensor
    """(R, L) long: place of the token in its own sequence."""
    node: Tensor
    """(R, L) long: the node a token belongs to; 0 is padding."""
    pair_of: Tensor
    """(R, L) long: the pair a token belongs to; 0 for padding and for a root that several pairs share."""
    above: Tensor
    """(nodes, nodes) bool: whether a token of the first node sees the second; each node sees itself."""
    source: Tensor
    """(N,) long: flat index into (R·L) of the state that predicts each token."""
    target: Tensor
    """(N,) long: the token it must predict."""
    owner: Tensor
    """(N,) long: 2·pair + answer."""
    common_source: Tensor
    """(M,) long: as ``source``, for answer tokens in the trunk; they count for both answers."""
    common_target: Tensor
    """(M,) long."""
    common_owner: Tensor
    """(M,) long: pair."""
    branched: bool
    """Whether rows hold trees (4-D mask) or single sequences (ordinary mask)."""
    ids: list[str]
    """The P rows' ids, for messages."""


@dataclass(frozen=True)
class _Tree:
    """One trunk with its branches, below the root; ``owners`` numbers the branches' answers."""

    pair: int
    trunk: list[int]
    branches: list[list[int]]
    owners: list[int]
    common: int

    def __len__(self) -> int:
        return len(self.trunk) + sum(len(branch[:-1]) for branch in self.branches)


@dataclass
class _Rows:
    """The batch while it is filled, row by row, as flat lists."""

    ids: list[list[int]] = field(default_factory=list[list[int]])
    positions: list[list[int]] = field(default_factory=list[list[int]])
    nodes: list[list[int]] = field(default_factory=list[list[int]])
    pairs: list[list[int]] = field(default_factory=list[list[int]])
    parents: list[int] = field(default_factory=lambda: [0])
    own: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])
    shared: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])

    def add_node(self, tokens: list[int], parent: int, start: int, pair: int = 0) -> int:
        """Append a node to the last row, its positions from ``start``; return its number."""
        self.parents.append(parent)
        number = len(self.parents) - 1
        self.ids[-1] += tokens
        self.positions[-1] += range(start, start + len(tokens))
        self.nodes[-1] += [number] * len(tokens)
        self.pairs[-1] += [pair] * len(tokens)
        return number

    def add_tree(self, tree: _Tree, root: int, root_length: int) -> None:
        """Append a tree to the last row and note what its tokens must predict."""
        row = len(self.ids) - 1
        begin = len(self.ids[-1])
        trunk = self.add_node(tree.trunk, root, root_length, tree.pair)
        end = len(self.ids[-1])
        # Where nothing of the prompt is left below the root, the root's last token predicts.
        last = end - 1 if tree.trunk else root_length - 1
        for k in range(len(tree.trunk) - tree.common, len(tree.trunk)):
            source = begin + k - 1 if k else root_length - 1
            self.shared.append((row, source, tree.trunk[k], tree.pair))
        for branch, owner in zip(tree.branches, tree.owners, strict=True):
            place = len(self.ids[-1])
            self.add_node(branch[:-1], trunk, root_length + len(tree.trunk), tree.pair)
            sources = [last, *range(place, place + len(branch) - 1)]
            self.own += [(row, s, t, owner) for s, t in zip(sources, branch, strict=False)]


def layout_pairs(pairs: Sequence[EncodedPair], *, branched: bool, share_root: bool = True) -> PairBatch:
    """Return the batch of ``pairs``.

    Args:
        pairs: at least one.
        branched: encode once what answers and prompts share, and pack pairs into rows; otherwise one row an answer.
        share_root: whether the prompts' common beginning may be encoded once, too; not where each pair is read under
            a preference of its own.
    """
    root: list[int] = []
    trees: list[_Tree] = []
    if branched and share_root:
        root = _common_beginning([pair.prompt_ids for pair in pairs])
    for number, pair in enumerate(pairs):
        prompt = pair.prompt_ids[len(root) :]
        if branched:
            common = len(_common_beginning([pair.a_ids, pair.b_ids]))
            branches = [pair.a_ids[common:], pair.b_ids[common:]]
            trees.append(_Tree(number, prompt + pair.a_ids[:common], branches, [2 * number, 2 * number + 1], common))
        else:
            trees.append(_Tree(number, prompt, [pair.a_ids], [2 * number], 0))
            trees.append(_Tree(number, prompt, [pair.b_ids], [2 * number + 1], 0))
    rows = pack([len(tree) for tree in trees], len(root)) if branched else [[i] for i in range(len(trees))]
    return _assemble(_fill(trees, rows, root), pairs, branched)


def branch_mask(node: Tensor, above: Tensor) -> Tensor:
    """Return which token sees which: (R, L), (nodes, nodes) → (R, 1, L, L) bool, True = attends.

    Padding sees the padding before it and itself, so that no row of the softmax is empty.
    """
    length = node.shape[1]
    order = torch.ones(length, length, dtype=torch.bool, device=node.device).tril()
    return (above[node[:, :, None], node[:, None, :]] & order)[:, None]


def pack(lengths: Sequence[int], root: int) -> list[list[int]]:
    """Divide trees over rows so that little is padding and no row is needlessly long.

    Several row lengths are tried, each filled longest tree first into the first row with room; the cheapest stays,
    counting every token of every row, padding too, and attention growing with the row.
    """
    longest = max(lengths)
    best: tuple[float, list[list[int]]] | None = None
    for factor in (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
        capacity = int(longest * factor)
        if best is not None and root + capacity > _MOST_ROWS_MERGED:
            break
        rows = _first_fit(lengths, capacity)
        width = root + max(sum(lengths[i] for i in row) for row in rows)
        cost = len(rows) * width * (1 + width / _ATTENTION_COST)
        if best is None or cost < best[0]:
            best = (cost, rows)
    return best[1] if best else []


def _first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    room: list[int] = []
    rows: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((r for r, free in enumerate(room) if free >= lengths[item]), None)
        if place is None:
            room.append(capacity)
            rows.append([])
            place = len(rows) - 1
        room[place] -= lengths[item]
        rows[place].append(item)
    return rows


def _common_beginning(sequences: Sequence[list[int]]) -> list[int]:
    # The smallest and the largest of sorted sequences differ first where any two of them do.
    low, high = min(sequences), max(sequences)
    for i, (left, right) in enumerate(zip(low, high, strict=False)):
        if left != right:
            return low[:i]
    return low[: len(high)]


def _fill(trees: list[_Tree], rows: list[list[int]], root: list[int]) -> _Rows:
    filled = _Rows()
    for row in rows:
        for part in (filled.ids, filled.positions, filled.nodes, filled.pairs):
            part.append([])
        top = filled.add_node(root, 0, 0)
        for number in row:
            filled.add_tree(trees[number], top, len(root))
    return filled


def _assemble(rows: _Rows, pairs: Sequence[EncodedPair], branched: bool) -> PairBatch:
    width = max(len(ids) for ids in rows.ids)

    def padded(lists: list[list[int]]) -> Tensor:
        return torch.tensor([part + [0] * (width - len(part)) for part in lists], dtype=torch.long)

    def columns(entries: list[tuple[int, int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        table = torch.tensor(entries, dtype=torch.long).reshape(-1, 4)
        return table[:, 0] * width + table[:, 1], table[:, 2], table[:, 3]

    source, target, owner = columns(rows.own)
    common_source, common_target, common_owner = columns(rows.shared)
    return PairBatch(
        pair_index=torch.arange(len(pairs)),
        input_ids=padded(rows.ids),
        position_ids=padded(rows.positions),
        node=padded(rows.nodes),
        pair_of=padded(rows.pairs),
        above=_closure(rows.parents),
        source=source,
        target=target,
        owner=owner,
        common_source=common_source,
        common_target=common_target,
        common_owner=common_owner,
        branched=branched,
        ids=[pair.id for pair in pairs],
    )


def _closure(parents: list[int]) -> Tensor:
    """Return (nodes, nodes) bool: a node's ancestors and itself. Node 0 is padding and nobody's ancestor."""
    above = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent:
            above[node] |= above[parent]
    return above
