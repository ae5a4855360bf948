"""RM-SSD and RM-SSD-Naive: the whole model in the drive."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from emucsd.baselines.base import Baseline
from emucsd.baselines.host import side_by_side
from emucsd.drive import Drive
from emucsd.rm.model import Model
from emucsd.rm.session import Session
from emucsd.rm.weights import Weights
from emucsd.table import Rows, lookup_many
from emucsd.traces import Batch, Recorded


class InDrive(Baseline):
    """A session; its mechanisms all on or all off.

    :cvar mechanisms: of ``Session.open``
    """

    mechanisms: ClassVar[dict[str, Any]]
    depth: ClassVar[int]

    def prepare(self, drive: Drive, model: Model, weights: Weights, before: Recorded) -> None:
        super().prepare(drive, model, weights, before)
        self.session = Session.open(
            drive, model, tables=self.tables, weights=weights, depth=self.depth, **self.mechanisms
        )

    def sls(self, batch: Batch) -> Rows:
        """The lookup engine alone: the same as EMB-VectorSum's."""
        self._call()
        sums = lookup_many(self.tables, [bags.pair for bags in batch.bags])
        self.spend("calls", self.costs.receive)
        return side_by_side(sums)

    def infer(self, batch: Batch) -> Rows:
        self._call()
        outputs = self.session.infer(batch.dense, batch.sparse)
        self.spend("calls", self.costs.receive)
        return outputs

    def stream(self, batches: Iterable[Batch]) -> Iterator[Rows]:
        """As many batches under way as the session takes: the next is sent before the last is read."""
        under_way: deque[Any] = deque()
        for batch in batches:
            if len(under_way) == self.depth:
                yield self._read(under_way.popleft())
            self._call()
            under_way.append(self.session.send(batch.dense, batch.sparse))
        while under_way:
            yield self._read(under_way.popleft())

    def _call(self) -> None:
        self.spend_all({"framework": self.costs.operator, "calls": self.costs.send})

    def _read(self, ticket: Any) -> Rows:
        outputs = self.session.read(ticket)
        self.spend("calls", self.costs.receive)
        return outputs

    def close(self) -> None:
        self.session.close()
        super().close()


class RmSsdNaive(InDrive):
    """Everything in the drive, nothing overlapped: one kernel for all layers, one batch at a time."""

    name, about, depth = "RM-SSD-Naive", "whole model in the drive, plain MLP engine", 1
    mechanisms: ClassVar[dict[str, Any]] = {"decompose": False, "compose": False, "search": False, "pipeline": False}


class RmSsd(InDrive):
    """As published."""

    name, about, depth = "RM-SSD", "whole model in the drive", 4
    overlaps = True
    mechanisms: ClassVar[dict[str, Any]] = {"decompose": True, "compose": True, "search": True, "pipeline": True}
