"""An I/O (or the admin) queue pair: batches, single commands, pipelines.

A queue may be used from any thread, one call at a time; give each busy thread its own. Waiting happens in compiled code
without the GIL, in slices after which signals are seen and the drive is checked, so nothing waits for a dead drive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd import poll
from emucsd.buffers import Range, SharedMemory, owner_of
from emucsd.completion import Command, Completion
from emucsd.errors import DriveTimeout, InvalidArgument, ProtocolError, QueueFull
from emucsd.link import Link
from emucsd.outcome import Columns, Outcome
from emucsd.ring import MESSAGE, UNSENT, Batch, Ring, Slot
from emucsd.virtual import VirtualClock
from emucsd_wire.nvme import PAGE, SQE, Register, Sqe
from emucsd_wire.vfio_user import Region

SLICE_NS = 100_000_000
TIMEOUT = 30.0  # seconds without progress


class Queue:
    """A submission queue and its completion queue, of the same id and size.

    :param link: the attached port
    :param qid: 0 is the admin queue, which has the real clock whatever the drive has
    :param entries: 2 to 1024; one less can be out at a time
    :ivar ring_address: of its Ring record, for compiled code
    """

    def __init__(self, link: Link, qid: int, entries: int) -> None:
        self.link, self.qid, self.entries = link, qid, entries
        self.timeout = TIMEOUT
        slots = entries - 1
        self._memory = _QueueMemory(link, entries)
        self._slots = np.zeros(slots, Slot.dtype)
        self._free = np.arange(slots, dtype=np.int64)[::-1].copy()  # the lowest identifiers are used first, and most
        self._done = np.zeros(slots, np.int64)
        self._messages = self._prepare_messages()
        self._idle = np.zeros((), Batch.dtype)
        self._ring = np.zeros((), Ring.dtype)
        self.ring_address = int(self._ring.ctypes.data)
        self._data: dict[int, Any] = {}  # what commands that are out read or write
        self._lost: list[Any] = []  # ... and those of commands that timed out
        self._broken = False  # commands of a batch are out that nobody can account for any more
        self._clock = link.clock if qid and isinstance(link.clock, VirtualClock) else None
        self._lock: AbstractContextManager[Any] = self._clock.lock if self._clock else threading.RLock()
        self._fill_ring()
        if self._clock is not None:
            self._clock.follow(self)

    def _prepare_messages(self) -> NDArray[np.uint8]:
        messages = np.zeros(2 * MESSAGE, np.uint8)
        for place, offset in enumerate((8 * self.qid, 8 * self.qid + 4)):
            data = self.link.vfio.posted_write(Region.BAR0, Register.DOORBELLS + offset, bytes(4))
            messages[place * MESSAGE : place * MESSAGE + len(data)] = np.frombuffer(data, np.uint8)
        return messages

    def _fill_ring(self) -> None:
        ring, memory = self._ring, self._memory
        ring["sq"], ring["cq"], ring["lists"] = memory.sq.address, memory.cq.address, memory.lists.address
        ring["entries"], ring["phase"] = self.entries, 1
        ring["doorbell"], ring["words"] = self.link.doorbell(self.qid), self.link.words
        ring["messages"], ring["socket"] = self._messages.ctypes.data, self.link.vfio.fileno()
        ring["slots"], ring["slot_count"] = self._slots.ctypes.data, len(self._slots)
        ring["free"], ring["free_count"] = self._free.ctypes.data, len(self._free)
        ring["done"], ring["batch"] = self._done.ctypes.data, self._idle.ctypes.data
        ring["clock"] = self._clock.address if self._clock else 0
        self._slots["index"] = -2

    @property
    def memory(self) -> SharedMemory:
        """Where a command's data lie."""
        return self.link.memory

    @property
    def sq_address(self) -> int:
        """I/O virtual address of the submission queue."""
        return self._memory.sq.address

    @property
    def cq_address(self) -> int:
        """I/O virtual address of the completion queue."""
        return self._memory.cq.address

    @property
    def outstanding(self) -> int:
        """Commands that are out, or completed and not yet taken."""
        return len(self._slots) - int(self._ring["free_count"])

    @property
    def counters(self) -> dict[str, int]:
        """Commands entered, doorbells rung, and doorbells repeated to wake the drive, since the queue was made."""
        return {name: int(self._ring[name]) for name in ("commands", "doorbells", "wakes")}

    def close(self) -> None:
        """Forget the queue; its owner has deleted it on the drive. Commands that were out never complete."""
        if self._clock is not None:
            self._clock.leave(self)
        for data in self._lost:  # the drive has let go of it
            if isinstance(data, np.ndarray) and (owner := owner_of(data)) is not None:
                owner.kept = False
        self._lost.clear()

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _carry(self, call: Callable[[int], int], progress: Callable[[], int], timeout: float) -> None:
        """Call compiled code again and again until it is done.

        :param call: takes ns that it may run, and returns why it came back
        :param progress: a number that changes when something has happened
        :param timeout: seconds without progress that are too long; 0 asks once
        """
        deadline, seen = time.monotonic() + timeout, progress()
        slice_ns = min(SLICE_NS, int(timeout * 1e9))
        while True:
            with self._lock:
                code = call(slice_ns)
                if code == poll.GRANT and self._clock is not None:
                    self._clock.grant_by_messages(timeout)
                    code = poll.settle(self._clock.address) or poll.AGAIN
            if code == poll.DONE:
                return
            if code == poll.CORRUPT:
                raise ProtocolError(
                    f"queue {self.qid}: a completion names no command that is out (entry {int(self._ring['head'])}); "
                    "this is a bug of the drive: reset it with drive.reset()"
                )
            self.link.vfio.check()
            if (now := progress()) != seen:
                deadline, seen = time.monotonic() + timeout, now
            elif time.monotonic() >= deadline:
                what = "takes no message" if code == UNSENT else "completed nothing"
                raise DriveTimeout(
                    f"queue {self.qid}: the drive {what} for {timeout:g} s with {self.outstanding} commands out; "
                    "its log and drive.control.status() may say why, drive.reset() starts afresh"
                )

    def think(self, until: int) -> None:
        """Let the drive's virtual time go on to ``until``; ``drive.clock.think`` is the one to call."""
        clock = self.link.clock
        self._carry(lambda ns: poll.think(self.ring_address, until, ns), lambda: clock.now, self.timeout)

    # -- one command -------------------------------------------------------------------------------------------------

    def submit_one(self, command: Command, data: NDArray[Any] | None = None, *, ring: bool = True) -> int:
        """Enter one command and come back at once.

        :param command: an entry; its cid is ours, and with ``data`` its PRPs are too
        :param data: array in the drive's memory that it reads or writes, kept alive until it completes
        :param ring: False leaves the doorbell to a later call (``flush``, or the next with ``ring``)
        :returns: a token for ``wait``; ``poll`` returns it in the Completion
        :raises QueueFull: every identifier is in use
        :raises InvalidArgument: ``data`` is not memory that the drive can reach
        """
        if data is not None and not self.link.memory.holds(data):
            raise InvalidArgument("data must lie in the drive's memory, contiguous: copy it into drive.alloc(…) first")
        template = np.frombuffer(SQE.pack(command), np.uint8) if isinstance(command, Sqe) else command
        address, size = (data.ctypes.data, data.nbytes) if data is not None else (0, 0)
        with self._lock:
            token: int = poll.submit(self.ring_address, template.ctypes.data, address, size)
            if token >= 0:
                self._data[token] = data
        if token < 0:
            raise QueueFull(
                f"queue {self.qid}: all {len(self._slots)} command identifiers are in use; poll() for completions, or "
                "open the drive with a larger depth"
            )
        if ring:
            self.flush()
        return token

    def flush(self) -> None:
        """Ring the doorbell for what ``submit_one(ring=False)`` entered."""
        self._carry(lambda _: poll.flush(self.ring_address), lambda: 0, self.timeout)

    def poll(self, want: int = 0, timeout: float | None = None) -> list[Completion]:
        """Take completions of single commands: all that are there, after waiting until there are ``want``.

        Under a virtual clock waiting is what moves time; with ``want`` 0 only what came with earlier grants is taken.

        :raises DriveTimeout: nothing came for ``timeout`` seconds (default: the queue's)
        """
        want = min(want, self.outstanding)
        limit = self.timeout if want else 0.0
        if want == 0:
            with self._lock:
                code = poll.poll(self.ring_address, 0, -1, 0)
            if code != poll.DONE:
                self._carry(lambda ns: poll.poll(self.ring_address, 0, -1, ns), lambda: 0, self.timeout)
        else:
            self._wait(want, -1, limit if timeout is None else timeout)
        with self._lock:
            tokens = self._done[: int(self._ring["done_count"])].tolist()
            return [self._take(token) for token in tokens]

    def wait(self, token: int, timeout: float | None = None) -> Completion:
        """Wait for one command.

        :raises DriveTimeout: the drive completed nothing for ``timeout`` seconds; the command may still complete
        """
        if token not in self._data:
            raise InvalidArgument(f"token {token} names no command of queue {self.qid} that is out; was it waited for?")
        self._wait(1 << 62, token, self.timeout if timeout is None else timeout)
        with self._lock:
            return self._take(token)

    def call(self, command: Command, data: NDArray[Any] | None = None, timeout: float | None = None) -> Completion:
        """Submit one command and wait for it. After a timeout its memory stays reserved until it completes."""
        token = self.submit_one(command, data)
        try:
            return self.wait(token, timeout)
        except BaseException:
            self.abandon(token)
            raise

    def abandon(self, token: int) -> None:
        """Nobody will wait for this command: its identifier is free again once it completes."""
        with self._lock:
            self._keep(self._data.pop(token, None))
            poll.release(self.ring_address, token)

    def _wait(self, want: int, token: int, timeout: float) -> None:
        ring = self._ring
        self._carry(
            lambda ns: poll.poll(self.ring_address, want, token, ns),
            lambda: int(ring["head"]) + int(ring["done_count"]),
            timeout,
        )

    def _take(self, token: int) -> Completion:
        slot = self._slots[token]
        submitted, finished = int(slot["submitted"]), int(slot["finished"])
        completion = Completion(token, int(slot["status"]), int(slot["result"]), submitted, finished)
        poll.release(self.ring_address, token)
        del self._data[token]
        return completion

    def _keep(self, data: Any) -> None:
        """The drive may still use this memory: nobody else gets it before the controller is reset."""
        if isinstance(data, np.ndarray):
            if (owner := owner_of(data)) is not None:
                owner.kept = True
            self._lost.append(data)

    # -- batches -----------------------------------------------------------------------------------------------------

    def submit(self, columns: Columns, *, depth: int = 32, burst: int | None = None) -> Outcome:
        """Run a whole batch, keeping ``depth`` commands out, in compiled code. Statuses are in the Outcome, not raised.

        :param columns: the commands
        :param depth: at most this many at a time, never more than the queue's entries - 1
        :param burst: doorbells and completions are taken this many at a time while the drive keeps up; 1 gives the
            lowest latency, the default (a quarter of the depth, or 1 with arrivals) the highest rate
        :raises DriveTimeout: nothing completed for ``queue.timeout`` seconds
        """
        if depth < 1:
            raise InvalidArgument(f"depth {depth}: at least one command has to be out")
        if self.qid == 0:
            raise InvalidArgument("the admin queue takes no batches; use drive.passthrough('admin', …)")
        if self._broken:
            raise DriveTimeout(f"queue {self.qid} still waits for an earlier batch; drive.reset() starts afresh")
        depth = min(depth, len(self._slots))
        if burst is None:
            burst = 1 if columns.arrivals is not None else max(depth // 4, 1)
        outcome = Outcome(columns)
        batch = columns.record(outcome)
        batch["depth"], batch["burst"], batch["start"] = depth, max(min(burst, depth), 1), self.link.clock.now
        if columns.count == 0:
            return outcome
        started = time.monotonic_ns()
        try:
            self._run(batch)
        except BaseException:
            self._stop(batch, columns)
            raise
        outcome.finish(int(batch["failed"]), time.monotonic_ns() - started)
        return outcome

    def _run(self, batch: NDArray[Any]) -> None:
        address = int(batch.ctypes.data)
        self._carry(
            lambda ns: poll.run(self.ring_address, address, ns),
            lambda: int(batch["finished"]) + int(batch["next"]),
            self.timeout,
        )
        self._ring["batch"] = self._idle.ctypes.data

    def _stop(self, batch: NDArray[Any], columns: Columns) -> None:
        """A batch was interrupted: enter nothing more, wait shortly for what is out, else keep its memory for good."""
        batch["count"] = batch["next"]
        try:
            timeout, self.timeout = self.timeout, min(self.timeout, 1.0)
            try:
                self._run(batch)
            finally:
                self.timeout = timeout
        except Exception:
            self._broken = True
            for data in columns.data:
                self._keep(data)
            self._lost.append((batch, columns))


class _QueueMemory:
    """The shared memory of one queue pair: both rings, and a page for the PRP list of every command."""

    def __init__(self, link: Link, entries: int) -> None:
        self.sq: Range = link.memory.range(64 * entries)
        self.cq: Range = link.memory.range(16 * entries)
        self.lists: Range = link.memory.range(PAGE * (entries - 1))
        for part in (self.sq, self.cq):
            part.array(part.size)[:] = 0  # recycled memory may hold a phase bit
