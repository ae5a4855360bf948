"""EMB-MMIO, EMB-PageSum, EMB-VectorSum: the drive's lookup engine, step by step; the layers stay on the host.

No file system is in the way: the library talks to the drive from user space, as INSIDER's does.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from emucsd.baselines.alone import OneByOne
from emucsd.baselines.host import HostMlp, side_by_side
from emucsd.baselines.pagecache import PAGE, page_lbas
from emucsd.drive import Drive
from emucsd.rm.model import Model
from emucsd.rm.weights import Weights
from emucsd.table import Rows, lookup_many
from emucsd.traces import Bags, Batch, Recorded, sums_in_order

_STAGED = 4096  # pages read in one batch of commands


class EmbMmio(HostMlp):
    """Every vector: the drive reads its page, the CPU loads the vector from the drive's window and adds it.

    A load waits for the device, so one page is under way at a time. Nothing is cached, so each vector costs a page.
    """

    name = "EMB-MMIO"
    about = "pages read by MMIO, summed on the host"

    def prepare(self, drive: Drive, model: Model, weights: Weights, before: Recorded) -> None:
        super().prepare(drive, model, weights, before)
        self.lbas = [page_lbas(table) for table in self.tables]
        space = self.tables[0].namespace
        self.pages = OneByOne(drive, space, PAGE // space.lba_bytes)
        self.window: NDArray[np.uint8] = drive.alloc((_STAGED, PAGE))

    def sls(self, batch: Batch) -> Rows:
        sums = side_by_side([self._table(number, bags) for number, bags in enumerate(batch.bags)])
        loads = [
            len(bags.indices) * self.costs.mmio_rows(table.info.row_bytes)
            for table, bags in zip(self.tables, batch.bags, strict=True)
        ]
        adds = sum(len(bags.indices) * table.dim for table, bags in zip(self.tables, batch.bags, strict=True))
        self.spend_all({"framework": self.costs.operator, "rows": sum(loads) + self.costs.add(adds)})
        return sums

    def _table(self, number: int, bags: Bags) -> Rows:
        table = self.tables[number]
        rows = np.empty((len(bags.indices), table.dim), np.float32)
        for at in range(0, len(rows), _STAGED):
            rows[at : at + _STAGED] = self._load(number, bags.indices[at : at + _STAGED])
        return sums_in_order(rows, Bags(np.arange(len(rows)), bags.offsets))

    def _load(self, number: int, ids: NDArray[np.int64]) -> Rows:
        """Rows, each from a page of its own in the window."""
        table = self.tables[number]
        starts = ids * table.info.row_bytes
        window = self.window[: len(ids)]
        self.pages.read(self.lbas[number][starts // PAGE], window)
        lines: Any = window.view(np.float32).reshape(len(ids), -1, table.dim)
        found: Rows = lines[np.arange(len(ids)), starts % PAGE // table.info.row_bytes]
        return found


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
