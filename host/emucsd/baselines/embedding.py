"""EMB-MMIO, EMB-PageSum, EMB-VectorSum: the drive's lookup engine, step by step; the layers stay on the host.

No file system is in the way: the library talks to the drive from user space, as INSIDER's does.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from emucsd.baselines.host import HostMlp, side_by_side
from emucsd.baselines.pagecache import PAGE, page_lbas
from emucsd.drive import Drive
from emucsd.rm.model import Model
from emucsd.rm.weights import Weights
from emucsd.table import Rows, Table, lookup_many
from emucsd.traces import Bags, Batch, Recorded, sums_in_order

_STAGED = 1 << 14  # vectors that come together


def page_alone(table: Table) -> int:
    """What the drive takes for a page of a table while it does nothing else, ns."""
    space, clock = table.namespace, table.drive.clock
    began = clock.now
    space.read(int(page_lbas(table)[0]), PAGE // space.lba_bytes, table.drive.alloc(PAGE))
    return clock.now - began


class EmbMmio(HostMlp):
    """Every vector: the drive reads its page, the CPU loads the vector from the drive's window and adds it.

    A load waits for the device, so one page is under way at a time. Nothing is cached, so each vector costs a page.
    What a page takes is measured once, for each takes as long on a drive that does nothing else (a test holds that to
    the nanosecond); the vectors then come many at a time, to spare the computer a wait for every page.
    """

    name = "EMB-MMIO"
    about = "pages read by MMIO, summed on the host"

    def prepare(self, drive: Drive, model: Model, weights: Weights, before: Recorded) -> None:
        super().prepare(drive, model, weights, before)
        self.page_ns = page_alone(self.tables[0])

    def sls(self, batch: Batch) -> Rows:
        began = self.drive.clock.now
        sums = side_by_side([self._table(table, bags) for table, bags in zip(self.tables, batch.bags, strict=True)])
        counts = [len(bags.indices) for bags in batch.bags]
        self.drive.clock.think(sum(counts) * self.page_ns - (self.drive.clock.now - began))
        loads = (n * self.costs.mmio_rows(table.info.row_bytes) for n, table in zip(counts, self.tables, strict=True))
        adds = sum(n * table.dim for n, table in zip(counts, self.tables, strict=True))
        self.spend_all({"framework": self.costs.operator, "rows": sum(loads) + self.costs.add(adds)})
        return sums

    def _table(self, table: Table, bags: Bags) -> Rows:
        rows = np.empty((len(bags.indices), table.dim), np.float32)
        for at in range(0, len(rows), _STAGED):
            some = bags.indices[at : at + _STAGED]
            rows[at : at + _STAGED] = table.lookup(some, np.arange(len(some)))
        return sums_in_order(rows, Bags(np.arange(len(rows)), bags.offsets))


class _InDrive(HostMlp):
    """Sums made in the drive, one request a table, all under way together."""

    grain: ClassVar[Literal["vector", "page"]]

    def sls(self, batch: Batch) -> Rows:
        self.spend_all({"framework": self.costs.operator, "calls": self.costs.send})
        sums = lookup_many(self.tables, [bags.pair for bags in batch.bags], self.grain)
        self.spend("calls", self.costs.receive)
        return side_by_side(sums)


class EmbPageSum(_InDrive):
    """Whole pages leave the dies."""

    name, about, grain = "EMB-PageSum", "summed in the drive, page reads", "page"


class EmbVectorSum(_InDrive):
    """Only the vectors leave the dies."""

    name, about, grain = "EMB-VectorSum", "summed in the drive, vector reads", "vector"
