"""How pairs of answers become one batch: each pair is a small tree, and trees are packed into rows.

Both answers continue one prompt, and often each other: everything before the first token in which they differ is the
TRUNK, encoded once; the two different ends are its BRANCHES::

    trunk: prompt + common beginning ──┬── branch 1: rest of answer a
                                       └── branch 2: rest of answer b

A token attends to the trunk of its own pair and to its own branch; positions restart after the trunk. The
log-probabilities are those of two separate sequences, for every model that reads order from ``position_ids`` and obeys
a 4-D attention mask. An answer's last token is only ever predicted, so it is not part of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from trimtab.rewards.encoding import EncodedPair


class PairBatch(TypedDict):
    """P pairs packed into R rows of L tokens; N tokens to predict.

    ``pair_index`` comes first because Trainer takes the first tensor's length for the batch size.
    """

    pair_index: Tensor
    """(P,) long: 0 … P−1."""
    input_ids: Tensor
    """(R, L) long; padding is 0."""
    position_ids: Tensor
    """(R, L) long; each answer's positions follow its prompt's."""
    tree: Tensor
    """(R, L) long: which tree a token belongs to; −1 for padding."""
    branch: Tensor
    """(R, L) long: 0 trunk, 1 and 2 the branches."""
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


class _Tree:
    """One trunk with up to two branches, and what each of its positions must predict."""

    def __init__(self, trunk: list[int], branches: Sequence[list[int]], owners: Sequence[int], common: int) -> None:
        inputs = [branch[:-1] for branch in branches]
        self.ids = trunk + [token for part in inputs for token in part]
        self.branch = [0] * len(trunk)
        self.position = list(range(len(trunk)))
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.owners: list[int] = []
        start = len(trunk)
        for number, (branch, part, owner) in enumerate(zip(branches, inputs, owners, strict=True), start=1):
            self.branch += [number] * len(part)
            self.position += range(len(trunk), len(trunk) + len(part))
            if branch:
                self.sources += [len(trunk) - 1, *range(start, start + len(part))]
                self.targets += branch
                self.owners += [owner] * len(branch)
            start += len(part)
        self.common = common

    def __len__(self) -> int:
        return len(self.ids)


def layout_pairs(pairs: Sequence[EncodedPair], *, branched: bool) -> PairBatch:
    """Return the batch of ``pairs``.

    Args:
        pairs: at least one.
        branched: share each pair's trunk and pack trees into rows; otherwise one row an answer.
    """
    trees: list[_Tree] = []
    for number, pair in enumerate(pairs):
        if branched:
            common = _common_length(pair.a_ids, pair.b_ids)
            trunk = pair.prompt_ids + pair.a_ids[:common]
            branches = [pair.a_ids[common:], pair.b_ids[common:]]
            trees.append(_Tree(trunk, branches, [2 * number, 2 * number + 1], common))
        else:
            trees.append(_Tree(pair.prompt_ids, [pair.a_ids], [2 * number], 0))
            trees.append(_Tree(pair.prompt_ids, [pair.b_ids], [2 * number + 1], 0))
    rows = _pack([len(tree) for tree in trees]) if branched else [[i] for i in range(len(trees))]
    return _assemble(trees, rows, pairs, branched)


def branch_mask(tree: Tensor, branch: Tensor) -> Tensor:
    """Return which token sees which: (R, L), (R, L) → (R, 1, L, L) bool, True = attends.

    A token sees, at or before its own place, the trunk and its own branch of its own tree. Padding sees itself, so
    that no row of the softmax is empty.
    """
    length = tree.shape[1]
    order = torch.ones(length, length, dtype=torch.bool, device=tree.device).tril()
    same_tree = tree[:, :, None] == tree[:, None, :]
    same_branch = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (same_tree & same_branch & order)[:, None]


def _common_length(a: list[int], b: list[int]) -> int:
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return min(len(a), len(b))


def _pack(lengths: list[int]) -> list[list[int]]:
    """Put items into rows no longer than the longest item, longest first, each into the first row with room."""
    room: list[int] = []
    rows: list[list[int]] = []
    capacity = max(lengths)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((r for r, free in enumerate(room) if free >= lengths[item]), None)
        if place is None:
            room.append(capacity)
            rows.append([])
            place = len(rows) - 1
        room[place] -= lengths[item]
        rows[place].append(item)
    return rows


def _assemble(
    trees: list[_Tree], rows: list[list[int]], pairs: Sequence[EncodedPair], branched: bool
) -> PairBatch:  # fmt: skip
    width = max(sum(len(trees[i]) for i in row) for row in rows)
    shape = (len(rows), width)
    input_ids, position, branch = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    tree_of = torch.full(shape, -1, dtype=torch.long)
    source: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    common: tuple[list[int], list[int], list[int]] = ([], [], [])
    for r, row in enumerate(rows):
        start = 0
        for number in row:
            tree = trees[number]
            end = start + len(tree)
            input_ids[r, start:end] = torch.tensor(tree.ids)
            position[r, start:end] = torch.tensor(tree.position)
            branch[r, start:end] = torch.tensor(tree.branch)
            tree_of[r, start:end] = number
            flat = r * width + start
            source += [flat + s for s in tree.sources]
            target += tree.targets
            owner += tree.owners
            trunk = tree.branch.count(0)
            for k in range(trunk - tree.common, trunk):
                common[0].append(flat + k - 1)
                common[1].append(tree.ids[k])
                common[2].append(number)
            start = end
    as_long = [torch.tensor(x, dtype=torch.long) for x in (source, target, owner, *common)]
    return PairBatch(
        pair_index=torch.arange(len(pairs)),
        input_ids=input_ids,
        position_ids=position,
        tree=tree_of,
        branch=branch,
        source=as_long[0],
        target=as_long[1],
        owner=as_long[2],
        common_source=as_long[3],
        common_target=as_long[4],
        common_owner=as_long[5],
        branched=branched,
        ids=[pair.id for pair in pairs],
    )
