"""A session: a model that runs whole in the drive. Inputs go in, outputs come out, several batches at a time.

    with Session.open(drive, model, tables=tables, weights=weights) as session:
        clicks = session.infer(dense, sparse)
        for clicks in session.stream(batches):  # the next batches go in while this one is computed
            ...

``RM_SEND`` carries inputs and ``RM_READ`` waits in the drive for outputs, so a session works alike over the direct
client and over Linux's nvme driver.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.drive import Drive
from emucsd.errors import EmucsdError, InvalidArgument
from emucsd.outcome import Columns
from emucsd.rm.errors import ModelError, SessionBusy, SessionClosed
from emucsd.rm.flight import Batch, Flight, Slot
from emucsd.rm.info import SessionInfo
from emucsd.rm.inputs import Sparse, SparseLike, checked
from emucsd.rm.model import Model
from emucsd.rm.opening import open_session, tables_of, watched
from emucsd.rm.payload import Limits, Part, Writer
from emucsd.rm.refusal import explain
from emucsd.rm.registers import registers_of
from emucsd.rm.weights import LayerWeights, Weights
from emucsd.table import Table
from emucsd_wire.nvme import SQE, Io
from emucsd_wire.rm import MAX_DEPTH, MAX_RM_PAYLOAD, MAX_SAMPLES, RM_INFO_BYTES, RmAdmin, RmFlag, weight_bytes

Floats = NDArray[np.float32]
Fpga = Literal["profile", "XCVU9P", "XC7A200T"]

_CLOSING_SECONDS = 5.0
_BUFFERS = 1 << 28  # bytes for the rows and outputs of the batches in flight; the drive takes four times as many


class Ticket:
    """A batch that was sent; ``session.read(ticket)`` gives its outputs.

    :ivar samples: of it
    """

    def __init__(self, session: Session, batch: Batch) -> None:
        self._session, self._batch = session, batch
        self.samples = batch.sparse.samples

    @property
    def ready(self) -> bool:
        """Whether the outputs are there, so that ``read`` need not wait: seen in the session's registers, without a
        command. Through Linux, which hides them: once they were read."""
        return not self._batch.left or self._session._ended(self._batch)

    def read(self) -> Floats:
        """See ``Session.read``."""
        return self._session.read(self)


class Session:
    """An open session. Make one with ``open``; close it, or use it in a ``with``. Threads take turns.

    :ivar model: whose shape it has
    :ivar tables: open tables, one for each of the model's
    :ivar max_samples: that one command carries; larger batches are cut
    """

    def __init__(
        self, drive: Drive, model: Model, tables: list[Table], number: int, flight: Flight, writer: Writer, *, mlp: bool
    ) -> None:
        """``open`` is the one to call."""
        self.drive, self.model, self.tables = drive, model, tables
        self.max_samples = writer.limits.samples
        self._number, self._flight, self._writer, self._mlp = number, flight, writer, mlp
        self._lock = threading.RLock()
        self._closed = ""
        self._own_tables: list[Table] = []
        self._nsid = tables[0].namespace.nsid
        self._watched = [table for table in tables if watched(table)]

    @classmethod
    def open(
        cls,
        drive: Drive,
        model: Model,
        *,
        tables: Sequence[Table | str] | None = None,
        weights: Weights | None = None,
        depth: int = 4,
        decompose: bool = True,
        compose: bool = True,
        search: bool = True,
        pipeline: bool = True,
        mlp: bool = True,
        grain: Literal["vector", "page"] = "vector",
        fpga: Fpga = "profile",
        minibatch: int | None = None,
        consistent: bool = True,
        mmio: bool = False,
    ) -> Session:
        """Open a model on a drive.

        :param tables: open tables, or names to open; None: those that ``model.create_tables`` named
        :param weights: of the layers; None: ``load`` brings them before the first batch
        :param depth: batches in flight, 1 to 8; without ``pipeline`` one
        :param decompose, compose, search, pipeline: mechanisms of the engine; False leaves one out
        :param mlp: False: no layers; the answers are the tables' sums side by side
        :param grain: what leaves the flash's page register: each vector's own bytes, or its whole page
        :param fpga: whose resources the kernels must fit
        :param minibatch: samples of a mini-batch, at most; larger batches are cut. None: as the kernel search finds
        :param consistent: send a batch again when a table was updated or swapped while it was under way, so that no
            answer mixes versions
        :param mmio: leave each batch's parameters in the session's registers, as published; Linux hides those
        :raises ModelError: tables of another shape than the model's, or a model that the drive does not take
        :raises BudgetExceeded: the FPGA is too small for it
        :raises DramExceeded: weights beyond the drive's memory
        :raises SessionsFull: all sessions of the drive are in use
        :raises WeightsMissing: ``weights`` lack layers
        :raises NameUnknown: a table's name
        """
        _check_options(drive, depth, grain, mmio, minibatch)
        switches = (decompose, compose, search, pipeline, grain == "page", not mlp)
        flags = sum(flag for flag, on in zip(RmFlag, switches, strict=True) if on)
        own: list[Table] = []
        try:
            opened = tables_of(drive, model, tables, own)
            session = cls._open(
                drive, model, opened, flags, depth if pipeline else 1, fpga, mlp, consistent, mmio, minibatch
            )
            session._own_tables = own
        except BaseException:
            for table in own:
                table.close()
            raise
        if weights is not None and mlp:
            try:
                session.load(weights)
            except BaseException:
                session.close()
                raise
        return session

    @classmethod
    def _open(
        cls,
        drive: Drive,
        model: Model,
        tables: list[Table],
        flags: int,
        depth: int,
        fpga: str,
        mlp: bool,
        again: bool,
        mmio: bool,
        minibatch: int | None,
    ) -> Session:
        width = model.outputs if mlp else sum(table.dim for table in model.tables)
        most = min(MAX_RM_PAYLOAD, drive.max_transfer) & ~7
        samples = min(MAX_SAMPLES, most // (4 * width), minibatch or MAX_SAMPLES)
        if samples < 1:
            raise ModelError(f"{model.name}: {width} outputs a sample; a command carries {most // 4}")
        writer = Writer(model, Limits(most, samples), dense=model.dense if mlp else 0)
        buffered = _BUFFERS // (4 * depth * (model.interaction_width + width))  # rows and outputs in the drive
        limits = Limits(most, max(1, min(samples, buffered, 2 * writer.most_samples(model.lookups))))
        writer = Writer(model, limits, dense=model.dense if mlp else 0)
        number = open_session(drive, model, tables, flags, depth, limits.samples, fpga)
        try:
            nsid = tables[0].namespace.nsid
            slots = [Slot(drive, place, number, nsid, most, limits.samples * width) for place in range(depth + 1)]
        except BaseException:
            drive.passthrough("admin", RmAdmin.RM_CLOSE, cdw11=number, check=False)
            raise

        def told(batch: Batch, part: Part, command: str, status: int, dw0: int) -> EmucsdError:
            return explain(model, tables, batch.sparse, part, command, status, dw0)

        flight = Flight(drive, slots, width, told, again=again, registers=registers_of(drive, number), mmio=mmio)
        return cls(drive, model, tables, number, flight, writer, mlp=mlp)

    # -- weights

    def load(self, weights: Weights) -> None:
        """Bring the layers' weights into the drive. Batches under way are waited for first, and keep the old ones.

        :raises ModelError: of another shape than the model's
        :raises WeightsMissing: fewer layers
        """
        checked_weights = Weights.of(self.model, weights.layers)
        with self._lock:
            self._check()
            self._flight.finish_all()
            for number, layer in enumerate(checked_weights.layers):
                self._load_layer(number, layer)

    def _load_layer(self, number: int, layer: LayerWeights) -> None:
        shape = self.model.layers[number]
        size = weight_bytes(shape.inputs, shape.outputs)
        with self.drive.borrow(size // 4, np.float32) as data:
            matrix = layer.weight.size
            data[:matrix], data[matrix:] = layer.weight.reshape(-1), layer.bias
            piece = self._writer.limits.size
            starts = np.arange(0, size, piece)
            sizes = np.minimum(size - starts, piece)
            rows = np.zeros(len(starts), SQE.dtype)
            rows["opcode"], rows["nsid"], rows["cdw10"], rows["cdw11"] = Io.RM_WEIGHTS, self._nsid, self._number, number
            rows["cdw12"], rows["cdw13"] = sizes, starts
            columns = Columns(rows, addresses=data.ctypes.data + starts, sizes=sizes, data=(data,), results=True)
            outcome = self._flight.queue.submit(columns, depth=8)
        if outcome.failed and outcome.results is not None:
            place = outcome.first_failed
            dw0 = int(outcome.results[place]) & 0xFFFF_FFFF
            raise explain(self.model, self.tables, None, None, "RM_WEIGHTS", int(outcome.statuses[place]), dw0)

    # -- batches

    def send(self, dense: ArrayLike | None, sparse: SparseLike, *, wait: bool = True) -> Ticket:
        """Send a batch; come back once it is on its way. Where ``depth`` are in flight, the oldest is read first.

        :param dense: FP32[samples, model.dense]; None for a model without
        :param sparse: ids: whole numbers [samples, tables, n]; or for each table ``(indices, offsets)``,
            ``(indices, offsets, weights)`` or ``[samples, n]``. Offsets are one a sample, or with the end as well
        :param wait: False: raise SessionBusy rather than wait for a batch in flight
        :raises InputError: not the model's shapes; nothing was sent
        :raises IndexOutOfRangeOfTable: an id that no table of any size has; what the drive finds, ``read`` raises
        :raises SessionBusy: ``wait`` is False and too many batches are in flight
        :raises SessionClosed: it is
        """
        if self._mlp:
            features, ids = checked(self.model, dense, sparse)
        else:
            features, ids = None, Sparse.of(len(self.model.tables), sparse)
        parts = self._writer.parts(ids)
        with self._lock:
            self._check()
            if not wait and len(parts) > self._flight.free:
                raise SessionBusy(f"{len(self._flight)} batches are in flight; read one, or let send() wait")
            self._verify(sync=True)
            batch = Batch(ids, len(parts), self._flight.width)
            tried = 0
            try:
                for part in parts:
                    slot = self._flight.slot()
                    try:
                        filled = self._writer.write(slot.payload, features, ids, part)
                    except BaseException:
                        self._flight.give_back(slot)
                        raise
                    tried += 1
                    self._flight.send(batch, part, slot, filled)
            except BaseException:
                batch.left -= len(parts) - tried  # these are never sent: nobody is to wait for them
                raise
        return Ticket(self, batch)

    def read(self, ticket: Ticket) -> Floats:
        """Wait for a batch's outputs: FP32[samples, outputs], in memory of its own. May be repeated.

        :raises IndexOutOfRangeOfTable: an id names no row: ``table``, ``position`` among its indices, ``value``
        :raises RowUnreadable: the flash has lost a row
        :raises WeightsMissing: layers have none yet
        :raises TableClosed: a table is no longer open on the drive
        :raises SessionClosed: before the batch was done
        :raises InvalidArgument: another session's ticket
        """
        if ticket._session is not self:
            raise InvalidArgument("this ticket is another session's; each session reads its own")
        batch = ticket._batch
        with self._lock:
            if batch.left:
                self._check()
                self._flight.finish(batch)
                self._verify(sync=False)
        if batch.error is not None:
            raise batch.error
        return batch.out

    def infer(self, dense: ArrayLike | None, sparse: SparseLike) -> Floats:
        """``send`` and ``read``."""
        return self.read(self.send(dense, sparse))

    def stream(self, batches: Iterable[tuple[ArrayLike | None, SparseLike]]) -> Iterator[Floats]:
        """Outputs of batches, in order, with as many in flight as the session takes.

        :param batches: pairs (dense, sparse)
        """
        tickets: deque[Ticket] = deque()
        for dense, sparse in batches:
            tickets.append(self.send(dense, sparse))
            while tickets and (not tickets[0]._batch.left or len(tickets) > self._flight.depth):
                yield self.read(tickets.popleft())
        while tickets:
            yield self.read(tickets.popleft())

    def prefetch(self, sparse: SparseLike) -> None:
        """Have the rows of a batch to come read into the drive's cache of hot rows; returns at once.

        :raises InputError: not the model's shapes
        :raises InvalidArgument: the drive has no such cache (``lookup.cache_rows``)
        """
        ids = Sparse.of(len(self.model.tables), sparse)
        for number, table in enumerate(self.tables):
            table.prefetch(ids.table(number))

    # -- state

    @property
    def depth(self) -> int:
        """Batches that may be in flight."""
        return self._flight.depth

    @property
    def in_flight(self) -> int:
        """Commands' batches that were sent and not read yet."""
        return len(self._flight)

    @property
    def info(self) -> SessionInfo:
        """The mapping onto the engine, and the drive's counters. :raises SessionClosed: it is"""
        with self._lock:
            self._check()
            answer = self.drive.passthrough(
                "admin", RmAdmin.RM_INFO, length=RM_INFO_BYTES, cdw10=RM_INFO_BYTES, cdw11=self._number, check=False
            )
            if answer.status & 0x7FF:
                raise explain(self.model, self.tables, None, None, "RM_INFO", answer.status, answer.dw0)
            return SessionInfo.unpack(answer.data.tobytes())

    def _ended(self, batch: Batch) -> bool:
        with self._lock:
            return not self._closed and self._flight.ended(batch)

    def _verify(self, *, sync: bool) -> None:
        """Tables that are files: they lie where they did."""
        for table in self._watched:
            table.verify(sync=sync)

    def _check(self) -> None:
        if self._closed:
            raise SessionClosed(self._closed)
        if not any(queue is self._flight.queue for queue in self.drive.queues):
            self._closed = f"session of {self.model.name}: the controller was reset; Session.open opens it again"
            self._flight.drop(SessionClosed(self._closed), 0.0)
            raise SessionClosed(self._closed)

    def close(self) -> None:
        """Close it on the drive, and tables that it opened itself. Batches in flight are dropped."""
        with self._lock:
            if self._closed:
                return
            self._closed = f"the session of {self.model.name} is closed; Session.open opens another"
            with suppress(EmucsdError):
                self.drive.passthrough("admin", RmAdmin.RM_CLOSE, cdw11=self._number, check=False)
            self._flight.drop(SessionClosed(self._closed), _CLOSING_SECONDS)
            for table in self._own_tables:
                with suppress(EmucsdError):
                    table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.in_flight} of {self.depth} batches in flight"
        return f"<Session of {self.model.name}: {state}>"


def _check_options(drive: Drive, depth: int, grain: str, mmio: bool, minibatch: int | None) -> None:
    if not 1 <= depth <= MAX_DEPTH:
        raise InvalidArgument(f"depth {depth}: 1 to {MAX_DEPTH} batches may be in flight")
    if minibatch is not None and minibatch < 1:
        raise InvalidArgument(f"minibatch {minibatch}: at least one sample")
    if mmio and registers_of(drive, 0) is None:
        raise InvalidArgument("mmio=True: a session's registers are in reach of the direct client only, not of Linux's")
    if grain not in ("vector", "page"):
        raise InvalidArgument(f"grain {grain!r}: 'vector' or 'page'")
