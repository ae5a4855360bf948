"""State of the lookup engine: tables, requests, and the drive's DRAM that they use."""

from __future__ import annotations

import mmap
from typing import Annotated, Any, Protocol

import numpy as np

from emucsd_wire.layout import I32, I64, State
from emucsd_wire.vendor import MAX_DIM, MAX_EXTENTS, MAX_PAYLOAD, MAX_RESULT, MAX_TABLES, MAX_TAGS
from emucsd_wire.words import pointer

I16 = Annotated[int, "<i2"]  # signed, as everything in compiled code

PORTS = 2
TAGGED = 768  # requests that have memory for what a host sends: every tag of both ports, and room for requests that a
# reset left behind on the flash
REQUESTS = TAGGED + 1280  # the others are ``requests.take``'s, whose callers have memory of their own
SLICE = 256  # vectors that the translator hands on at a time
SLICE_BYTES = 128 << 10  # of rows, at most: what a slice gathers stays in the core's cache until it is summed
ROW_BYTES = 4 * MAX_DIM
SEEN_ROWS = 4  # counters of rows outside the hot cache, for each of its places, at least
NEVER = 1 << 62

# Request.state; TAKEN: out of its free list, not yet in the queue
FREE, QUEUED, READING, READY, TAKEN = 0, 1, 2, 3, 4

# Request.kind
SUM, PREFETCH, UPDATE, SWAP = 0, 1, 2, 3


class Extent(State):
    """From table byte ``first`` on, table byte ``b`` is at flash address ``base + b`` (address: lpn, then byte)."""

    first: I64
    base: I64


class Table(State):
    """One open table. ``handle`` is 0 when the slot is free."""

    handle: I64
    generation: I64
    port: I64
    nsid: I64
    name_hash: I64
    rows: I64
    dim: I64
    kind: I64  # of rows: vendor.Dtype
    row_bytes: I64  # of a row's content: what a vector read asks for
    stride: I64  # bytes from one row to the next
    sum_bytes: I64  # of a sum: FP32[dim]
    generated: I64  # 1: rows on pages that were never written are made from ``seed``
    seed: I64
    version: I64  # updates and swaps since it was opened
    extents: I64  # address of Extent[extent_count + 1]; the last one only says where the table ends
    extent_count: I64
    lba_shift: I64
    whole: I64  # 1: no row crosses a page or an extent
    slice: I64  # vectors a slice
    add_cycles: I64  # of the adders, a vector
    opens: I64
    active: I64  # requests that still read it
    requests: I64
    bags: I64
    vectors: I64
    flash_reads: I64
    flash_bytes: I64
    buffered: I64
    unwritten: I64
    split: I64
    failed: I64
    updated: I64  # rows
    hits: I64  # of the hot cache
    misses: I64
    admitted: I64
    evicted: I64


class Request(State):
    """One LOOKUP_SEND from its arrival until its LOOKUP_READ, or another's that ``requests.take`` gave out.

    Its NAND job is ``first_job + number``. Positions, of ids and weights, and in offsets, are counted from the
    addresses given: a request may begin at any of them (``first``) and ends before ``ids``.
    """

    number: I64
    state: I64
    kind: I64
    owner: I64  # -1: a tag's; else a number of the caller's: then it comes out of ``requests.pop_settled``
    port: I64
    tag: I64
    table: I64  # slot
    grain: I64
    bags: I64
    first: I64  # position of the first id
    ids: I64  # position behind the last one
    id_bytes: I64
    carry: I64  # address of FP32[dim] that the first bag starts from, or 0
    offsets: I64
    indices: I64
    weights: I64  # address of FP32 by position, or 0: all are 1
    mean: I64  # 1: sums are divided by the number of ids of their bag
    content: I64  # UPDATE: address of the rows, as they are stored
    other: I64  # SWAP: slot of the second table
    serial: I64  # counts requests that the translator has begun
    version: I64  # of the table, when the translator began
    hits: I64  # vectors out of the hot cache
    cursor: I64  # position that the translator has come to
    bag: I64  # the bag that the next id belongs to, or an empty one before it
    result: I64
    stride: I64  # bytes from one bag's sum to the next one's
    result_bytes: I64
    started: I64
    floor: I64  # no sums before this time: the translator's and the adders' own work
    ready: I64
    status: I64
    position: I64  # of the id that ``status`` is about
    abandoned: I64  # nobody will read it
    waiter: I64  # who waits for it (a number of the caller's), or -1
    next: I64  # in the free list, the translator's queue or the done queue; -1 at their ends
    above: I64  # in the list of requests that have reads out
    below: I64


