"""An io_uring for NVMe passthrough: many commands under way, an eventfd that tells when some have ended.

    with Ring(64) as ring:
        ring.passthrough(node, 0x02, 1, address, 4096, token=7, cdw10=lba)
        ring.submit(wait=1)
        for token, status, result in ring.completions(): ...

``status`` is NVMe's (0 is success), or a negative errno where Linux refused the command or gave it up.

Memory order. Entries are written before the tail that publishes them, and the tail is read by this same thread inside
``io_uring_enter`` (there is no kernel polling thread): the processor's own program order is all that this needs, on any
machine. Completions may be posted on another processor than the one that reads them: x86-64 keeps loads in order;
others run a membarrier between reading the kernel's tail and reading the entries below it.

A ring may be used from any thread, one call at a time. Data must stay where they are until their completion has come.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import struct
import time
from types import TracebackType
from typing import Annotated, NamedTuple, Self

from emucsd.errors import EmucsdError, InvalidArgument, QueueFull, RingUnavailable
from emucsd.linux.ioctl import PASSTHRU_COMMAND64, command
from emucsd_wire.layout import I32, U8, U16, U32, U64, Codec, Raw

ENTRY_BYTES, COMPLETION_BYTES = 128, 32
COMMAND_OFFSET = 48  # of an entry: where the driver's own structure begins
OP_NOP, OP_URING_CMD = 0, 46
# cmd_op: _IOWR('N', 0x80 ..., struct nvme_uring_cmd)
NVME_URING_CMD_IO, NVME_URING_CMD_ADMIN = 0xC0484E80, 0xC0484E82

# the same numbers on every machine since they are newer than the common table
_SETUP, _ENTER, _REGISTER = 425, 426, 427
_SETUP_FLAGS = 1 << 7 | 1 << 10 | 1 << 11  # SUBMIT_ALL, SQE128, CQE32
_FEAT_SINGLE_MMAP, _FEAT_NODROP, _FEAT_EXT_ARG = 1 << 0, 1 << 1, 1 << 8
_GETEVENTS, _EXT_ARG = 1 << 0, 1 << 3
_REGISTER_EVENTFD = 4
_OFFSET_RINGS, _OFFSET_ENTRIES = 0, 0x1000_0000
_MOST_ENTRIES = 4096
_CLOSE_SECONDS = 5.0

_MEMBARRIER = {"aarch64": 283, "riscv64": 283}.get(platform.machine(), 324)
_MEMBARRIER_EXPEDITED, _MEMBARRIER_REGISTER = 1 << 3, 1 << 4
_ORDERED_LOADS = platform.machine() in ("x86_64", "i686")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Params(NamedTuple):
    """struct io_uring_params."""

    sq_entries: U32
    cq_entries: U32
    flags: U32
    sq_thread_cpu: U32
    sq_thread_idle: U32
    features: U32
    wq_fd: U32
    reserved: Annotated[bytes, Raw(12)]
    sq_head: U32
    sq_tail: U32
    sq_mask: U32
    sq_ring_entries: U32
    sq_flags: U32
    sq_dropped: U32
    sq_array: U32
    sq_reserved: U32
    sq_user: U64
    cq_head: U32
    cq_tail: U32
    cq_mask: U32
    cq_ring_entries: U32
    cq_overflow: U32
    cq_cqes: U32
    cq_flags: U32
    cq_reserved: U32
    cq_user: U64


class Entry(NamedTuple):
    """The part of a 128-byte struct io_uring_sqe before the driver's own."""

    opcode: U8
    flags: U8
    ioprio: U16
    fd: I32
    cmd_op: U32
    pad: U32
    addr: U64
    len: U32
    cmd_flags: U32
    user_data: U64
    buf_index: U16
    personality: U16
    file_index: U32


class RingCompletion(NamedTuple):
    """A 32-byte struct io_uring_cqe."""

    user_data: U64
    res: I32
    flags: U32
    result: U64
    extra: U64


PARAMS = Codec(Params, 120)
ENTRY = Codec(Entry, COMMAND_OFFSET)
COMPLETION = Codec(RingCompletion, COMPLETION_BYTES)
_TIMESPEC = struct.Struct("<qq")
_GETEVENTS_ARG = struct.Struct("<QIIQ")  # sigmask, its size, pad, timespec


