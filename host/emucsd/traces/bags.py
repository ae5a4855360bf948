"""Bags of row ids, and what they sum to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bags:
    """Bag ``b`` is ``indices[offsets[b]:offsets[b + 1]]``; len(offsets) is the number of bags + 1."""

    indices: Ids
    offsets: Ids

    @property
    def count(self) -> int:
        """Number of bags."""
        return len(self.offsets) - 1

    @property
    def pair(self) -> tuple[Ids, Ids]:
        """(indices, where each bag starts): what ``torch.nn.EmbeddingBag`` and ``Table.lookup`` take."""
        return self.indices, self.offsets[:-1]

    def part(self, first: int, last: int) -> Bags:
        """Bags ``first`` to ``last - 1``."""
        start, end = int(self.offsets[first]), int(self.offsets[last])
        return Bags(self.indices[start:end], self.offsets[first : last + 1] - start)

    def batches(self, size: int) -> Iterator[Bags]:
        """Consecutive parts of ``size`` bags; the last may be shorter."""
        for first in range(0, self.count, size):
            yield self.part(first, min(first + size, self.count))


class Lookups(NamedTuple):
    """What one table is asked: its shape's first half, and bags of row ids below it."""

    name: str
    rows: int
    bags: Bags


def bags_of(lengths: Ids, indices: Ids) -> Bags:
    """Bags from their lengths."""
    return Bags(indices, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def joined(parts: list[Bags]) -> Bags:
    """Bags one part after the other."""
    lengths = [np.diff(part.offsets) for part in parts]
    none = np.zeros(0, np.int64)
    return bags_of(np.concatenate([none, *lengths]), np.concatenate([none, *(part.indices for part in parts)]))


def sums_in_order(table: NDArray[np.float32], bags: Bags) -> NDArray[np.float32]:
    """The answer: FP32 sums, every bag's rows added to zero in index order, by NumPy."""
    sums = np.zeros((bags.count, table.shape[1]), np.float32)
    lengths = np.diff(bags.offsets)
    for step in range(int(lengths.max(initial=0))):
        open_bags = np.flatnonzero(lengths > step)
        sums[open_bags] += table[bags.indices[bags.offsets[open_bags] + step]]
    return sums
