"""DRAM: all tables in the host's memory, the figure that no drive is expected to reach."""

from __future__ import annotations

from emucsd.baselines.host import HostMlp, side_by_side
from emucsd.drive import Drive
from emucsd.rm.model import Model
from emucsd.rm.weights import Weights
from emucsd.table import Rows
from emucsd.traces import Batch, Recorded, sums_in_order


class Dram(HostMlp):
    """Rows gathered from DRAM and added, table after table."""

    name = "DRAM"
    about = "all tables in the host's memory"

    def prepare(self, drive: Drive, model: Model, weights: Weights, before: Recorded) -> None:
        super().prepare(drive, model, weights, before)
        self.rows = [table.read_rows() for table in self.tables]

    def sls(self, batch: Batch) -> Rows:
        rows = [
            self.costs.gather(len(bags.indices), table.info.row_bytes)
            for table, bags in zip(self.tables, batch.bags, strict=True)
        ]
        self.spend_all({"framework": self.costs.operator * len(self.tables), "rows": sum(rows)})
        return side_by_side([sums_in_order(rows, bags) for rows, bags in zip(self.rows, batch.bags, strict=True)])
