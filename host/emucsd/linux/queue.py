"""Queues of commands that Linux's driver carries: ``RingQueue`` over io_uring, ``IoctlQueue`` over ioctl.

Both offer what ``emucsd.queue.Queue`` does. A RingQueue keeps many commands out; an IoctlQueue runs one after the other
(a batch: some at a time, each in a thread), and serves for admin commands and where io_uring is not allowed.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.completion import Command, Completion
from emucsd.errors import DriveTimeout, EmucsdError, InvalidArgument, QueueFull
from emucsd.linux import ioctl
from emucsd.linux.ioctl import PASSTHRU_COMMAND64, refusal
from emucsd.linux.memory import ProcessMemory
from emucsd.linux.uring import ENTRY, ENTRY_BYTES, NVME_URING_CMD_IO, OP_URING_CMD, Ring
from emucsd.outcome import Columns, Outcome
from emucsd_wire.nvme import SQE, Sqe

TIMEOUT = 35.0  # seconds without progress: longer than the driver's own patience of 30
SLICE_SECONDS = 0.1  # after which signals are seen and other threads let in
_CHUNK = 4096  # commands of a batch that are prepared at a time
_THREADS = 8
_BATCH = 1 << 62  # of tokens: a batch's command, not a single one
_ENTRY_DTYPE = np.dtype(
    {
        "names": ["entry", "command"],
        "formats": [ENTRY.dtype, PASSTHRU_COMMAND64.dtype],
        "offsets": [0, ENTRY.size],
        "itemsize": ENTRY_BYTES,
    }
)
_DWORDS = ("cdw10", "cdw11", "cdw12", "cdw13", "cdw14", "cdw15")

Nodes = Callable[[int], int]  # nsid -> descriptor of the node that takes its commands


class _Pending(NamedTuple):
    """A command that is out."""

    command: Sqe
    data: NDArray[Any] | None
    submitted: int


class LinuxQueue(ABC):
    """What both have in common: tokens, completions that nobody has taken yet, and memory that may still be written.

    :param qid: 0 for admin commands
    :param entries: one more than the commands that can be out
    :param nodes: gives the descriptor for a namespace; 0 for none
    """

    def __init__(self, qid: int, entries: int, nodes: Nodes, memory: ProcessMemory) -> None:
        self.qid, self.entries, self.timeout = qid, entries, TIMEOUT
        self.memory = memory
        self._nodes = nodes
        self._lock = threading.RLock()
        self._next = 0
        self._pending: dict[int, _Pending] = {}
        self._done: dict[int, Completion | EmucsdError] = {}
        self._abandoned: set[int] = set()
        self._counters = {"commands": 0, "doorbells": 0, "wakes": 0}

    @property
    def outstanding(self) -> int:
        """Commands that are out, or completed and not yet taken."""
        return len(self._pending) + len(self._done)

    @property
    def counters(self) -> dict[str, int]:
        """Commands entered and system calls made for them, since the queue was made; ``wakes`` is always 0."""
        return dict(self._counters)

    def submit_one(self, command: Command, data: NDArray[Any] | None = None, *, ring: bool = True) -> int:
        """Enter one command and come back at once (an IoctlQueue: once it has completed).

        :param command: an entry; its cid and PRPs are not looked at
        :param data: array that the drive reads or writes, kept alive until it completes
        :param ring: False leaves sending it to a later call
        :returns: a token for ``wait``; ``poll`` returns it in the Completion
        :raises QueueFull: too many commands are out
        :raises InvalidArgument: ``data`` is no contiguous memory on a dword; or Linux has no node for that nsid
        """
        if data is not None and not self.memory.holds(data):
            raise InvalidArgument("data must be contiguous and lie on a dword: copy it into drive.alloc(…) first")
        asked = command if isinstance(command, Sqe) else SQE.unpack(np.ascontiguousarray(command).tobytes())
        with self._lock:
            if self.outstanding >= self.entries - 1:
                raise QueueFull(
                    f"queue {self.qid}: {self.outstanding} commands are out; poll() for completions, or open the "
                    "drive with a larger depth"
                )
            token, self._next = self._next, self._next + 1
            self._enter(token, _Pending(asked, data, time.monotonic_ns()))
            self._counters["commands"] += 1
        if ring:
            self.flush()
        return token

    def poll(self, want: int = 0, timeout: float | None = None) -> list[Completion]:
        """Take completions of single commands: all that are there, after waiting until there are ``want``.

        :raises DriveTimeout: nothing came for ``timeout`` seconds (default: the queue's), or the driver gave one up
        """
        want = min(want, self.outstanding)
        self._await(lambda: len(self._done) >= want, timeout)
        with self._lock:
            for token, ended in self._done.items():
                if isinstance(ended, EmucsdError):
                    del self._done[token]
                    raise ended
            taken = [ended for ended in self._done.values() if isinstance(ended, Completion)]
            self._done.clear()
        return taken

    def wait(self, token: int, timeout: float | None = None) -> Completion:
        """Wait for one command.

        :raises DriveTimeout: nothing completed for ``timeout`` seconds, the command may still; or the driver gave it up
        """
        if token not in self._pending and token not in self._done:
            raise InvalidArgument(f"token {token} names no command of queue {self.qid} that is out; was it waited for?")
        self._await(lambda: token in self._done, timeout)
        with self._lock:
            ended = self._done.pop(token)
        if isinstance(ended, EmucsdError):
            raise ended
        return ended

    def call(self, command: Command, data: NDArray[Any] | None = None, timeout: float | None = None) -> Completion:
        """Submit one command and wait for it. After a timeout its memory stays reserved until it completes."""
        token = self.submit_one(command, data)
        try:
            return self.wait(token, timeout)
        except BaseException:
            self.abandon(token)
            raise

    def abandon(self, token: int) -> None:
        """Nobody will wait for this command: what it says when it completes is dropped."""
        with self._lock:
            if token in self._pending:
                self._abandoned.add(token)
            self._done.pop(token, None)

    @abstractmethod
    def flush(self) -> None:
        """Send what ``submit_one(ring=False)`` entered."""

    def submit(self, columns: Columns, *, depth: int = 32, burst: int | None = None) -> Outcome:
        """Run a whole batch, keeping ``depth`` commands out. Statuses are in the Outcome, not raised.

        :param burst: completions are taken this many at a time (default: a quarter of the depth, or 1 with arrivals)
        :raises DriveTimeout: nothing completed for ``queue.timeout`` seconds, or the driver gave commands up
        :raises EmucsdError: Linux refused a command; what was out has completed
        """
        if depth < 1:
            raise InvalidArgument(f"depth {depth}: at least one command has to be out")
        if self.qid == 0:
            raise InvalidArgument("the admin queue takes no batches; use drive.passthrough('admin', …)")
        depth = min(depth, self.entries - 1)
        if burst is None:
            burst = 1 if columns.arrivals is not None else max(depth // 4, 1)
        outcome = Outcome(columns)
        started = time.monotonic_ns()
        if columns.count:
            self._batch(columns, outcome, depth, max(min(burst, depth), 1))
        outcome.finish(int(np.count_nonzero(outcome.statuses)), time.monotonic_ns() - started)
        return outcome

    @abstractmethod
    def close(self) -> None:
        """Let go of what is behind the queue. Harmless when repeated."""

    # -- for the two of them

    @abstractmethod
    def _enter(self, token: int, pending: _Pending) -> None:
        """Take on a single command."""

    @abstractmethod
    def _reap(self, wait: int, seconds: float) -> None:
        """Take completions, after waiting for ``wait`` of them at most ``seconds``."""

    @abstractmethod
    def _batch(self, columns: Columns, outcome: Outcome, depth: int, burst: int) -> None:
        """Run a batch to its end."""

    def _node(self, nsid: int) -> int:
        return self._nodes(nsid)

    def _await(self, there: Callable[[], bool], timeout: float | None) -> None:
        limit = self.timeout if timeout is None else timeout
        seen, deadline = len(self._done), time.monotonic() + limit
        while True:
            with self._lock:
                self._reap(0, 0.0)
                if there():
                    return
                self._reap(1, min(SLICE_SECONDS, limit))
                if there():
                    return
            if len(self._done) != seen:
                seen, deadline = len(self._done), time.monotonic() + limit
            elif time.monotonic() >= deadline:
                raise DriveTimeout(
                    f"queue {self.qid}: the drive completed nothing for {limit:g} s with {self.outstanding} commands "
                    "out; the kernel's log (dmesg) may say why, drive.reset() starts afresh"
                )

    def _end(self, token: int, status: int, result: int) -> None:
        """A single command has ended. ``status``: NVMe's, or a negative errno."""
        pending = self._pending.pop(token)
        if token in self._abandoned:
            self._abandoned.discard(token)
        elif status < 0:
            self._done[token] = _refused(status, pending.command, self.qid == 0, pending.data)
        else:
            self._done[token] = Completion(token, status, result, pending.submitted, time.monotonic_ns())


class IoctlQueue(LinuxQueue):
    """One command at a time, in the caller's thread."""

    def flush(self) -> None:
        """Everything has been sent."""

    def close(self) -> None:
        """There is nothing behind it."""

    def _enter(self, token: int, pending: _Pending) -> None:
        self._pending[token] = pending
        self._counters["doorbells"] += 1
        size = 0 if pending.data is None else pending.data.nbytes
        address = 0 if pending.data is None else pending.data.ctypes.data
        try:
            answer = self._run(pending.command, address, size)
        except BaseException as problem:
            del self._pending[token]
            if not isinstance(problem, EmucsdError):
                raise
            self._done[token] = problem
            return
        self._end(token, answer.status, answer.result)

    def _reap(self, wait: int, seconds: float) -> None:
        """Every command has completed when ``submit_one`` came back."""

    def _run(self, asked: Sqe, address: int, size: int) -> ioctl.Answer:
        request = ioctl.IOCTL_IO64_CMD if self.qid else ioctl.IOCTL_ADMIN64_CMD
        dwords = {name: getattr(asked, name) for name in ("cdw2", "cdw3", *_DWORDS)}
        command = ioctl.command(asked.opcode, asked.nsid, address, size, **dwords)
        return ioctl.run(self._node(asked.nsid if self.qid else 0), request, command)

    def _batch(self, columns: Columns, outcome: Outcome, depth: int, burst: int) -> None:
        del burst
        begun = time.monotonic_ns()

        def one(index: int, row: bytes, address: int, size: int) -> None:
            if columns.arrivals is not None:
                time.sleep(max(begun + int(columns.arrivals[index]) - time.monotonic_ns(), 0) / 1e9)
            submitted = time.monotonic_ns()
            answer = self._run(SQE.unpack(row), address, size)
            _note(outcome, index, answer.status, answer.result, submitted, time.monotonic_ns())

        with ThreadPoolExecutor(min(depth, _THREADS)) as pool:
            for first in range(0, columns.count, _CHUNK):
                end = min(first + _CHUNK, columns.count)
                entries, addresses, sizes = columns.commands(first, end)
                rows = [entries[place].tobytes() for place in range(end - first)]
                list(pool.map(one, range(first, end), rows, addresses.tolist(), sizes.tolist()))
        self._counters["commands"] += columns.count
        self._counters["doorbells"] += columns.count


class RingQueue(LinuxQueue):
    """Many commands out, on an io_uring of its own."""

    def __init__(self, qid: int, entries: int, nodes: Nodes, memory: ProcessMemory) -> None:
        """:raises RingUnavailable: io_uring can't be used here"""
        super().__init__(qid, entries, nodes, memory)
        self._ring = Ring(entries - 1)
        self._running: _Batch | None = None

    @property
    def interrupt_fd(self) -> int:
        """An eventfd, readable when completions have come: for ``select`` and event loops."""
        return self._ring.fileno()

    def close(self) -> None:
        """Wait shortly for what is out; memory of commands that are still out after that is never used again."""
        with self._lock:
            if not self._ring.close():
                _NEVER_FREED.extend(pending.data for pending in self._pending.values())
                _NEVER_FREED.append(self._running)

    def _enter(self, token: int, pending: _Pending) -> None:
        asked, data = pending.command, pending.data
        self._ring.passthrough(
            self._node(asked.nsid),
            asked.opcode,
            asked.nsid,
            0 if data is None else data.ctypes.data,
            0 if data is None else data.nbytes,
            token,
            cdw2=asked.cdw2,
            cdw3=asked.cdw3,
            **{name: getattr(asked, name) for name in _DWORDS},
        )
        self._pending[token] = pending

    def flush(self) -> None:
        """Send what ``submit_one(ring=False)`` entered."""
        with self._lock:
            self._send(0, None)

    def _send(self, wait: int, seconds: float | None) -> None:
        self._ring.submit(wait, seconds)
        self._counters["doorbells"] += 1

    def _reap(self, wait: int, seconds: float) -> None:
        if wait:
            self._send(wait, seconds)
        elif self._ring.unsent:
            self._send(0, None)
        for token, status, result in self._ring.completions():
            if not token & _BATCH:
                self._end(token, status, result)
            elif self._running is not None:
                self._running.end(token & ~_BATCH, status, result)

    def _batch(self, columns: Columns, outcome: Outcome, depth: int, burst: int) -> None:
        with self._lock:
            if self._running is not None and self._running.out:
                raise DriveTimeout(f"queue {self.qid} still waits for an earlier batch; drive.reset() starts afresh")
            batch = self._running = _Batch(columns, outcome)
            try:
                self._run(batch, depth, burst)
            except BaseException:
                batch.stop()
                deadline = time.monotonic() + 1.0
                while batch.out and time.monotonic() < deadline:
                    self._reap(1, SLICE_SECONDS)
                raise
        if batch.refused is not None:
            raise batch.refused

    def _run(self, batch: _Batch, depth: int, burst: int) -> None:
        seen, deadline = 0, time.monotonic() + self.timeout
        while batch.next < batch.count or batch.out:
            room = min(depth - batch.out, self._ring.room)
            added = batch.enter(self._ring, self._node, room)
            self._counters["commands"] += added
            full = batch.out >= depth or not self._ring.room
            seconds = SLICE_SECONDS if full else min(batch.wait_seconds(), SLICE_SECONDS)
            if batch.out:
                self._reap(min(burst, batch.out) if seconds else 0, seconds)
            elif seconds:
                time.sleep(seconds)
                self._reap(0, 0.0)
            if batch.finished != seen or not batch.out:
                seen, deadline = batch.finished, time.monotonic() + self.timeout
            elif time.monotonic() >= deadline:
                raise DriveTimeout(
                    f"queue {self.qid}: the drive completed nothing for {self.timeout:g} s with {batch.out} commands "
                    "out; the kernel's log (dmesg) may say why, drive.reset() starts afresh"
                )


class _Batch:
    """A batch under way on a ring."""

    def __init__(self, columns: Columns, outcome: Outcome) -> None:
        self.columns, self.outcome, self.count = columns, outcome, columns.count
        self.next = self.finished = 0
        self.refused: EmucsdError | None = None
        self._begun = time.monotonic_ns()
        self._submitted = np.zeros(self.count, np.int64)
        self._first, self._prepared = 0, np.zeros(0, _ENTRY_DTYPE)

    @property
    def out(self) -> int:
        """Commands that are out."""
        return self.next - self.finished

    def stop(self) -> None:
        """Enter nothing more."""
        self.count = self.next

    def wait_seconds(self) -> float:
        """How long nothing can be entered for want of arrivals; a long time where that is not what is waited for."""
        if self.columns.arrivals is None or self.next >= self.count:
            return 1e9
        return max(self._begun + int(self.columns.arrivals[self.next]) - time.monotonic_ns(), 0) / 1e9

    def enter(self, ring: Ring, node: Nodes, room: int) -> int:
        """Add as many commands as there is room for and time has come for. :returns: how many"""
        take = min(room, self.count - self.next)
        if take > 0 and self.columns.arrivals is not None:
            due = np.searchsorted(self.columns.arrivals, time.monotonic_ns() - self._begun, "right")
            take = min(take, int(due) - self.next)
        if take <= 0:
            return 0
        if self.next == self._first + len(self._prepared):
            self._prepare(node)
        at = self.next - self._first
        take = min(take, len(self._prepared) - at)
        ring.add(self._prepared[at : at + take].tobytes())
        self._submitted[self.next : self.next + take] = time.monotonic_ns()
        self.next += take
        return take

    def _prepare(self, node: Nodes) -> None:
        """Entries for the next commands."""
        end = min(self.next + _CHUNK, self.count)
        rows, addresses, sizes = self.columns.commands(self.next, end)
        made = np.zeros(end - self.next, _ENTRY_DTYPE)
        head, command = made["entry"], made["command"]
        head["opcode"], head["cmd_op"] = OP_URING_CMD, NVME_URING_CMD_IO
        for nsid in np.unique(rows["nsid"]).tolist():
            head["fd"][rows["nsid"] == nsid] = node(nsid)
        head["user_data"] = np.arange(self.next, end, dtype=np.uint64) | np.uint64(_BATCH)
        for name in ("opcode", "nsid", "cdw2", "cdw3", *_DWORDS):
            command[name] = rows[name]
        command["address"], command["length"] = addresses, sizes
        self._first, self._prepared = self.next, made

    def end(self, index: int, status: int, result: int) -> None:
        """A command has ended."""
        self.finished += 1
        if status < 0:
            if self.refused is None:
                rows, _, sizes = self.columns.commands(index, index + 1)
                self.refused = refusal(-status, int(rows["opcode"][0]), False, int(sizes[0]))
            self.stop()
            return
        _note(self.outcome, index, status, result, int(self._submitted[index]), time.monotonic_ns())


_NEVER_FREED: list[Any] = []


def _note(outcome: Outcome, index: int, status: int, result: int, submitted: int, now: int) -> None:
    outcome.statuses[index] = status & 0x7FF
    if outcome.latencies is not None:
        outcome.latencies[index] = now - submitted
    if outcome.submitted is not None:
        outcome.submitted[index] = submitted
    if outcome.results is not None:
        outcome.results[index] = np.uint64(result & (1 << 64) - 1).astype(np.int64)


def _refused(status: int, command: Sqe, is_admin: bool, data: NDArray[Any] | None) -> EmucsdError:
    return refusal(-status, command.opcode, is_admin, 0 if data is None else data.nbytes)
