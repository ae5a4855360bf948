"""A lookup as commands: bags cut into requests that fit a command, sent ahead, read behind.

While the drive works on one group of requests the next one is sent: a batch holds the LOOKUP_SENDs of a group and the
LOOKUP_READs of the group before it, whose SENDs have completed. A bag that is longer than a command goes on in the next
one from the sums so far, so the order of additions stays that of the ids.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from emucsd.bags import Ids, Weights
from emucsd.drive import Drive
from emucsd.errors import BufferExhausted, EmucsdError, InvalidArgument, InvalidCommand, QueueFull, error_for
from emucsd.outcome import Columns
from emucsd.passthrough import entry
from emucsd_wire.nvme import SQE, Io, Status
from emucsd_wire.vendor import (
    LOOKUP_HEADER,
    MAX_PAYLOAD,
    MAX_RESULT,
    MAX_TAGS,
    Grain,
    LookupFlag,
    LookupHeader,
    ids_offset,
    weights_offset,
)

Sums = NDArray[np.float32]

IDS = 16384  # of one request, where bags allow it: some hundred us of the drive's work
GROUP = 32  # requests, at most, that are sent while as many others are read
GROUP_IDS = 8 * IDS
_MOST_BAGS = 65536
_TRIES = 100  # of a lookup whose table changes meanwhile
_MIXED = -1


class IndexOutOfRange(EmucsdError, IndexError):
    """An id names no row of the table. ``position`` is that of the first such id, ``value`` the id."""

    def __init__(self, position: int, value: int, rows: int) -> None:
        super().__init__(f"indices[{position}] = {value}; the table's rows are 0 to {rows - 1}")
        self.position, self.value, self.rows = position, value, rows


class RowUnreadable(EmucsdError):
    """The flash has lost a row that a bag needs. ``position`` is its id's among the indices, ``value`` the id."""

    def __init__(self, position: int, value: int) -> None:
        super().__init__(f"row {value} (indices[{position}]) cannot be read from flash; write it again (write_rows)")
        self.position, self.value = position, value


class TableChanging(EmucsdError):
    """A lookup of several commands met other rows in each: the table was updated or swapped meanwhile, every time."""


class OpenTable(NamedTuple):
    """What a lookup needs to know of a table that is open on the drive."""

    nsid: int
    handle: int
    rows: int
    dim: int


class Query(NamedTuple):
    """Bags of one table, and FP32[bags, dim] in the drive's memory for their sums."""

    table: OpenTable
    indices: Ids
    offsets: Ids  # bags + 1, rising
    out: Sums
    weights: Weights | None = None  # one an id
    mean: bool = False


class Part(NamedTuple):
    """A request: whole bags of a query, or a piece of a long one."""

    first_bag: int
    bags: int
    first_id: int
    ids: int
    carry: bool = False  # goes on from the sums of the bag's piece before it


