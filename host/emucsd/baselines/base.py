"""What every baseline is: prepared on a drive that holds a model's tables, then asked for sums or whole inferences.

Time is the drive's, virtual: what the drive does passes by itself, what the host does is handed to
``spend``. A baseline's answers are computed, never assumed: the harness compares them with NumPy's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from emucsd.baselines.costs import Costs, load_costs
from emucsd.drive import Drive
from emucsd.rm.model import Model
from emucsd.rm.weights import Weights
from emucsd.table import Rows, Table
from emucsd.traces import Batch, Recorded

# What the host's time goes into. Whatever else passes is the drive's.
KINDS = {
    "framework": "the framework's overhead, operator by operator",
    "hits": "lseek and read of every vector, up to the page cache",
    "misses": "the kernel's work for pages that miss",
    "rows": "rows gathered from memory, or over MMIO, and added",
    "calls": "calls into the drive's library: registers, DMA, polls",
    "layers": "the layers' arithmetic",
}


class Baseline(ABC):
    """One way to serve a recommendation model whose tables lie on a drive.

    :cvar name: as the paper calls it
    :cvar about: one line for people
    :cvar overlaps: ``stream`` gets more done than ``infer`` after ``infer``
    :cvar ordered: sums are added in index order, so they are NumPy's bit for bit
    :ivar spent: the host's time by kind, ns
    """

    name: ClassVar[str]
    about: ClassVar[str]
    overlaps: ClassVar[bool] = False
    ordered: ClassVar[bool] = True

    drive: Drive
    model: Model
    weights: Weights
    tables: list[Table]

    def __init__(self, costs: Costs | None = None) -> None:
        self.costs = costs or load_costs()
        self.spent: Counter[str] = Counter()

    def prepare(self, drive: Drive, model: Model, weights: Weights, before: Recorded) -> None:
        """Open the model's tables and get into the state that the log ``before`` leaves. Its time does not count."""
        self.drive, self.model, self.weights = drive, model, weights
        self.tables = model.open_tables(drive)

    @abstractmethod
    def sls(self, batch: Batch) -> Rows:
        """The lookup operators alone. :returns: FP32[samples, tables x dim], sums of table 0, then of table 1 ..."""

    @abstractmethod
    def infer(self, batch: Batch) -> Rows:
        """One batch from inputs to results. :returns: FP32[samples, outputs]"""

    def stream(self, batches: Iterable[Batch]) -> Iterator[Rows]:
        """Batch after batch, as fast as it goes: those that can't overlap batches answer one after the other."""
        for batch in batches:
            yield self.infer(batch)

    def close(self) -> None:
        """Close the tables."""
        for table in self.tables:
            table.close()

    def spend(self, what: str, ns: float) -> None:
        """The host works for so long; ``spent`` sums it up by kind (``KINDS``)."""
        self.spend_all({what: ns})

    def spend_all(self, kinds: Mapping[str, float]) -> None:
        """Several kinds of work one after the other, with nothing of the drive's in between."""
        whole = {what: round(ns) for what, ns in kinds.items()}
        self.spent.update(whole)
        self.drive.clock.think(sum(whole.values()))
