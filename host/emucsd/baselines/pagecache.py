"""The usual way, to compare with: the host reads pages of a table and adds rows itself, with pages cached in DRAM.

The cache is LRU over 4 KiB pages. The host's own work (finding pages, adding rows) takes no time here: no real host can
do better. (``files`` counts it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.errors import InvalidArgument
from emucsd.table import Rows, Table
from emucsd.traces import Bags, sums_in_order
from emucsd_wire.nvme import Io

PAGE = 4096
MOST_MISSES = 4096  # pages that one batch brings

Pages = NDArray[np.int64]


class HostLookup:
    """Lookups in some tables of one drive, summed by the host.

    :param tables: with rows that divide a page
    :param share: of all the tables' pages that the cache holds
    :param depth: page reads in flight
    :raises InvalidArgument: rows that cross pages
    """

    def __init__(self, drive: Drive, tables: Sequence[Table], *, share: float = 0.25, depth: int = 1) -> None:
        if any(PAGE % table.info.row_bytes for table in tables):
            raise InvalidArgument(f"rows of {[t.info.row_bytes for t in tables]} bytes; each must divide {PAGE}")
        self.drive, self.tables, self.depth = drive, list(tables), depth
        self.lba_bytes = tables[0].namespace.lba_bytes
        lbas = [page_lbas(table) for table in tables]
        self.first_page = np.cumsum([0, *(len(some) for some in lbas)])
        self.lbas = np.concatenate(lbas)
        self.capacity = max(int(share * len(self.lbas)), 1)
        # the cache, and behind it the pages that a batch brought
        self.frames = drive.alloc((self.capacity + MOST_MISSES, PAGE))
        self.frame_of = np.full(len(self.lbas), -1, np.int64)
        self.page_in = np.full(self.capacity, -1, np.int64)
        self.used = np.zeros(self.capacity, np.int64)
        self.turn = 0
        self.hits = self.misses = 0

    def warm(self, queries: Sequence[tuple[int, Bags]]) -> None:
        """Fill the cache with the pages that these lookups use most."""
        counts = np.zeros(len(self.lbas), np.int64)
        for number, bags in queries:
            counts += np.bincount(self._pages(number, bags.indices), minlength=len(counts))
        hottest = np.argsort(-counts, kind="stable")[: self.capacity]
        hottest = hottest[counts[hottest] > 0]
        self._fill(hottest[::-1])

    def _fill(self, pages: Pages) -> None:
        """Bring pages into the cache, the last one as the one that was used last."""
        for at in range(0, len(pages), MOST_MISSES):
            some = pages[at : at + MOST_MISSES]
            self.turn += 1
            self._read(some, depth=32)
            self._keep(some)
        self.hits = self.misses = 0

    def lookup(self, queries: Sequence[tuple[int, Bags]]) -> list[Rows]:
        """Sums of one batch. :param queries: (number of the table, its bags)"""
        self.turn += 1
        wanted = np.unique(np.concatenate([self._pages(number, bags.indices) for number, bags in queries]))
        frames = self.frame_of[wanted]
        self.used[frames[frames >= 0]] = self.turn
        missing = wanted[frames < 0]
        if len(missing) > MOST_MISSES:
            raise InvalidArgument(
                f"a batch misses {len(missing)} pages, at most {MOST_MISSES} are read; ask for fewer bags"
            )
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        self._read(missing, self.depth)
        self.frame_of[missing] = self.capacity + np.arange(len(missing))
        sums = [self._sum(number, bags) for number, bags in queries]
        self.frame_of[missing] = -1
        self._keep(missing)
        return sums

    def _pages(self, number: int, indices: NDArray[np.int64]) -> Pages:
        pages: Pages = self.first_page[number] + indices * self.tables[number].info.row_bytes // PAGE
        return pages

    def _read(self, pages: Pages, depth: int) -> None:
        """Bring pages to the staged frames, in this order."""
        if len(pages):
            space, blocks = self.tables[0].namespace, PAGE // self.lba_bytes
            staged = self.frames[self.capacity : self.capacity + len(pages)]
            space.submit(Io.READ, self.lbas[pages], staged, blocks=blocks, depth=depth, latencies=False).check()

    def _keep(self, pages: Pages) -> None:
        """Staged pages take the places of those that were not used for longest."""
        kept = pages[: self.capacity]
        if not len(kept):
            return
        victims = np.argsort(self.used, kind="stable")[: len(kept)]
        old = self.page_in[victims]
        self.frame_of[old[old >= 0]] = -1
        self.frames[victims] = self.frames[self.capacity : self.capacity + len(kept)]
        self.page_in[victims], self.frame_of[kept], self.used[victims] = kept, victims, self.turn

    def _sum(self, number: int, bags: Bags) -> Rows:
        table = self.tables[number]
        a_page = PAGE // table.info.row_bytes
        rows: Any = self.frames.reshape(-1).view(np.float32).reshape(-1, table.dim)
        places = self.frame_of[self._pages(number, bags.indices)] * a_page + bags.indices % a_page
        return sums_in_order(rows, Bags(places, bags.offsets))


def page_lbas(table: Table) -> Pages:
    """The first LBA of every page of a table; extents are whole pages."""
    lba_bytes = table.namespace.lba_bytes
    blocks = PAGE // lba_bytes
    lbas = np.concatenate([np.arange(slba, slba + count, blocks) for slba, count in table.info.extents])
    return lbas[: -(-table.info.size // PAGE)].astype(np.int64)
