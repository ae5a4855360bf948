"""Inputs made with the skew of real logs.

Ids are drawn by a Zipf-Mandelbrot law, p(rank) ~ (rank + shift) ** -exponent. The constants were fitted once: AMAZON by
maximum likelihood to 287,107 interactions with 23,715 video games (the 1 % most popular items have 16.8 % of them, the
fit 16.5 %; the first 10 % have 54 %, the fit 56 %), CRITEO by the number of distinct values that 200 rows of the log
have in each column. Ranks are scattered over the rows, so that popular rows are not neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.traces.bags import Lookups, bags_of

AMAZON_USERS, AMAZON_ITEMS, AMAZON_LENGTH = 31_013, 23_715, 9.26  # the last: interactions per user


class Zipf(NamedTuple):
    """p(rank) ~ (rank + shift) ** -exponent."""

    exponent: float
    shift: float


AMAZON = Zipf(1.12, 300.0)
CRITEO = Zipf(1.05, 0.0)


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
