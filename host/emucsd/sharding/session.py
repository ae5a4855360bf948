"""Inference over several drives: tables spread by load, each drive sums its own, the layers run on the host.

Where the layers run is a choice. A drive's engine joins layers with the sums of its own tables only, and drives have no
way to each other; so either the host runs the layers, or it would carry the sums from drive to drive. The sums must
cross the host's link anyway (for RMC1 1 KiB a sample beside 2.5 KiB of ids; for RMC2 8 KiB), so the host, which then
has all of a sample's sums and plenty of arithmetic, runs them: nothing waits for a second crossing. This pays where
tables are the bottleneck (RMC1, RMC2). A model whose layers are (RMC3, WnD, NCF) is better served by a whole session on
each drive, batches in turn: there its tables are small enough to lie on both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.baselines.costs import load_costs
from emucsd.baselines.host import mlp_ns
from emucsd.errors import EmucsdError, InvalidArgument
from emucsd.rm.inputs import SparseLike, checked
from emucsd.rm.model import Layer, Model
from emucsd.rm.reference import interact, run_layers
from emucsd.rm.session import Session, Ticket
from emucsd.rm.weights import Weights
from emucsd.sharding.table import ShardedTables

Floats = NDArray[np.float32]


class ShardedTicket:
    """A batch that was sent to all drives."""

    def __init__(self, dense: Floats | None, parts: dict[int, Ticket], samples: int) -> None:
        self.dense, self.parts, self.samples = dense, parts, samples
        self.out: Floats | None = None


class ShardedSession:
    """A model over a fleet. Make one with ``open``; close it, or use it in a ``with``.

    :ivar model: whose shape it has
    :ivar tables: where each of its tables lies
    """

    def __init__(self, model: Model, weights: Weights, tables: ShardedTables, sessions: dict[int, Session]) -> None:
        """``open`` is the one to call."""
        self.model, self.tables, self._weights, self._sessions = model, tables, weights, sessions
        self.fleet = tables.fleet
        self.depth = min(session.depth for session in sessions.values())
        self._held = {number: [f"the session of {session.model.name}"] for number, session in sessions.items()}

    @classmethod
    def open(
        cls, model: Model, tables: ShardedTables, weights: Weights, *, depth: int = 4, **options: Any
    ) -> ShardedSession:
        """Open each drive's part of a model.

        :param tables: the model's, in its order
        :param depth: batches in flight on each drive
        :param options: as ``Session.open`` takes them
        :raises InvalidArgument: another number of tables
        :raises ShardLost: a drive is gone
        """
        if len(tables.tables) != len(model.tables):
            raise InvalidArgument(f"{len(tables.tables)} tables; {model.name} has {len(model.tables)}")
        checked_weights = Weights.of(model, weights.layers)
        calls = {n: _opening(model, tables, n, mine, {"depth": depth, **options}) for n, mine in tables.on.items()}
        return cls(model, checked_weights, tables, tables.fleet.each(calls))

    def send(self, dense: ArrayLike | None, sparse: SparseLike) -> ShardedTicket:
        """Send a batch to every drive; come back once it is on its way.

        :param dense, sparse: as ``Session.send`` takes them
        :raises InputError: not the model's shapes; nothing was sent
        :raises ShardLost: a drive is gone
        """
        features, ids = checked(self.model, dense, sparse)

        def sending(number: int) -> Callable[[], Ticket]:
            mine = []
            for table in self.tables.on[number]:
                part: tuple[Any, ...] = (ids.table(table), ids.bounds[table, :-1])
                mine.append(part if ids.weights is None else (*part, ids.weights[table]))
            return lambda: self._sessions[number].send(None, mine)

        parts = self.fleet.each({number: sending(number) for number in self._sessions}, self._held)
        return ShardedTicket(features, parts, ids.samples)

    def read(self, ticket: ShardedTicket) -> Floats:
        """Wait for all drives, then run the layers: FP32[samples, outputs]. May be repeated.

        In virtual time the layers cost what ``baselines/costs.toml`` says of the host; drives go on meanwhile.

        :raises ShardLost: a drive is gone
        :raises EmucsdError: as ``Session.read``
        """
        if ticket.out is None:
            calls = {n: partial(self._sessions[n].read, part) for n, part in ticket.parts.items()}
            parts = self.fleet.each(calls, self._held)
            ticket.out = self._layers(ticket, parts)
        return ticket.out

    def _layers(self, ticket: ShardedTicket, parts: dict[int, Floats]) -> Floats:
        sums: dict[int, Floats] = {}
        for number, found in parts.items():
            widths = [self.model.tables[table].dim for table in self.tables.on[number]]
            cut = np.split(found, np.cumsum(widths)[:-1], axis=1)
            sums |= dict(zip(self.tables.on[number], cut, strict=True))
        if self.fleet.virtual:
            self.fleet.think(round(sum(mlp_ns(load_costs(), self.model, ticket.samples))))
        bottom, layers_of = len(self.model.bottom), self._weights.layers
        lowest = np.zeros((ticket.samples, 0), np.float32) if ticket.dense is None else ticket.dense
        joined = interact(
            self.model,
            run_layers(self.model, 0, layers_of[:bottom], lowest),
            [sums[table] for table in range(len(self.model.tables))],
        )
        return run_layers(self.model, bottom, layers_of[bottom:], joined)

    def infer(self, dense: ArrayLike | None, sparse: SparseLike) -> Floats:
        """``send`` and ``read``."""
        return self.read(self.send(dense, sparse))

    def stream(self, batches: Iterable[tuple[ArrayLike | None, SparseLike]]) -> Iterator[Floats]:
        """Outputs of batches, in order, with ``depth`` in flight."""
        tickets: deque[ShardedTicket] = deque()
        for dense, sparse in batches:
            tickets.append(self.send(dense, sparse))
            if len(tickets) >= self.depth:
                yield self.read(tickets.popleft())
        while tickets:
            yield self.read(tickets.popleft())

    def close(self) -> None:
        """Close it on every drive that can be reached. The tables stay open. Harmless when repeated."""
        for session in self._sessions.values():
            try:
                session.close()
            except EmucsdError:  # a drive that is gone has closed it
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opening(
    model: Model, tables: ShardedTables, number: int, mine: Sequence[int], options: dict[str, Any]
) -> Callable[[], Session]:
    shapes = tuple(model.tables[table] for table in mine)
    top = Layer(sum(shape.dim for shape in shapes), 1, "none")  # a model has one; with mlp=False it never runs
    part = Model(f"{model.name}, drive {number}", 0, (), shapes, "cat", (top,))
    return lambda: Session.open(
        tables.fleet.drives[number], part, tables=[tables.tables[table] for table in mine], mlp=False, **options
    )