class Limits(NamedTuple):
    """Of one request, so that its data and its sums fit a command each."""

    bags: int
    ids: int  # where there are several bags
    longest: int  # ids of a bag alone, carry and all

    @classmethod
    def of(cls, dim: int, most: int, weighted: bool = False) -> Limits:
        """:param most: bytes that the way to the drive carries in one command"""
        each = 12 if weighted else 8
        room = min(most, MAX_PAYLOAD) - ids_offset(1, dim, carry=True) - (8 if weighted else 0)
        bags = min(min(most, MAX_RESULT) // (4 * dim), room // 8, _MOST_BAGS)
        if bags < 1 or room < 2 * each:
            raise InvalidArgument(f"commands of {most} bytes carry no sum of {dim} elements; use narrower rows")
        return cls(bags, min(IDS, room // (2 * each)), room // each)


def parts(offsets: Ids, dim: int, most: int = MAX_RESULT, weighted: bool = False) -> Iterator[Part]:
    """A query's requests, in order, of commands of ``most`` bytes."""
    limits = Limits.of(dim, most, weighted)
    bag, bags = 0, len(offsets) - 1
    while bag < bags:
        start = int(offsets[bag])
        end = int(np.searchsorted(offsets, start + limits.ids, "right")) - 1
        end = min(max(end, bag + 1), bag + limits.bags, bags)
        ids = int(offsets[end]) - start
        if ids <= limits.longest:
            yield Part(bag, end - bag, start, ids)
        else:
            for at in range(0, ids, limits.longest):
                yield Part(bag, 1, start + at, min(limits.longest, ids - at), carry=at > 0)
        bag = end


def groups(queries: Sequence[Query], most: int = MAX_RESULT) -> Iterator[list[tuple[Query, Part]]]:
    """All requests in order, in groups that fit the tags; one with a carry begins a group."""
    group: list[tuple[Query, Part]] = []
    ids = 0
    for query in queries:
        for part in parts(query.offsets, query.table.dim, most, query.weights is not None):
            if group and (len(group) == GROUP or ids + part.ids > GROUP_IDS or part.carry):
                yield group
                group, ids = [], 0
            group.append((query, part))
            ids += part.ids
    if group:
        yield group


class _Request(NamedTuple):
    """A part under way."""

    query: Query
    part: Part
    tag: int
    payload: NDArray[np.uint8]
    sums: Sums


class Lookups:
    """Lookup commands on one attached drive. Any thread may use it; each takes tags of its own."""

    def __init__(self, drive: Drive) -> None:
        self._drive = weakref.ref(drive)
        self._lock = threading.Lock()
        self._tags = list(range(MAX_TAGS))[::-1]

    def run(self, queries: Sequence[Query], grain: Grain) -> None:
        """Look up every bag of every query into its ``out``. A table's sums are all of one version of it.

        :raises IndexOutOfRange: the drive found an id that names no row
        :raises RowUnreadable: a row is lost
        :raises TableChanging: it was changed again and again meanwhile
        :raises NvmeError: the drive refused for another reason
        """
        drive = self._drive()
        assert drive is not None, "the drive that this belongs to is gone"
        cut = [_cut(query, drive.max_transfer) for query in queries]
        sent = [query._replace(mean=query.mean and not long) for query, long in zip(queries, cut, strict=True)]
        for _ in range(_TRIES):
            if self._all(drive, sent, grain):
                break
        else:
            names = sorted({query.table.handle for query in queries})
            raise TableChanging(f"tables {names} changed during each of {_TRIES} tries; look up fewer bags at a time")
        for query, long in zip(queries, cut, strict=True):
            if query.mean and long:
                counts = np.maximum(np.diff(query.offsets), 1).astype(np.float32)
                query.out[...] /= counts[:, None]

    def _all(self, drive: Drive, queries: Sequence[Query], grain: Grain) -> bool:
        """Once through. :returns: whether each table's sums are all of one version"""
        versions: dict[int, int] = {}
        sending: list[_Request] = []
        reading: list[_Request] = []
        try:
            for group in [*groups(queries, drive.max_transfer), []]:
                if group and group[0][1].carry:  # it starts from sums that are not here yet
                    self._round(drive, [], reading, versions)
                    reading = []
                for query, part in group:
                    sending.append(self._prepare(drive, query, part, grain))
                self._round(drive, sending, reading, versions)
                reading, sending = sending, []
        except BaseException:
            self._drop(drive, [*reading, *sending])
            raise
        return _MIXED not in versions.values()

    def prefetch(self, table: OpenTable, ids: Ids) -> None:
        """Have rows read into the drive's cache of hot rows; it goes on when this has returned.

        :raises IndexOutOfRange: an id names no row
        :raises InvalidArgument: the drive has no such cache
        """
        drive = self._drive()
        assert drive is not None, "the drive that this belongs to is gone"
        none = np.empty((0, table.dim), np.float32)
        query = Query(table, ids, np.array([0, len(ids)], np.int64), none)
        for first in range(0, len(ids), IDS):
            part = Part(0, 1, first, min(IDS, len(ids) - first))
            request = self._prepare(drive, query, part, Grain.VECTOR, LookupFlag.PREFETCH)
            try:
                self._round(drive, [request], [], {})
            except InvalidCommand as error:
                raise InvalidArgument(
                    "the drive has no cache of hot rows; start it with settings={'lookup.cache_rows': …}"
                ) from error
            finally:
                self._give([request])

    def _prepare(self, drive: Drive, query: Query, part: Part, grain: Grain, more: int = 0) -> _Request:
        """Write a request's data."""
        table = query.table
        ids = query.indices[part.first_id : part.first_id + part.ids]
        narrow = not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < 1 << 32)
        dtype, width = (np.uint32, 4) if narrow else (np.int64, 8)
        sums = query.out[part.first_bag : part.first_bag + part.bags]
        start = ids_offset(part.bags, table.dim, part.carry)
        end = start + width * part.ids
        behind = weights_offset(start, part.ids, width) if query.weights is not None else end
        payload = drive.alloc(end if query.weights is None else behind + 4 * part.ids)
        flags = more | (LookupFlag.CARRY if part.carry else 0) | (LookupFlag.MEAN if query.mean else 0)
        flags |= 0 if query.weights is None else LookupFlag.WEIGHTED
        header = LookupHeader(table.handle, grain, width, flags, part.bags, part.ids, bytes(16))
        payload[: LOOKUP_HEADER.size] = np.frombuffer(LOOKUP_HEADER.pack(header), np.uint8)
        at = LOOKUP_HEADER.size
        if part.carry:
            payload[at : at + sums.nbytes] = sums.reshape(-1).view(np.uint8)
            at += sums.nbytes
        bounds = query.offsets[part.first_bag : part.first_bag + part.bags + 1] - part.first_id
        payload[at:start] = 0
        payload[at : at + 4 * (part.bags + 1)].view(np.uint32)[:] = np.clip(bounds, 0, part.ids)
        payload[start:end].view(dtype)[:] = ids
        if query.weights is not None:
            payload[end:behind] = 0
            payload[behind:].view(np.float32)[:] = query.weights[part.first_id : part.first_id + part.ids]
        return _Request(query, part, self._take(), payload, sums)

    def _round(
        self, drive: Drive, sending: Sequence[_Request], reading: Sequence[_Request], versions: dict[int, int]
    ) -> None:
        """One batch: send these requests, read those, whose tags are then free. :raises NvmeError: as ``run``

        :param versions: of each table so far, by handle; _MIXED where it had several
        """
        everything = [*sending, *reading]
        if not everything:
            return
        templates = np.zeros(len(everything), SQE.dtype)
        templates["opcode"][: len(sending)], templates["opcode"][len(sending) :] = Io.LOOKUP_SEND, Io.LOOKUP_READ
        templates["cdw10"] = [request.tag for request in everything]
        templates["nsid"] = [request.query.table.nsid for request in everything]
        arrays: list[NDArray[Any]] = [*(request.payload for request in sending), *(request.sums for request in reading)]
        sizes = [array.nbytes for array in arrays]
        templates["cdw12"] = sizes
        columns = Columns(
            templates,
            addresses=[array.ctypes.data for array in arrays],
            sizes=sizes,
            data=tuple(arrays),
            latencies=False,
            results=True,
        )
        outcome = drive.queue.submit(columns, depth=len(everything))
        if outcome.failed and outcome.results is not None:
            first = outcome.first_failed
            _fail(everything[first], int(outcome.statuses[first]), int(outcome.results[first]) & 0xFFFF_FFFF)
        assert outcome.results is not None
        for request, result in zip(reading, outcome.results[len(sending) :], strict=True):
            handle, version = request.query.table.handle, int(result) & 0xFFFF_FFFF
            versions[handle] = version if versions.get(handle, version) == version else _MIXED
        self._give(reading)

    # -- tags

    def _take(self) -> int:
        with self._lock:
            if not self._tags:
                raise QueueFull(f"all {MAX_TAGS} lookup tags are in use; let fewer threads look up at a time")
            return self._tags.pop()

    def _give(self, requests: Sequence[_Request]) -> None:
        with self._lock:
            self._tags += [request.tag for request in requests]

    def _drop(self, drive: Drive, requests: Sequence[_Request]) -> None:
        """Free the tags of requests that will not be read; where the drive does not answer, they stay taken."""
        with suppress(EmucsdError):
            for request in requests:
                command = entry(Io.LOOKUP_READ, request.query.table.nsid, cdw10=request.tag)
                drive.queue.call(command, timeout=1.0)  # refused where it was never sent: then it is free, too
                self._give([request])


def _cut(query: Query, most: int) -> bool:
    """Whether a mean's bag is longer than a command: then no command can divide it."""
    if not query.mean:
        return False
    longest = int(np.diff(query.offsets).max(initial=0))
    return longest > Limits.of(query.table.dim, most, query.weights is not None).longest


def _fail(request: _Request, status: int, dw0: int) -> NoReturn:
    query, part = request.query, request.part
    position = part.first_id + dw0
    error = error_for(f"lookup of bags {part.first_bag} to {part.first_bag + part.bags - 1}", status, dw0)
    match status & 0x7FF:
        case Status.LOOKUP_INDEX_RANGE:
            raise IndexOutOfRange(position, int(query.indices[position]), query.table.rows) from error
        case Status.UNRECOVERED_READ:
            raise RowUnreadable(position, int(query.indices[position])) from error
    raise error


_LOOKUPS: weakref.WeakKeyDictionary[Drive, Lookups] = weakref.WeakKeyDictionary()
_LOOKUPS_LOCK = threading.Lock()


def lookups_of(drive: Drive) -> Lookups:
    """The one ``Lookups`` of a drive: tags belong to the port."""
    with _LOOKUPS_LOCK:
        return _LOOKUPS.setdefault(drive, Lookups(drive))


def result_array(drive: Drive, bags: int, dim: int) -> Sums:
    """An array for sums in the drive's memory. :raises BufferExhausted: split the lookup, or open with more memory"""
    try:
        return drive.alloc((bags, dim), np.float32)
    except BufferExhausted as error:
        size = bags * dim * 4
        raise BufferExhausted(f"the sums of {bags} bags take {size} bytes of the drive's memory: {error}") from error
