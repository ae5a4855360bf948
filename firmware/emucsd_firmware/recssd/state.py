"""State of RecSSD's firmware: requests, page reads, held commands, the two caches, and the processor's time."""

from __future__ import annotations

import mmap
from typing import Any, Protocol

import numpy as np

from emucsd_wire.layout import I64, State
from emucsd_wire.recssd import MAX_CONFIG, MAX_LENGTH, MAX_REQUESTS, MAX_SECTORS, SECTOR, SLS_CONFIG
from emucsd_wire.words import pointer

NEVER = 1 << 62
PAGES = 4096  # page reads in flight over all dies; each is a NAND job
WAITERS = 1024  # commands that are held
EARLY_NS = 100_000_000  # a read whose write has not come by then is answered
RESULT_BYTES = MAX_SECTORS * SECTOR

# SlsRequest.phase
FREE, CONFIG, ISSUE, READING = 0, 1, 2, 3


class SlsRequest(State):
    """One request, from its write until its last sector has been read."""

    number: I64
    phase: I64
    port: I64
    nsid: I64
    slba: I64
    pairs: I64  # address of SlsPair[count]; bit 31 of ``result`` marks a pair that is done
    count: I64
    dim: I64
    row_bytes: I64
    table_id: I64
    base: I64  # flash address (lpn, then byte) of row 0
    lba_shift: I64
    result: I64  # address of its sums
    sectors: I64
    cursor: I64  # pairs that the pass has taken
    open: I64  # page reads that are out
    asked: I64  # sectors that reads have been promised
    given: I64  # ... and that they have taken
    status: I64
    position: I64
    abandoned: I64
    next: I64  # in the processor's ring, or -1 in none
    waiting: I64  # first held read, or -1
    waiting_last: I64
    started: I64
    processed: I64  # when the configuration was
    pending: I64  # address of int64[MAX_SECTORS]: contributions that each sector still waits for
    ready: I64  # ... and when the last one came


class PageRead(State):
    """Pairs of one flash page (or of one and those that its last row reaches into), on their way."""

    request: I64
    first: I64  # pair
    count: I64
    lpn: I64
    lpns: I64
    die: I64
    submitted: I64
    next: I64  # in the free list


class Waiter(State):
    """A read that is held: in its request's list, in the early ones', or in the answered ones'."""

    slot: I64  # of the command
    port: I64
    nsid: I64
    slba: I64
    request: I64  # -1: its write has not come
    first: I64  # sector
    sectors: I64
    since: I64
    deadline: I64
    ready: I64
    status: I64
    next: I64


class CacheEntry(State):
    """A place of the embedding cache: whose bytes it holds, and the flash page they were read from (0: none)."""

    key: I64  # (row << 5 | table id) + 1
    ppn: I64  # + 1


class Counters(State):
    """Since the statistics were cleared last."""

    requests: I64
    refused: I64
    failed: I64
    pairs: I64
    request_ns: I64  # from the write's arrival to the last read's answer
    config_write_ns: I64  # from the write's arrival to its completion
    config_process_ns: I64
    flash_read_ns: I64  # from a page's issue to its arrival
    translate_ns: I64  # the processor's work on arrived pages
    return_ns: I64  # from a read's arrival to its answer
    pages: I64
    flash_pages: I64
    page_hits: I64
    sectors: I64
    cache_hits: I64
    cache_misses: I64
    busy_ns: I64


class RecSsd(State):
    """The firmware's part of one drive."""

    enabled: I64
    requests: I64
    reads: I64
    waiters: I64
    cache: I64  # address of CacheEntry[cache_entries]
    cache_entries: I64  # a power of two, or 0
    buffer: I64  # address of int64[dies, buffer_pages]: ppn + 1, the most recent first
    buffer_pages: I64
    in_flight: I64  # address of int64[dies]
    queue_depth: I64
    scratch: I64  # FP32[MAX_LENGTH]: a row put together
    zeros: I64
    cell: I64  # of one address, for the adder
    first_job: I64
    page_shift: I64
    cycle_ps: I64
    request_cycles: I64
    pair_cycles: I64
    page_cycles: I64
    vector_cycles: I64
    element_cycles: I64
    copy_cycles: I64
    sector_cycles: I64
    free_read: I64
    free_waiter: I64
    early: I64  # first read that waits for its write, or -1
    early_last: I64
    done: I64  # first answered read, or -1
    done_last: I64
    head: I64  # of the ring of requests that the processor works on, or -1
    tail: I64
    ringed: I64
    stalled: I64  # 1: nothing can be issued before a page arrives
    processor_free: I64
    wake: I64  # when ``pages.pump`` is to be called next
    position: I64
    counters: Counters


sls_at = pointer(SlsRequest)
page_read_at = pointer(PageRead)
waiter_at = pointer(Waiter)
cache_at = pointer(CacheEntry)
recssd_at = pointer(RecSsd)


