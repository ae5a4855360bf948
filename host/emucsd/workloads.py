"""Inputs of embedding lookups: real logs in the formats that people have, and inputs made with the same skew.

- Amazon interactions, as prepared for SASRec: a line ``user item``; a user's history is one bag of items.
- Criteo's display-advertising log, as CSV with a header or tab-separated: label, 13 numbers, 26 categories; each
  category is a table, a sample looks up one row of each (none where the field is empty).

Made inputs draw ids by a Zipf-Mandelbrot law, p(rank) ~ (rank + shift) ** -exponent. The constants were fitted once:
AMAZON by maximum likelihood to 287,107 interactions with 23,715 video games (the 1 % most popular items have 16.8 % of
them, the fit 16.5 %; the first 10 % have 54 %, the fit 56 %), CRITEO by the number of distinct values that 200 rows
of the log have in each column. Ranks are scattered over the rows, so that popular rows are not neighbours.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument

AMAZON_USERS, AMAZON_ITEMS, AMAZON_LENGTH = 31_013, 23_715, 9.26  # the last: interactions per user
CRITEO_NUMBERS, CRITEO_CATEGORIES = 13, 26

# Criteo's table sizes as MLPerf's DLRM uses them (its 40 M rows a table are the most): facebookresearch/dlrm
CRITEO_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10,
    2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip


class Zipf(NamedTuple):
    """p(rank) ~ (rank + shift) ** -exponent."""

    exponent: float
    shift: float


AMAZON = Zipf(1.12, 300.0)
CRITEO = Zipf(1.05, 0.0)


@dataclass(frozen=True, slots=True)
class Bags:
    """Bag ``b`` is ``indices[offsets[b]:offsets[b + 1]]``; len(offsets) is the number of bags + 1."""

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of bags."""
        return len(self.offsets) - 1

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


def bags_of(lengths: NDArray[np.int64], indices: NDArray[np.int64]) -> Bags:
    """Bags from their lengths."""
    return Bags(indices, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


# -- from files


def load_amazon(path: str | Path) -> Lookups:
    """Histories from ``user item`` lines, in the file's order; items count from 1 in the file, rows from 0.

    :raises InvalidArgument: a line is not two positive integers
    """
    try:
        pairs = np.loadtxt(path, dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise InvalidArgument(f"{path}: every line must be 'user item', two integers ({error})") from error
    if pairs.shape[1:] != (2,) or not len(pairs) or pairs.min() < 1:
        raise InvalidArgument(f"{path}: every line must be 'user item', two integers from 1 on")
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    lengths = np.unique(pairs[:, 0], return_counts=True)[1]
    return Lookups("items", int(pairs[:, 1].max()), bags_of(lengths, pairs[:, 1] - 1))


def load_criteo(path: str | Path, rows: Sequence[int]) -> list[Lookups]:
    """Samples from Criteo's log: 26 tables, each with one bag a sample, of one id or (an empty field) of none.

    :param rows: of each table; a category's text is hashed into them
    :raises InvalidArgument: another number of columns, or of ``rows``
    """
    if len(rows) != CRITEO_CATEGORIES or min(rows) < 1:
        raise InvalidArgument(
            f"{len(rows)} table sizes; Criteo's log has {CRITEO_CATEGORIES} categories, each > 0 rows"
        )
    with open(path, newline="", encoding="utf-8") as file:
        first = file.readline()
        file.seek(0)
        lines = [line for line in csv.reader(file, delimiter="\t" if "\t" in first else ",") if line]
    samples = lines[1:] if lines and lines[0][0] == "label" else lines
    for number, line in enumerate(samples):
        if len(line) != 1 + CRITEO_NUMBERS + CRITEO_CATEGORIES:
            raise InvalidArgument(f"{path}: sample {number} has {len(line)} fields, not 1 + 13 + 26")
    tables = []
    for column in range(CRITEO_CATEGORIES):
        texts = [line[1 + CRITEO_NUMBERS + column] for line in samples]
        ids = np.array([_hashed(text, column) % rows[column] for text in texts if text], np.int64)
        tables.append(
            Lookups(f"C{column + 1}", rows[column], bags_of(np.array([bool(t) for t in texts], np.int64), ids))
        )
    return tables


def _hashed(text: str, column: int) -> int:
    """A category's text as a number; other in every column, the same in every run."""
    value = (int.from_bytes(text.encode(), "little") + 1) * 0x9E3779B97F4A7C15 + column * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 64)) & 0xFFFF_FFFF_FFFF_FFFF
    return (value ^ (value >> 29)) * 0x94D049BB133111EB >> 16 & 0xFFFF_FFFF_FFFF


# -- made


def draw(law: Zipf, rows: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` ids below ``rows`` by the law, popular ones scattered."""
    # the law's integral, inverted: exact sampling would need a table of all rows
    low, high = 0.5 + law.shift, rows + 0.5 + law.shift
    power = 1.0 - law.exponent
    uniform = rng.random(count)
    if abs(power) < 1e-9:
        ranks = low * (high / low) ** uniform
    else:
        ranks = (low**power + uniform * (high**power - low**power)) ** (1.0 / power)
    rank = np.clip(np.rint(ranks - law.shift).astype(np.int64) - 1, 0, rows - 1)
    return (rank * _stride(rows) + rows // 3) % rows


def _stride(rows: int) -> int:
    """A number that shares no divisor with ``rows``, near its golden section."""
    stride = max(int(rows * 0.6180339887), 1)
    while np.gcd(stride, rows) != 1:
        stride += 1
    return stride


def make_amazon(users: int = AMAZON_USERS, items: int = AMAZON_ITEMS, seed: int = 1) -> Lookups:
    """Histories with the skew and the lengths of the Amazon interactions (log-normal: median 7, 1 % above 26)."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(np.rint(np.exp(rng.normal(2.01, 0.54, users))), 1).astype(np.int64)
    return Lookups("items", items, bags_of(lengths, draw(AMAZON, items, int(lengths.sum()), rng)))


def make_criteo(samples: int, rows: Sequence[int], seed: int = 1) -> list[Lookups]:
    """Samples of Criteo's shape: one id of each table, of each table's own popularity."""
    rng = np.random.default_rng(seed)
    ones = np.ones(samples, np.int64)
    return [Lookups(f"C{n + 1}", size, bags_of(ones, draw(CRITEO, size, samples, rng))) for n, size in enumerate(rows)]


def make_uniform(bags: int, length: int, rows: int, seed: int = 1) -> Lookups:
    """Bags of one length, every row as likely: RM-SSD's worst case for any cache."""
    rng = np.random.default_rng(seed)
    return Lookups("uniform", rows, bags_of(np.full(bags, length, np.int64), rng.integers(0, rows, bags * length)))


def sums_in_order(table: NDArray[np.float32], bags: Bags) -> NDArray[np.float32]:
    """The answer: FP32 sums, every bag's rows added to zero in index order, by NumPy."""
    sums = np.zeros((bags.count, table.shape[1]), np.float32)
    lengths = np.diff(bags.offsets)
    for step in range(int(lengths.max(initial=0))):
        open_bags = np.flatnonzero(lengths > step)
        sums[open_bags] += table[bags.indices[bags.offsets[open_bags] + step]]
    return sums