class Place(State):
    """One place of the hot cache: a row whose bytes the drive's DRAM holds."""

    key: I64  # row * MAX_TABLES + slot + 1; 0: empty
    ppn: I32  # flash page that the bytes came from
    serial: I32  # of the request that read them, and its number: until it has ended they are on their way
    filler: I16
    age: I16  # in its set: 0 for the place used last


class Hot(State):
    """The cache of hot rows: their tags. The bytes themselves always come from the row's newest page."""

    rows: I64  # places in all; 0: there is no cache
    ways: I64
    sets: I64
    places: I64  # address of Place[sets * ways]
    seen: I64  # address of u32[seen_mask + 1]: how often rows that are not in the cache were asked for
    seen_mask: I64
    cycles: I64  # of the engine, for a hit
    port_free: I64  # time from which the cache has no more hits to serve
    hits: I64
    misses: I64
    admitted: I64
    evicted: I64


class Lookup(State):
    """The engine of one drive."""

    tables: I64
    requests: I64  # address of Request[request_count]
    request_count: I64
    tags: I64  # int64[PORTS * MAX_TAGS]: request number + 1, or 0
    payloads: I64
    results: I64
    free: I64  # head of the list of free requests with a payload, or -1
    spare: I64  # and of those without
    head: I64  # of the queue of requests that the translator has not finished, or -1
    tail: I64
    reading: I64  # head of the list of requests that have reads out, or -1
    done: I64  # head of the queue of ready requests that somebody waits for, or -1
    done_tail: I64
    settled: I64  # head of the queue of ready requests that have an owner, or -1
    settled_tail: I64
    first_job: I64
    page_shift: I64
    path_buffer: I64  # vector reads that may be in flight
    refill: I64  # the translator goes on when this many places of the path buffer are free
    cycle_ps: I64
    translate_cycles: I64
    translate_step: I64  # an index's time in ns / 1024
    translator_free: I64
    wake: I64  # when ``requests.pump`` is to be called next; NEVER when no request is queued
    adder_free: I64
    places: I64  # int64[SLICE]: flash address of each vector of the slice; a vector in pieces has -1 - its table byte
    rows: I64  # int64[SLICE]: where its bytes are
    pieces: I64  # FP32[SLICE, MAX_DIM]: vectors put together from pieces
    zeros: I64  # FP32[MAX_DIM]
    ones: I64  # FP32[SLICE]: the weights of who has none
    serial: I64
    hot: Hot
    position: I64  # of the first bad id or offset, after a refusal


table_at = pointer(Table)
extent_at = pointer(Extent)
request_at = pointer(Request)
place_at = pointer(Place)
lookup_at = pointer(Lookup)


class LookupSettings(Protocol):
    """What the engine takes from a profile's ``lookup`` section."""

    @property
    def clock_mhz(self) -> int: ...

    @property
    def translate_cycles(self) -> int: ...

    @property
    def sum_lanes(self) -> int: ...

    @property
    def sum_cycles(self) -> int: ...

    @property
    def path_buffer(self) -> int: ...

    @property
    def cache_rows(self) -> int: ...

    @property
    def cache_ways(self) -> int: ...

    @property
    def cache_cycles(self) -> int: ...