def _syscall(number: int, *arguments: int) -> int:
    result: int = _libc.syscall(*(ctypes.c_long(value) for value in (number, *arguments)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Ring:
    """An io_uring of ``entries`` commands (a power of two is made of it) that can be under way at a time.

    :raises RingUnavailable: the kernel is older than 5.19 or does not let this process use io_uring
    :raises InvalidArgument: not 1 to 4096 entries
    """

    def __init__(self, entries: int = 64) -> None:
        if not 1 <= entries <= _MOST_ENTRIES:
            raise InvalidArgument(f"{entries} entries: a ring has 1 to {_MOST_ENTRIES}")
        self._fd = self._event = -1
        self.outstanding = 0  # submitted, completion not yet taken
        self._queued = 0  # written, not yet submitted
        with contextlib.ExitStack() as stack:
            stack.callback(self._release)
            parameters = self._setup(entries)
            self._map(parameters)
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            wanted = ctypes.c_int(self._event)
            _syscall(_REGISTER, self._fd, _REGISTER_EVENTFD, ctypes.addressof(wanted), 1)
            if not _ORDERED_LOADS:
                _syscall(_MEMBARRIER, _MEMBARRIER_REGISTER, 0, 0)
            stack.pop_all()

    def _setup(self, entries: int) -> Params:
        buffer = ctypes.create_string_buffer(PARAMS.pack(Params(*_zeros())._replace(flags=_SETUP_FLAGS)), PARAMS.size)
        try:
            self._fd = _syscall(_SETUP, entries, ctypes.addressof(buffer))
        except OSError as problem:
            raise RingUnavailable(_why(problem)) from problem
        os.set_inheritable(self._fd, False)
        parameters = PARAMS.unpack(buffer.raw)
        needed = _FEAT_SINGLE_MMAP | _FEAT_NODROP | _FEAT_EXT_ARG
        if parameters.features & needed != needed:
            raise RingUnavailable(
                f"io_uring's features are {parameters.features:#x}, {needed:#x} are needed; use ioctl"
            )
        return parameters

    def _map(self, found: Params) -> None:
        self.entries = found.sq_entries
        size = max(found.sq_array + 4 * found.sq_entries, found.cq_cqes + COMPLETION_BYTES * found.cq_entries)
        self._rings = mmap.mmap(self._fd, size, offset=_OFFSET_RINGS)
        self._entries_map = mmap.mmap(self._fd, ENTRY_BYTES * found.sq_entries, offset=_OFFSET_ENTRIES)
        self._words = memoryview(self._rings).cast("I")
        self._slots = memoryview(self._entries_map)
        self._sq_head, self._sq_tail = found.sq_head // 4, found.sq_tail // 4
        self._cq_head, self._cq_tail = found.cq_head // 4, found.cq_tail // 4
        self._sq_mask, self._cq_mask = self._words[found.sq_mask // 4], self._words[found.cq_mask // 4]
        start = found.cq_cqes
        self._done = memoryview(self._rings)[start : start + COMPLETION_BYTES * found.cq_entries]
        for place in range(found.sq_entries):  # entry i is always in slot i
            self._words[found.sq_array // 4 + place] = place

    def fileno(self) -> int:
        """An eventfd, readable when completions have come since ``completions`` was last called."""
        return self._event

    @property
    def room(self) -> int:
        """Commands that can be added now."""
        return self.entries - self._queued - self.outstanding

    @property
    def unsent(self) -> int:
        """Commands that were added and not yet submitted."""
        return self._queued

    # -- out

    def passthrough(
        self,
        fd: int,
        opcode: int,
        nsid: int = 0,
        address: int = 0,
        length: int = 0,
        token: int = 0,
        *,
        timeout_ms: int = 0,
        admin: bool = False,
        **dwords: int,
    ) -> None:
        """Add one command; ``submit`` sends it.

        :param fd: of ``/dev/ng0n1`` for I/O (block device nodes take no io_uring commands), ``/dev/nvme0`` for admin
        :param address: of ``length`` bytes of this process's memory, which stay until the completion
        :param token: comes back with the completion; 64 bits
        :param timeout_ms: after which Linux aborts the command and, in the end, resets the controller; 0: its own, 30 s
        :raises QueueFull: ``entries`` commands are under way or added; take completions first
        """
        asked = command(opcode, nsid, address, length, timeout_ms, **dwords)
        operation = NVME_URING_CMD_ADMIN if admin else NVME_URING_CMD_IO
        head = Entry(OP_URING_CMD, 0, 0, fd, operation, 0, 0, 0, 0, token, 0, 0, 0)
        self.add(ENTRY.pack(head) + PASSTHRU_COMMAND64.pack(asked))

    def nop(self, token: int = 0) -> None:
        """Add a command that does nothing: its completion has status 0."""
        head = Entry(OP_NOP, 0, 0, -1, 0, 0, 0, 0, 0, token, 0, 0, 0)
        self.add(ENTRY.pack(head) + bytes(ENTRY_BYTES - ENTRY.size))

    def add(self, entries: bytes | memoryview) -> None:
        """Add prepared entries of ENTRY_BYTES each. :raises QueueFull: no room for all of them; none was added"""
        count = len(entries) // ENTRY_BYTES
        if count > self.room:
            raise QueueFull(f"{count} commands and {self.room} of {self.entries} free: take completions first")
        tail = self._words[self._sq_tail]
        for done in range(count):
            at = (tail + done & self._sq_mask) * ENTRY_BYTES
            self._slots[at : at + ENTRY_BYTES] = entries[done * ENTRY_BYTES : (done + 1) * ENTRY_BYTES]
        self._words[self._sq_tail] = tail + count & 0xFFFF_FFFF
        self._queued += count

    def submit(self, wait: int = 0, timeout: float | None = None) -> int:
        """Send what was added, then wait until ``wait`` completions are there to take, or ``timeout`` seconds.

        :returns: completions that are there; fewer than ``wait`` after a timeout or a signal
        """
        wait = min(wait, self._queued + self.outstanding)
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._queued or self.ready < wait:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            try:
                sent = self._enter(self._queued, wait, left)
            except InterruptedError:
                break
            except TimeoutError:
                sent = 0  # with something to send, an expired wait reports what was sent instead
            except OSError as problem:
                raise EmucsdError(f"io_uring took no commands: {problem.strerror}") from problem
            self._queued -= sent
            self.outstanding += sent
            if not sent and left is not None and deadline is not None and time.monotonic() >= deadline:
                break
        return self.ready

    def _enter(self, sending: int, wait: int, seconds: float | None) -> int:
        if not wait:
            return _syscall(_ENTER, self._fd, sending, 0, 0, 0, 0)
        if seconds is None:
            return _syscall(_ENTER, self._fd, sending, wait, _GETEVENTS, 0, 0)
        whole = int(seconds)
        limit = ctypes.create_string_buffer(_TIMESPEC.pack(whole, int((seconds - whole) * 1e9)), _TIMESPEC.size)
        argument = ctypes.create_string_buffer(
            _GETEVENTS_ARG.pack(0, 0, 0, ctypes.addressof(limit)), _GETEVENTS_ARG.size
        )
        try:
            return _syscall(
                _ENTER, self._fd, sending, wait, _GETEVENTS | _EXT_ARG, ctypes.addressof(argument), len(argument)
            )
        except OSError as problem:
            if problem.errno == errno.ETIME:
                raise TimeoutError from problem
            raise

    # -- back

    @property
    def ready(self) -> int:
        """Completions that can be taken now."""
        return self._words[self._cq_tail] - self._words[self._cq_head] & 0xFFFF_FFFF

    def completions(self, most: int | None = None) -> list[tuple[int, int, int]]:
        """Take completions that have come, at once: (token, NVMe status or -errno, dwords 0 and 1 of the completion).

        The eventfd is reset first, so that what comes meanwhile makes it readable again.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        head, count = self._words[self._cq_head], self.ready
        if most is not None:
            count = min(count, most)
        if not count:
            return []
        if not _ORDERED_LOADS:
            _syscall(_MEMBARRIER, _MEMBARRIER_EXPEDITED, 0, 0)
        taken = []
        for place in range(head, head + count):
            found = COMPLETION.unpack(self._done, (place & self._cq_mask) * COMPLETION_BYTES)
            taken.append((found.user_data, found.res, found.result))
        self._words[self._cq_head] = head + count & 0xFFFF_FFFF
        self.outstanding -= count
        return taken

    # -- life

    def close(self, timeout: float = _CLOSE_SECONDS) -> bool:
        """Wait shortly for what is out, then close. Harmless when repeated.

        :returns: False where commands are still out: keep their memory, the drive may still write to it
        """
        if self._fd < 0:
            return True
        deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError, EmucsdError):
            while self.outstanding and time.monotonic() < deadline:
                self.submit(1, 0.1)
                self.completions()
        left = self.outstanding
        for view in (self._words, self._slots, self._done):
            view.release()
        self._rings.close()
        self._entries_map.close()
        self._release()
        return not left

    def _release(self) -> None:
        for fd in (self._fd, self._event):
            if fd >= 0:
                os.close(fd)
        self._fd = self._event = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _zeros() -> Params:
    return PARAMS.unpack(bytes(PARAMS.size))


def _why(problem: OSError) -> str:
    match problem.errno:
        case errno.EPERM | errno.EACCES:
            return "this process may not use io_uring (sysctl kernel.io_uring_disabled, or a seccomp filter)"
        case errno.ENOSYS:
            return "this kernel has no io_uring"
        case errno.EINVAL:
            return "this kernel's io_uring has no 128-byte entries; Linux 5.19 is the first that has"
        case errno.ENOMEM:
            return "io_uring found no memory it may lock (ulimit -l)"
    return f"io_uring can't be set up: {problem.strerror}"
