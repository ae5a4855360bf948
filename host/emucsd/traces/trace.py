"""A trace: what a recommendation model is asked, batch after batch. Sessions, baselines and benchmarks take this shape.

trace = load_criteo("day_0", CRITEO_ROWS)
for batch in trace.batches(128):
    session.send(batch.dense, batch.sparse)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.traces.bags import Bags, Ids, Lookups, joined
from emucsd.traces.errors import TraceError

Dense = NDArray[np.float32]

_COLLECT = 8192  # samples of a batch, where a whole trace is taken


class TableShape(NamedTuple):
    """A table that a trace looks up in; how wide its rows are is the model's matter."""

    name: str
    rows: int


class Batch(NamedTuple):
    """Samples that are asked for together.

    :ivar dense: FP32[samples, dense], or None where the trace has no numbers
    :ivar bags: for each table, one bag a sample
    :ivar labels: FP32[samples], or None where the trace has none
    """

    dense: Dense | None
    bags: tuple[Bags, ...]
    labels: Dense | None = None

    @property
    def samples(self) -> int:
        return self.bags[0].count

    @property
    def sparse(self) -> list[tuple[Ids, Ids]]:
        """(indices, offsets) of each table, as ``torch.nn.EmbeddingBag``, ``Table.lookup`` and sessions take them."""
        return [bags.pair for bags in self.bags]


class Trace:
    """Batches in a fixed order, the same each time; read from where they are kept while one goes over them.

    :ivar name: what it is, for reports
    :ivar tables: that its ids are rows of
    :ivar dense: numbers a sample brings beside its ids; 0: none
    :ivar samples: how many there are; None: not known before they are read
    """

    def __init__(
        self,
        name: str,
        tables: Sequence[TableShape],
        source: Callable[[int], Iterator[Batch]],
        *,
        dense: int = 0,
        samples: int | None = None,
    ) -> None:
        """:param source: gives the batches, from the first on, for a number of samples a batch"""
        self.name, self.tables, self.dense, self.samples = name, tuple(tables), dense, samples
        self._source = source

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of ``size`` samples; the last may be shorter.

        :raises InvalidArgument: ``size`` is below 1
        :raises TraceError: what is read is not what it should be
        """
        if size < 1:
            raise InvalidArgument(f"batches of {size} samples; give at least 1")
        return self._source(size)

    def collected(self, samples: int | None = None) -> Recorded:
        """The first ``samples`` (None: all) in memory. :raises TraceError: there are none"""
        parts: list[Batch] = []
        count = 0
        for batch in self.batches(_COLLECT if samples is None else min(samples, _COLLECT)):
            if samples is not None and count + batch.samples > samples:
                batch = _head(batch, samples - count)
            parts.append(batch)
            count += batch.samples
            if count == samples:
                break
        if not count:
            raise TraceError(f"{self.name}: no samples; is the file empty?")
        lookups = [
            Lookups(shape.name, shape.rows, joined([batch.bags[number] for batch in parts]))
            for number, shape in enumerate(self.tables)
        ]
        return Recorded(
            self.name, lookups, _stacked([b.dense for b in parts]), labels=_stacked([b.labels for b in parts])
        )

    def __repr__(self) -> str:
        samples = "?" if self.samples is None else self.samples
        return f"<{type(self).__name__} {self.name!r}: {samples} samples, {len(self.tables)} tables>"


class Recorded(Trace):
    """A trace in memory: it has a length, parts, and all ids of a table at once.

    :ivar lookups: a table's name, rows and bags, one bag a sample
    """

    samples: int

    def __init__(
        self, name: str, lookups: Sequence[Lookups], numbers: Dense | None = None, *, labels: Dense | None = None
    ) -> None:
        """:raises TraceError: tables of different numbers of samples, or an id that is no row of its table"""
        counts = {some.bags.count for some in lookups} | ({len(numbers)} if numbers is not None else set())
        if len(counts) != 1:
            raise TraceError(f"{name}: {sorted(counts)} samples; every table, and the numbers, need the same, not none")
        for some in lookups:
            ids = some.bags.indices
            if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= some.rows):
                raise TraceError(
                    f"{name}: ids {ids.min()} to {ids.max()} in table {some.name!r}, whose rows are 0 to "
                    f"{some.rows - 1}; give it more rows, or hash the ids into them"
                )
        self.lookups, self.numbers, self.labels = list(lookups), numbers, labels
        super().__init__(
            name,
            [TableShape(some.name, some.rows) for some in lookups],
            self._cut,
            dense=0 if numbers is None else numbers.shape[1],
            samples=counts.pop(),
        )

    @property
    def ids(self) -> int:
        """Row ids of all tables."""
        return sum(len(some.bags.indices) for some in self.lookups)

    def part(self, first: int, last: int) -> Recorded:
        """Samples ``first`` to ``last - 1``."""
        return Recorded(
            self.name,
            [some._replace(bags=some.bags.part(first, last)) for some in self.lookups],
            None if self.numbers is None else self.numbers[first:last],
            labels=None if self.labels is None else self.labels[first:last],
        )

    def split(self, share: float) -> tuple[Recorded, Recorded]:
        """The first ``share`` of the samples, to learn from, and the rest, to test on."""
        at = round(share * self.samples)
        if not 0 < at < self.samples:
            raise InvalidArgument(f"a share of {share:g} of {self.samples} samples leaves one part empty")
        return self.part(0, at), self.part(at, self.samples)

    def _cut(self, size: int) -> Iterator[Batch]:
        for first in range(0, self.samples, size):
            last = min(first + size, self.samples)
            yield Batch(
                None if self.numbers is None else self.numbers[first:last],
                tuple(some.bags.part(first, last) for some in self.lookups),
                None if self.labels is None else self.labels[first:last],
            )


def _head(batch: Batch, samples: int) -> Batch:
    return Batch(
        None if batch.dense is None else batch.dense[:samples],
        tuple(bags.part(0, samples) for bags in batch.bags),
        None if batch.labels is None else batch.labels[:samples],
    )


def _stacked(parts: Sequence[Dense | None]) -> Dense | None:
    """One array, or None where the first is."""
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None