class RecSsdSettings(Protocol):
    """A profile's ``recssd`` section."""

    @property
    def enabled(self) -> bool: ...

    @property
    def cpu_mhz(self) -> int: ...

    @property
    def request_cycles(self) -> int: ...

    @property
    def pair_cycles(self) -> int: ...

    @property
    def page_cycles(self) -> int: ...

    @property
    def vector_cycles(self) -> int: ...

    @property
    def element_cycles(self) -> int: ...

    @property
    def copy_cycles(self) -> int: ...

    @property
    def sector_cycles(self) -> int: ...

    @property
    def page_buffer(self) -> int: ...

    @property
    def cache_entries(self) -> int: ...

    @property
    def queue_depth(self) -> int: ...


class RecSsdMemory:
    """Owns the memory behind a RecSsd record. A drive that never uses it never touches it.

    :param page_bytes: of a flash page, a power of two
    :param first_job: the NAND job of page read 0; PAGES jobs from there are this one's
    """

    def __init__(self, settings: RecSsdSettings, page_bytes: int, dies: int, first_job: int) -> None:
        self.settings = settings
        self.page_bytes, self.first_job = page_bytes, first_job
        self.requests = np.zeros(MAX_REQUESTS, SlsRequest.dtype)
        self.reads = np.zeros(PAGES, PageRead.dtype)
        self.waiters = np.zeros(WAITERS, Waiter.dtype)
        self.buffer = np.zeros((dies, max(settings.page_buffer, 1)), np.int64)
        self.in_flight = np.zeros(dies, np.int64)
        self.sectors = np.zeros((2, MAX_REQUESTS, MAX_SECTORS), np.int64)
        self.cell = np.zeros(1, np.int64)
        self.rows = np.zeros((2, MAX_LENGTH), np.float32)
        sizes = (MAX_REQUESTS * MAX_CONFIG, MAX_REQUESTS * RESULT_BYTES, 16 * max(settings.cache_entries, 1))
        self.configs, self.results, self.cache = (np.frombuffer(mmap.mmap(-1, size), np.uint8) for size in sizes)
        self.record: Any = None

    def fill(self, record: Any) -> None:
        """Write addresses and settings into the RecSsd record of a drive's state."""
        self.record = record
        settings = self.settings
        for name in ("requests", "reads", "waiters", "cache", "buffer", "in_flight"):
            record[name] = getattr(self, name).ctypes.data
        record["scratch"], record["zeros"] = (row.ctypes.data for row in self.rows)
        record["cell"] = self.cell.ctypes.data
        for name in ("request_cycles", "pair_cycles", "page_cycles", "vector_cycles", "element_cycles", "copy_cycles"):
            record[name] = getattr(settings, name)
        record["sector_cycles"], record["queue_depth"] = settings.sector_cycles, settings.queue_depth
        record["cycle_ps"] = round(1_000_000 / settings.cpu_mhz)
        record["enabled"] = int(settings.enabled)
        record["cache_entries"], record["buffer_pages"] = settings.cache_entries, settings.page_buffer
        record["first_job"], record["page_shift"] = self.first_job, self.page_bytes.bit_length() - 1
        for name in ("early", "early_last", "done", "done_last", "head", "tail"):
            record[name] = -1
        record["wake"] = NEVER
        self.requests["number"] = np.arange(MAX_REQUESTS)
        for name in ("next", "waiting", "waiting_last"):
            self.requests[name] = -1
        for name, table in zip(("pending", "ready"), self.sectors, strict=True):
            self.requests[name] = table.ctypes.data + np.arange(MAX_REQUESTS) * table.itemsize * MAX_SECTORS
        self.requests["pairs"] = self.configs.ctypes.data + np.arange(MAX_REQUESTS) * MAX_CONFIG + SLS_CONFIG.size
        self.requests["result"] = self.results.ctypes.data + np.arange(MAX_REQUESTS) * RESULT_BYTES
        self.reads["next"] = [*range(1, PAGES), -1]
        self.waiters["next"] = [*range(1, WAITERS), -1]

    def clear(self) -> None:
        """Start the statistics from zero, as the board's Flush does."""
        for name in self.record["counters"].dtype.names:
            self.record["counters"][name] = 0

    def snapshot(self) -> dict[str, Any]:
        """What it has done, and the means that the board's Flush prints, in us."""
        counters = {name: int(self.record["counters"][name]) for name in Counters.dtype.names or ()}
        held = int((self.requests["phase"] != FREE).sum())
        looked = counters["cache_hits"] + counters["cache_misses"]
        means = {
            "request": _mean(counters, "request_ns", "requests"),
            "config_write": _mean(counters, "config_write_ns", "requests"),
            "config_process": _mean(counters, "config_process_ns", "requests"),
            "flash_read": _mean(counters, "flash_read_ns", "flash_pages"),
            "translation": _mean(counters, "translate_ns", "pages"),
            "return": _mean(counters, "return_ns", "sectors"),
        }
        return {
            "enabled": bool(self.record["enabled"]),
            "held": held,
            "counters": counters,
            "mean_us": means,
            "cache_hit": counters["cache_hits"] / looked if looked else 0.0,
        }


def _mean(counters: dict[str, int], total: str, count: str) -> float:
    return counters[total] / counters[count] / 1000 if counters[count] else 0.0