class LookupMemory:
    """Owns the memory behind a Lookup record. All of it is touched only as far as it is used.

    :param page_bytes: of a flash page, a power of two
    :param dies: of the whole drive; the path buffer holds ``path_buffer`` reads for each
    :param first_job: the NAND job of request 0; the engine uses REQUESTS jobs from there
    """

    def __init__(self, settings: LookupSettings, page_bytes: int, dies: int, first_job: int) -> None:
        self.settings = settings
        self.page_bytes = page_bytes
        self.dies = dies
        self.first_job = first_job
        self.tables = np.zeros(MAX_TABLES, Table.dtype)
        self.extents = np.zeros((MAX_TABLES, MAX_EXTENTS + 1), Extent.dtype)
        self.requests = np.zeros(REQUESTS, Request.dtype)
        self.tags = np.zeros(PORTS * MAX_TAGS, np.int64)
        self.scratch = np.zeros((2, SLICE), np.int64)
        self.zeros = np.zeros(MAX_DIM, np.float32)
        self.ones = np.ones(SLICE, np.float32)
        ways = min(settings.cache_ways, max(settings.cache_rows, 1))
        self.sets = settings.cache_rows // ways
        self.places = np.zeros(self.sets * ways, Place.dtype)
        self.seen = np.zeros(2 ** (SEEN_ROWS * len(self.places)).bit_length(), np.uint32)
        self.places["age"] = np.arange(len(self.places)) % ways
        self.ways, self.address = ways, 0
        self._record: Any = None
        sizes = (TAGGED * MAX_PAYLOAD, TAGGED * MAX_RESULT, SLICE * ROW_BYTES)
        self.payloads, self.results, self.pieces = (np.frombuffer(mmap.mmap(-1, size), np.uint8) for size in sizes)
        self.requests["number"] = np.arange(REQUESTS)
        self.requests["next"] = np.arange(1, REQUESTS + 1)
        self.requests["next"][[TAGGED - 1, REQUESTS - 1]] = -1

    @property
    def head(self) -> int:
        """The first request of the translator's queue, or -1."""
        return -1 if self._record is None else int(self._record["head"])

    @property
    def hot(self) -> Any:
        """The Hot record of the drive's state."""
        return self._record["hot"]

    def fill(self, record: Any) -> None:
        """Write addresses and settings into the Lookup record of a drive's state."""
        settings = self.settings
        self._record = record
        self.address = record.__array_interface__["data"][0]
        for name in ("tables", "requests", "tags", "payloads", "results", "zeros", "ones", "pieces"):
            record[name] = getattr(self, name).ctypes.data
        record["places"], record["rows"] = (row.ctypes.data for row in self.scratch)
        for name in ("head", "tail", "reading", "done", "done_tail", "settled", "settled_tail"):
            record[name] = -1
        record["free"], record["spare"] = 0, TAGGED
        record["wake"] = NEVER
        record["request_count"] = REQUESTS
        record["first_job"] = self.first_job
        record["page_shift"] = self.page_bytes.bit_length() - 1
        record["path_buffer"] = settings.path_buffer * self.dies
        record["refill"] = min(max(settings.path_buffer * self.dies // 2, 1), SLICE)  # two halves in turn
        record["cycle_ps"] = round(1_000_000 / settings.clock_mhz)
        record["translate_cycles"] = settings.translate_cycles
        record["translate_step"] = round(settings.translate_cycles * 1000 * 1024 / settings.clock_mhz)
        self._fill_hot(record["hot"])

    def _fill_hot(self, hot: Any) -> None:
        hot["places"], hot["seen"] = self.places.ctypes.data, self.seen.ctypes.data
        hot["rows"], hot["ways"], hot["sets"] = len(self.places), self.ways, self.sets
        hot["seen_mask"] = len(self.seen) - 1
        hot["cycles"] = self.settings.cache_cycles
