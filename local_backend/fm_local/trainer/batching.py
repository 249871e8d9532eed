"""Which examples are trained together, and in which order: pure functions of the seed and the epoch.

A step's examples are drawn at random, and arranged only within their step: several in a row, or those of similar length
in rows that are padded. (Whole steps of similar lengths need little padding too, but what they teach depends more on
the seed: docs/performance.md.) Where a run stands in an epoch is one number, the index of the next step, so resuming
skips and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

_GROUP_SHARE = 1 / 32
"""What it costs to begin a group of rows, as a share of the time for the most tokens that one may hold: so it was on a
CPU. A GPU holds more, and is the sooner left idle."""
ROW_TOKENS = 32
"""What numbers of rows in a matrix product are multiples of, those of the loss and of attention too. oneDNN compiles
each product anew for each number of rows, and keeps the last 1,024: with any numbers a training on a CPU took 4 to 14 %
longer."""

Indices = npt.NDArray[np.int64]
Piece = tuple[Indices, bool]
"""Examples that are computed together, and whether their labels count."""
_NONE: Indices = np.zeros(0, dtype=np.int64)


class Examples(Protocol):
    """What the loop needs of a data set; `fm_local.prepare.shards.TokenDataset` has it."""

    lengths: Indices
    """Tokens of each example."""
    trained: Indices
    """Labelled tokens of each example, the first token of a sequence excepted: nothing predicts it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]: ...


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. Out of pinned memory a GPU copies while the next piece is made; for any other it waits."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Documents:
    """The examples that lie in one row."""

    position_ids: torch.Tensor
    """(1, length) int64: each token's place in its own example, from 0 on."""
    boundaries: torch.Tensor
    """(examples + 1,) int32: where each begins in the row, and the end."""
    longest: int
    """Tokens of the longest."""

    def to(self, device: torch.device) -> Documents:
        """The same on `device`."""
        position_ids, boundaries = (_moved(x, device) for x in (self.position_ids, self.boundaries))
        return Documents(position_ids, boundaries, self.longest)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Token ids of some examples, and the labels: a row for each, padded on its right, or all packed in one row.

    Padded rows need no attention mask: under causal attention no token sees the padding to its right, and padding
    itself has no label. Packed ones need none either, and must not be given any: transformers would then no longer
    tell the documents apart by their positions (trap 18 of the tests)."""

    ids: torch.Tensor
    """(rows, length) int64: each example without its last token, which predicts nothing."""
    positions: torch.Tensor
    """(labels,) int64: the places in the flattened `ids` whose next token is a label."""
    labels: torch.Tensor
    """(labels,) int64: those next tokens."""
    documents: Documents | None = None
    """Which places of a packed row belong together; None for rows of one example."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        if device.type == "cpu":
            return self
        ids, positions, labels = (_moved(x, device) for x in (self.ids, self.positions, self.labels))
        return MicroBatch(ids, positions, labels, self.documents.to(device) if self.documents else None)

    def inputs(self) -> dict[str, Any]:
        """What the model is called with. FlashAttention takes the boundaries, everything else the position ids."""
        if self.documents is None:
            return {"input_ids": self.ids}
        documents = self.documents
        return {
            "input_ids": self.ids,
            "position_ids": documents.position_ids,
            "cu_seq_lens_q": documents.boundaries,
            "cu_seq_lens_k": documents.boundaries,
            "max_length_q": documents.longest,
            "max_length_k": documents.longest,
        }


def epoch_steps(count: int, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """The examples of each optimiser step of `epoch`, of `count` in all; every one is in exactly one step. The last may
    be smaller than `batch_size`."""
    shuffled = np.random.default_rng([seed, epoch]).permutation(count)
    return [shuffled[start : start + batch_size] for start in range(0, count, batch_size)]


def spread(examples: Indices, lengths: Indices, count: int) -> list[Indices]:
    """`examples` in `count` groups, all with about as many tokens: from the longest on, each goes to the group with the
    fewest (at most 4/3 of the best possible largest group; Graham 1969). Some are empty where there are too few."""
    found: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, number) for number in range(count)]
    for item in np.argsort(-lengths[examples], kind="stable").tolist():
        tokens, number = heappop(filled)
        found[number].append(item)
        heappush(filled, (tokens + int(lengths[examples[item]]), number))
    return [examples[np.array(chosen, dtype=np.int64)] for chosen in found]


def rank_share(step: Indices, lengths: Indices, rank: int, world: int) -> Indices:
    """The part of a step's examples that process `rank` of `world` computes; empty where there are too few."""
    return step if world == 1 else spread(step, lengths, world)[rank]


