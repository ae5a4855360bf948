"""SSD-S and SSD-M: tables as files that are read with lseek and read, a vector at a time, through the page cache.

What RM-SSD's paper calls its naive software baseline. One read is outstanding, for lseek and read share the file's
position. The page cache is exact LRU over 4 KiB pages. What the drive takes for a missed page is measured once, for
each takes as long on a drive that does nothing else (a test holds that to the nanosecond); the rows themselves are
read before, many at a time, to spare the computer a wait for every page.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from emucsd.baselines.embedding import page_alone
from emucsd.baselines.host import HostMlp, side_by_side
from emucsd.baselines.pagecache import PAGE
from emucsd.drive import Drive
from emucsd.rm.model import Model
from emucsd.rm.weights import Weights
from emucsd.table import Rows
from emucsd.traces import Bags, Batch, Recorded, sums_in_order

Ids = NDArray[np.int64]


class PageCache:
    """Which pages an LRU cache holds.

    :param capacity: pages
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: OrderedDict[int, None] = OrderedDict()

    def use(self, pages: Ids) -> int:
        """Use pages in this order. :returns: how many of the uses missed"""
        held, missed = self._held, 0
        for page in pages.tolist():
            if page in held:
                held.move_to_end(page)
                continue
            missed += 1
            held[page] = None
            if len(held) > self.capacity:
                held.popitem(last=False)
        return missed


class BufferedFiles(HostMlp):
    """:cvar share: of the tables' bytes that the page cache holds
    :ivar misses: lookups whose page was not in it
    """

    share: ClassVar[float]

    def prepare(self, drive: Drive, model: Model, weights: Weights, before: Recorded) -> None:
        super().prepare(drive, model, weights, before)
        self.rows = [table.read_rows() for table in self.tables]
        pages = [-(-table.info.size // PAGE) for table in self.tables]
        self.first_page = np.cumsum([0, *pages])
        self.cache = PageCache(max(int(self.share * sum(pages)), 1))
        self.cache.use(self._pages([some.bags for some in before.lookups]))
        self.page_ns = page_alone(self.tables[0])
        self.misses = 0

    def sls(self, batch: Batch) -> Rows:
        pages = self._pages(batch.bags)
        missed = self.cache.use(pages)
        self.misses += missed
        self.drive.clock.think(missed * self.page_ns)
        added = sum(len(bags.indices) * table.dim for bags, table in zip(batch.bags, self.tables, strict=True))
        self.spend_all(
            {
                "framework": self.costs.operator * len(self.tables),
                "hits": len(pages) * self.costs.vector_read,
                "misses": missed * self.costs.miss,
                "rows": self.costs.add(added),
            }
        )
        return side_by_side([sums_in_order(rows, bags) for rows, bags in zip(self.rows, batch.bags, strict=True)])

    def _pages(self, batch: Sequence[Bags]) -> Ids:
        """Pages in the order of their use: sample by sample, and table by table within one.

        Operators run table by table over a whole batch. Over tables of the paper's size that makes no difference, for
        a batch touches 1 % of their pages; over scaled ones it would turn the cache over within a batch.
        """
        pages = [
            first + bags.indices * table.info.row_bytes // PAGE
            for first, bags, table in zip(self.first_page[:-1], batch, self.tables, strict=True)
        ]
        samples = [np.repeat(np.arange(bags.count), np.diff(bags.offsets)) for bags in batch]
        found: Ids = np.concatenate(pages)[np.argsort(np.concatenate(samples), kind="stable")]
        return found


class SsdS(BufferedFiles):
    """A quarter of the tables fits in memory."""

    name, about, share = "SSD-S", "files, page cache of 1/4 of the tables", 0.25


class SsdM(BufferedFiles):
    """Half of the tables fits in memory."""

    name, about, share = "SSD-M", "files, page cache of 1/2 of the tables", 0.5
