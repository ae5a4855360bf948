"""A queue pair in plain Python, for a few commands at a time whose buffers never change.

The words that the drive writes or reads beside us are read and written whole, as elements of a memoryview. What must
not be reordered around them stands on either side of ``fence``.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from typing import NamedTuple

from emucsd_wire.nvme import CLOCK_WORDS_OFFSET, PAGE, SQE, Register, Sqe

ENTRIES = 32
MOST_PAGES = 64  # of a buffer: its PRP list takes one page, whatever its size
_ASLEEP = 5  # ClockWords
_ORDERED = platform.machine() in ("x86_64", "i686")
_lock = threading.Lock()
_lock.acquire()


def fence() -> None:
    """No store before it comes after a load behind it: a locked release, then a locked acquire."""
    _lock.release()
    _lock.acquire(False)


class Memory(NamedTuple):
    """Memory that the drive reaches: ``view`` is it here, ``address`` its I/O virtual address, on a page."""

    view: memoryview
    address: int

    def part(self, offset: int, size: int) -> Memory:
        return Memory(self.view[offset : offset + size], self.address + offset)


class Ended(NamedTuple):
    """A completion."""

    cid: int
    status: int
    dw0: int
    dw1: int


class Doorbells(NamedTuple):
    """How to ring: the mapped page (None: only messages), and what sends a doorbell as a message (offset, value)."""

    page: memoryview | None
    message: Callable[[int, int], None]


class Pair:
    """Submission and completion queue ``qid``.

    :param memory: ``bytes_needed()`` of it, zeroed
    """

    def __init__(self, memory: Memory, qid: int, doorbells: Doorbells) -> None:
        self.qid = qid
        self._sq = memory.part(0, SQE.size * ENTRIES)
        self._cq = memory.part(PAGE, 16 * ENTRIES)
        self._words = self._cq.view.cast("Q")
        self._doorbells = doorbells
        self._page = doorbells.page.cast("I") if doorbells.page is not None else None
        self._clock = None
        if doorbells.page is not None:
            self._clock = doorbells.page[CLOCK_WORDS_OFFSET - Register.DOORBELLS :][: 8 * (_ASLEEP + 1)].cast("q")
        self._tail = self._head = 0
        self._rung = 0
        self._phase = 1

    @staticmethod
    def bytes_needed() -> int:
        return 2 * PAGE

    @property
    def sq_address(self) -> int:
        return self._sq.address

    @property
    def cq_address(self) -> int:
        return self._cq.address

    def enter(self, sqe: Sqe) -> None:
        """Put an entry in; the caller has fewer than ENTRIES - 1 out."""
        at = SQE.size * self._tail
        self._sq.view[at : at + SQE.size] = SQE.pack(sqe)
        self._tail = (self._tail + 1) % ENTRIES

    def ring(self) -> None:
        """Tell the drive of the entries, and wake it if it sleeps."""
        if self._tail == self._rung:
            return
        self._rung = self._tail
        if self._page is None or self._clock is None:
            self._doorbells.message(8 * self.qid, self._tail)
            return
        if not _ORDERED:
            fence()
        self._page[2 * self.qid] = self._tail
        fence()  # the doorbell before our look at 'asleep'; the drive does it the other way round
        if self._clock[_ASLEEP]:
            self._doorbells.message(8 * self.qid, self._tail)

    def take(self) -> list[Ended]:
        """Completions that have come."""
        found: list[Ended] = []
        while True:
            word = self._words[2 * self._head + 1]
            if word >> 48 & 1 != self._phase:
                break
            if not _ORDERED:
                fence()
            low = self._words[2 * self._head]
            found.append(Ended(word >> 32 & 0xFFFF, word >> 49, low & 0xFFFF_FFFF, low >> 32))
            self._head += 1
            if self._head == ENTRIES:
                self._head, self._phase = 0, self._phase ^ 1
        if found:
            if self._page is not None:
                self._page[2 * self.qid + 1] = self._head
            else:
                self._doorbells.message(8 * self.qid + 4, self._head)
        return found


def prp_list(memory: Memory, buffer: Memory) -> None:
    """Fill a page with the list of a buffer's pages but the first."""
    pages = memory.view.cast("Q")
    for number in range(1, len(buffer.view) // PAGE):
        pages[number - 1] = buffer.address + number * PAGE


def pointers(buffer: Memory, list_address: int, count: int) -> tuple[int, int]:
    """PRP1 and PRP2 of a buffer's first ``count`` bytes; its list was filled by ``prp_list``."""
    if count <= PAGE:
        return buffer.address, 0
    if count <= 2 * PAGE:
        return buffer.address, buffer.address + PAGE
    return buffer.address, list_address