def pieces_of_all(
    examples: Indices, lengths: Indices, rank: int, world: int, *, cut: Callable[[Indices], list[Indices]], even: bool
) -> list[Piece]:
    """The pieces into which process `rank` `cut`s its share of `examples`, each with whether its labels count.

    A process without a share still takes part, since the others wait for its gradients: it computes a short example
    whose labels don't count. If `even`, as many of these are added as make all processes' pieces the same in number.
    """
    mine = rank_share(examples, lengths, rank, world)
    pieces = [(piece, True) for piece in (cut(mine) if len(mine) else ())]
    most = 1
    if even:
        most = max(len(cut(share)) for r in range(world) if len(share := rank_share(examples, lengths, r, world)))
    shortest = examples[[np.argmin(lengths[examples])]]
    return pieces + [(shortest, False)] * (most - len(pieces))


def micro_batches(examples: Indices, lengths: Indices, max_tokens: int) -> list[Indices]:
    """Cuts examples into groups that, padded to their longest, hold at most `max_tokens` each (or one example): those
    with the fewest tokens in all, where each group counts for `_GROUP_SHARE` of `max_tokens` more. The largest groups
    come first."""
    by_length = examples[np.argsort(-lengths[examples], kind="stable")]
    sizes = np.maximum(lengths[by_length], 1)
    # costs[n] is of the first n examples, whose last group begins at starts[n].
    costs, starts = np.zeros(len(sizes) + 1), np.zeros(len(sizes) + 1, dtype=np.int64)
    first = 0
    for end in range(1, len(sizes) + 1):
        while first < end - 1 and (end - first) * sizes[first] > max_tokens:
            first += 1
        tokens = costs[first:end] + (end - np.arange(first, end)) * sizes[first:end]
        best = int(tokens.argmin())
        costs[end], starts[end] = tokens[best] + _GROUP_SHARE * max_tokens, first + best
    groups, end = [], len(sizes)
    while end:
        groups.append(by_length[starts[end] : end])
        end = starts[end]
    return sorted(groups, key=lambda group: -len(group) * int(lengths[group[0]]))


def collate(data: Examples, examples: Sequence[int] | Indices, *, labelled: bool = True) -> MicroBatch:
    """Loads and pads `examples`. Without `labelled` no token carries a label."""
    rows = [data[int(index)] for index in examples]
    width = max(1, max(len(ids) for ids, _ in rows) - 1)
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.zeros_like(inputs)
    mask = np.zeros(inputs.shape, dtype=bool)
    for row, (ids, trained) in enumerate(rows):
        count = len(ids) - 1
        inputs[row, :count], targets[row, :count] = ids[:-1], ids[1:]
        # Labels are chosen by position, never by id: padding and end-of-sequence may share one.
        mask[row, :count] = trained[1:] & labelled
    positions = np.flatnonzero(mask)
    labels = targets.ravel()[positions]
    return MicroBatch(torch.from_numpy(inputs), torch.from_numpy(positions), torch.from_numpy(labels))


def unlabelled(ids: torch.Tensor) -> MicroBatch:
    """Rows of token `ids`, (rows, length), to look at what a model makes of them."""
    none = ids.new_zeros(0)
    return MicroBatch(ids, none, none)


def collate_packed(data: Examples, examples: Sequence[int] | Indices, *, labelled: bool = True) -> MicroBatch:
    """Loads `examples` into one row, one behind the other. No label crosses from one to the next, since each goes
    without its last token, and the first of the next is nowhere a label. The row is filled up to a multiple of
    `ROW_TOKENS` by a last document without labels."""
    documents = [data[int(index)] for index in examples]
    mask = np.concatenate([trained[1:] for _, trained in documents]) & labelled
    positions = np.flatnonzero(mask)
    labels = np.concatenate([ids[1:] for ids, _ in documents])[positions]
    inputs = [ids[:-1] for ids, _ in documents]
    if missing := -sum(map(len, inputs)) % ROW_TOKENS:
        inputs.append(np.zeros(missing, dtype=np.int64))
    return lay_in_row(inputs, positions, labels)


def lay_in_row(documents: Sequence[Indices], positions: Indices = _NONE, labels: Indices = _NONE) -> MicroBatch:
    """Token ids of several documents as one row, with its labels."""
    lengths = [len(ids) for ids in documents]
    ids, position_ids = np.concatenate(documents)[None], np.concatenate([*map(np.arange, lengths)])[None]
    boundaries = np.cumsum([0, *lengths], dtype=np.int32)
    places = Documents(torch.from_numpy(position_ids), torch.from_numpy(boundaries), max(lengths))
    return MicroBatch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(labels), places)
