"""SSD-S and SSD-M: tables as files that are read with lseek and read, a vector at a time, through the page cache.

What RM-SSD's paper calls its naive software baseline. One read is outstanding, for lseek and read share the file's
position. Which pages miss comes from an LRU cache (``pagecache``), and their reads are the drive's own 4 KiB reads at
queue depth 1; the kernel's work for all vectors of a sample is then thought at once, which is the same sum.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from emucsd.baselines.host import HostMlp, side_by_side
from emucsd.baselines.pagecache import MOST_MISSES, HostLookup
from emucsd.drive import Drive
from emucsd.rm.model import Model
from emucsd.rm.weights import Weights
from emucsd.table import Rows
from emucsd.traces import Bags, Batch, Recorded


class BufferedFiles(HostMlp):
    """:cvar share: of the tables' bytes that the page cache holds"""

    share: ClassVar[float]

    def prepare(self, drive: Drive, model: Model, weights: Weights, before: Recorded) -> None:
        super().prepare(drive, model, weights, before)
        self.cache = HostLookup(drive, self.tables, share=self.share, depth=1)
        self.cache.follow([some.bags for some in before.lookups])

    def sls(self, batch: Batch) -> Rows:
        self.spend("framework", self.costs.operator * len(self.tables))
        lookups = sum(len(bags.indices) for bags in batch.bags)
        step = max(MOST_MISSES * batch.samples // max(2 * lookups, 1), 1)  # samples that cannot miss too many pages
        return np.concatenate(
            [
                self._some([bags.part(at, min(at + step, batch.samples)) for bags in batch.bags])
                for at in range(0, batch.samples, step)
            ]
        )

    def _some(self, some: list[Bags]) -> Rows:
        before = self.cache.misses
        sums = side_by_side(self.cache.lookup(list(enumerate(some))))
        lookups = [len(bags.indices) for bags in some]
        self.spend_all(
            {
                "hits": sum(lookups) * self.costs.vector_read,
                "misses": (self.cache.misses - before) * self.costs.miss,
                "rows": self.costs.add(sum(n * table.dim for n, table in zip(lookups, self.tables, strict=True))),
            }
        )
        return sums


class SsdS(BufferedFiles):
    """A quarter of the tables fits in memory."""

    name, about, share = "SSD-S", "files, page cache of 1/4 of the tables", 0.25


class SsdM(BufferedFiles):
    """Half of the tables fits in memory."""

    name, about, share = "SSD-M", "files, page cache of 1/2 of the tables", 0.5
