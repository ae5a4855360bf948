"""What ``beyond`` measures: Amazon's histories and RecSSD's lookups, each with a half to learn from and one to test.

- ``amazon``: 31,013 users' histories of 23,715 video games, or made ones of the same skew where the file is not here;
  users in random order, so that both halves have the same items. One table, dim 64.
- ``K = 0`` to ``K = 2``: RecSSD's stack distances over every row of a table (``make_locality``'s ``whole`` form; in the
  published one all ids lie on every fourth page, and a quarter of the dies would do all the work). RMC1's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from emucsd.placement import Placement, by_coaccess, by_frequency, by_spread
from emucsd.table import Rows
from emucsd.traces import AMAZON_FILE, LOCALITIES, find_data, load_amazon, make_amazon, make_locality, sums_in_order
from emucsd.traces.bags import joined
from emucsd.traces.trace import Recorded

Dtype = Literal["float32", "float16", "int8", "int4"]
Order = Literal["id", "spread", "frequency", "co-access"]
Asked = list[list[tuple[Any, Any]]]  # of each batch, for each table: (indices, offsets)

PAGE_BYTES, DIES = 4096, 16  # of profile rmssd

# bytes of a row's content
DTYPES: dict[Dtype, Callable[[int], int]] = {
    "float32": lambda dim: 4 * dim,
    "float16": lambda dim: 2 * dim,
    "int8": lambda dim: dim + 8,
    "int4": lambda dim: (dim + 1) // 2 + 4,
}

AMAZON_DIM, AMAZON_BATCH = 64, 64
"""64 users at a time: a history has 9 items, so 600 lookups, as one sample of RMC1."""
RMC_TABLES, RMC_LOOKUPS, RMC_DIM, RMC_BATCH = 8, 80, 32, 16
"""RMC1 (DeepRecSys); a batch in the middle of what the papers sweep (1 to 128)."""
RMC_ROWS = 131_072
"""Of each table, instead of millions: what has no cache takes as long for any number, and each half of a trace brings
at most 15,000 new rows, so none comes round again. Two of 500 rows in flight share one of 32,768 pages by chance: the
page register gains at most 2 % by the smaller tables."""
RMC_SAMPLES = 256  # in each half: 164 K lookups


class Workload:
    """Tables and lookups.

    :ivar data: FP32[rows, dim] of each table
    :ivar train, test: halves of the trace
    :ivar batch: samples that are asked for together
    """

    def __init__(self, name: str, about: str, data: list[Rows], train: Recorded, test: Recorded, batch: int) -> None:
        self.name, self.about, self.data, self.train, self.test, self.batch = name, about, data, train, test, batch
        self.dim = data[0].shape[1]
        self._placements: dict[tuple[Order, int], list[Placement]] = {}
        self._wanted: dict[tuple[Order, int], list[Rows]] = {}

    @property
    def nbytes(self) -> int:
        """Of all tables, as FP32."""
        return sum(rows.nbytes for rows in self.data)

    def placements(self, order: Order, dtype: Dtype) -> list[Placement]:
        """Where each table's rows go, learnt from the first half; none for the order of ids."""
        if order == "id":
            return []
        per_page = rows_a_page(dtype, self.dim)
        if (order, per_page) not in self._placements:
            learn = {"spread": by_spread, "frequency": by_frequency, "co-access": by_coaccess}[order]
            found = [learn(some.bags, some.rows, per_page, DIES) for some in self.train.lookups]
            self._placements[order, per_page] = found
        return self._placements[order, per_page]

    def asked(self, trace: Recorded, order: Order, dtype: Dtype) -> Asked:
        """One half's batches, by places. Whose rows lie there is of no matter: they are as random as any."""
        placements = self.placements(order, dtype)
        found: Asked = []
        for batch in trace.batches(self.batch):
            bags = [p.bags(b) for p, b in zip(placements, batch.bags, strict=True)] if placements else batch.bags
            found.append([some.pair for some in bags])
        return found

    def wanted(self, order: Order, dtype: Dtype) -> list[Rows]:
        """The second half's sums by NumPy, in index order, of each table."""
        key = order, 0 if order == "id" else rows_a_page(dtype, self.dim)
        if key not in self._wanted:
            bags = [some.bags for some in self.test.lookups]
            if placements := self.placements(order, dtype):
                bags = [placement.bags(some) for placement, some in zip(placements, bags, strict=True)]
            self._wanted[key] = [sums_in_order(rows, some) for rows, some in zip(self.data, bags, strict=True)]
        return self._wanted[key]

    def told(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "about": self.about,
            "tables": len(self.data),
            "rows": len(self.data[0]),
            "dim": self.dim,
            "samples": self.test.samples,
            "lookups": self.test.ids,
            "samples_a_batch": self.batch,
            "map_bytes": 4 * sum(len(rows) for rows in self.data),
        }


def rows_a_page(dtype: Dtype, dim: int) -> int:
    """Rows lie in strides of a power of two, so that none crosses a page."""
    return PAGE_BYTES >> (DTYPES[dtype](dim) - 1).bit_length()


def make_workloads(seed: int, *, quick: bool = False) -> list[Workload]:
    """The five. :param quick: few samples, small tables"""
    return [_amazon(seed, 600 if quick else None), *_at_each_k(seed, quick)]


def _amazon(seed: int, users: int | None) -> Workload:
    folder = find_data()
    lookups = make_amazon(seed=seed) if folder is None else load_amazon(folder / AMAZON_FILE)
    rng = np.random.default_rng([seed, 64])
    order = rng.permutation(lookups.bags.count)[:users]
    shuffled = lookups._replace(bags=joined([lookups.bags.part(int(user), int(user) + 1) for user in order]))
    train, test = Recorded("amazon", [shuffled]).split(0.5)
    rows = rng.standard_normal((lookups.rows, AMAZON_DIM), np.float32)
    source = "made, with the skew of Amazon's video games" if folder is None else "Amazon's video games"
    return Workload("amazon", f"users' histories ({source})", [rows], train, test, AMAZON_BATCH)


def _at_each_k(seed: int, quick: bool) -> list[Workload]:
    samples, size = (32, RMC_ROWS // 16) if quick else (RMC_SAMPLES, RMC_ROWS)
    rng = np.random.default_rng([seed, 32])
    data = [rng.standard_normal((size, RMC_DIM), np.float32) for _ in range(RMC_TABLES)]
    found = []
    for locality in LOCALITIES:
        trace = make_locality(
            locality, 2 * samples, tables=RMC_TABLES, rows=size, lookups=RMC_LOOKUPS, form="whole", seed=seed
        )
        train, test = trace.split(0.5)
        found.append(Workload(trace.name, "RecSSD's locality, RMC1's shape", data, train, test, RMC_BATCH))
    return found
