"""The hot path, compiled: reads, writes and flushes of whole blocks go from /dev/fuse to a queue pair and back.

One loop, no thread of its own: it takes requests from the kernel until none is there, rings one doorbell, and answers
as completions come, so that as many are out as the kernel gives. A request's buffer is its command identifier's, lies
in the drive's memory and holds the data on whole pages: bytes are copied by the kernel and by the drive, not here.
Whatever else the kernel asks is handed back to Python, with the buffer that it lies in.

Layouts: linux/fuse.h, protocol 7.19.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from emucsd.ring import (
    SINGLE,
    UNSENT,
    Ring,
    enter,
    give_slot,
    reap,
    ring_at,
    ring_doorbells,
    send_unsent,
    slot_at,
    take_slot,
)
from emucsd_wire.layout import I64, State
from emucsd_wire.nvme import PAGE, Io
from emucsd_wire.words import get_i64, get_u32, jit, jit_inline, monotonic, pointer, put_i64, put_u32, relax, yield_core

READ, WRITE, FSYNC, FALLOCATE = 15, 16, 20, 43  # FUSE opcodes
FAST = 1 << 62  # of a file handle: a namespace's file, whose id is in the low bits
SPACES = 33
IN_HEADER, OUT_HEADER = 40, 16
DATA = PAGE  # of a buffer: where the data lie
REQUEST = DATA - 80  # where a request is read to: a write's own header has 40 bytes as well, so its data lie at DATA
SYNC = 0x1000  # O_DSYNC, which O_SYNC has too
FUA = 1 << 30

# why ``serve`` came back; IDLE: for no reason but the time
SLOW, IDLE, STALLED, GONE, CORRUPT, FAULT = 1, 2, 3, 4, 5, 6

_BURST = 32  # requests taken before the drive hears of them
_SPIN_NS = 30_000  # without any work: then sleep
_YIELD_NS = 8_000
_STALL_NS = 100_000_000  # without a completion: look whether the drive lives
_EINTR, _EAGAIN, _ENOENT, _ENODEV = 4, 11, 2, 19
_IO_READ, _IO_WRITE, _IO_FLUSH = int(Io.READ), int(Io.WRITE), int(Io.FLUSH)

_read = types.ExternalFunction("read", types.int64(types.int32, types.int64, types.int64))
_write = types.ExternalFunction("write", types.int64(types.int32, types.int64, types.int64))
_poll = types.ExternalFunction("poll", types.int32(types.int64, types.int64, types.int32))
_errno_location: Any = types.ExternalFunction("__errno_location", types.int64())


class Space(State):
    """A namespace as the loop serves it."""

    live: I64
    bytes: I64
    lba_shift: I64
    writable: I64


class Pending(State):
    """A request that is out, by its command identifier."""

    unique: I64
    opcode: I64
    size: I64


class Server(State):
    """The loop's state. Addresses are of memory that ``session`` owns."""

    fd: I64  # /dev/fuse, not blocking
    ring: I64
    buffers: I64  # ``buffer_bytes`` for each command identifier
    buffer_bytes: I64
    most: I64  # bytes of data that a command takes
    spaces: I64  # Space[SPACES], by nsid
    pending: I64  # Pending, by command identifier
    errnos: I64  # i64 for each status of 11 bits
    polled: I64  # struct pollfd[2]: fd, and the drive's socket
    template: I64  # 64 bytes of zeros
    out: I64  # commands that are out
    buffer: I64  # SLOW: where the request lies, and its length
    length: I64
    fault: I64  # FAULT: errno of reading
    reads: I64
    writes: I64
    flushes: I64
    failed: I64


server_at = pointer(Server)
space_at = pointer(Space)
pending_at = pointer(Pending)


@jit_inline
def _errno() -> int:
    return get_u32(_errno_location(), 0)


@jit
def _enter(server: Server, ring: Ring, nsid: int, opcode: int, request: int, at: int, size: int, flags: int) -> None:
    """Make a command of a request, which lies in the buffer of the identifier that is next."""
    number = take_slot(ring, SINGLE, 0)
    slot_at(ring.slots, number).released = 0
    pending = pending_at(server.pending, number)
    pending.unique = get_i64(request, 1)
    pending.opcode = get_u32(request, 1)
    pending.size = size
    data = server.buffers + number * server.buffer_bytes + DATA
    entry = enter(ring, server.template, number, data, size)
    put_i64(entry, 0, (get_i64(entry, 0) & 0xFFFF_0000) | opcode | nsid << 32)
    if size > 0:
        shift = space_at(server.spaces, nsid).lba_shift
        put_i64(entry, 5, at >> shift)
        put_u32(entry, 12, ((size >> shift) - 1) | flags)
    server.out += 1


@jit
def _take(server: Server, ring: Ring, request: int) -> int:
    """Send the request on to the drive. 1, or 0: it is not for this loop"""
    opcode = get_u32(request, 1)
    if opcode != READ and opcode != WRITE and opcode != FSYNC:
        return 0
    handle = get_i64(request, 5)
    nsid = handle & 0xFFFF
    if handle & FAST == 0 or nsid >= SPACES:
        return 0
    space = space_at(server.spaces, nsid)
    if space.live == 0:
        return 0
    if opcode == FSYNC:
        _enter(server, ring, nsid, _IO_FLUSH, request, 0, 0, 0)
        server.flushes += 1
        return 1
    at = get_i64(request, 6)
    size = get_u32(request, 14)
    mask = (1 << space.lba_shift) - 1
    if size == 0 or size > server.most or at < 0 or (at | size) & mask != 0 or at + size > space.bytes:
        return 0
    if opcode == READ:
        _enter(server, ring, nsid, _IO_READ, request, at, size, 0)
        server.reads += 1
    elif space.writable == 0:
        return 0
    else:
        flags = FUA if get_u32(request, 18) & SYNC != 0 else 0
        _enter(server, ring, nsid, _IO_WRITE, request, at, size, flags)
        server.writes += 1
    return 1


@jit
def _reply(server: Server, number: int, error: int) -> None:
    """Answer a request whose command has ended. Nobody may be waiting any more: then the kernel says ENOENT."""
    pending = pending_at(server.pending, number)
    at = server.buffers + number * server.buffer_bytes + DATA - OUT_HEADER
    size = OUT_HEADER
    if error != 0:
        server.failed += 1
    elif pending.opcode == READ:
        size += pending.size
    elif pending.opcode == WRITE:
        size += 8
        put_i64(at, 2, pending.size)
    put_u32(at, 0, size)
    put_u32(at, 1, (-error) & 0xFFFF_FFFF)
    put_i64(at, 1, pending.unique)
    _write(np.int32(server.fd), at, size)
    server.out -= 1


@jit
def _answer(server: Server, ring: Ring) -> int:
    """Answer whatever has completed. How many, or -1: the drive has named a command that is not out"""
    if reap(ring, 0) < 0:
        return -1
    answered = 0
    while ring.done_count > 0:
        ring.done_count -= 1
        number = get_i64(ring.done, ring.done_count)
        _reply(server, number, get_i64(server.errnos, slot_at(ring.slots, number).status & 0x7FF))
        give_slot(ring, number)
        answered += 1
    return answered


@jit
def _accept(server: Server, ring: Ring) -> int:
    """Take requests that are there. How many went to the drive, or minus the reason to go back to Python"""
    taken = 0
    while taken < _BURST and ring.free_count > 0:
        buffer = server.buffers + get_i64(ring.free, ring.free_count - 1) * server.buffer_bytes + REQUEST
        length = _read(np.int32(server.fd), buffer, server.buffer_bytes - REQUEST)
        if length < 0:
            error = _errno()
            if error == _EAGAIN:
                break
            if error == _ENOENT or error == _EINTR:
                continue  # it was interrupted before we had it
            server.fault = error
            return -GONE if error == _ENODEV else -FAULT
        if length == 0:
            return -GONE
        if _take(server, ring, buffer) == 0:
            server.buffer, server.length = buffer, length
            return -SLOW
        taken += 1
    return taken


@jit
def serve(address: int, slice_ms: int) -> int:
    """Serve until Python is needed, or for about ``slice_ms``: then Python sees signals. :returns: why it came back"""
    server = server_at(address, 0)
    ring = ring_at(server.ring, 0)
    last = monotonic()
    stop = last + 1_000_000 * slice_ms
    while True:
        taken = _accept(server, ring)
        if ring.unsent != 0:
            send_unsent(ring)
        if ring_doorbells(ring) == UNSENT:
            yield_core()
        if taken < 0:
            return -taken
        answered = 0
        if server.out > 0:
            answered = _answer(server, ring)
            if answered < 0:
                return CORRUPT
        if taken > 0 or answered > 0:
            last = monotonic()
            if last > stop:
                return IDLE
            continue
        waited = monotonic() - last
        if server.out > 0:
            if waited > _STALL_NS:
                return STALLED
            if waited > _YIELD_NS:
                yield_core()
            else:
                relax()
        elif waited > _SPIN_NS:
            if _poll(server.polled, 2, np.int32(slice_ms)) <= 0:
                return IDLE
            if get_i64(server.polled, 1) >> 48 != 0:
                return STALLED  # the drive's socket: it has hung up
            last = monotonic()


@jit
def drain(address: int, patience_ns: int) -> int:
    """Wait until nothing is out. 0, or why not: STALLED, CORRUPT"""
    server = server_at(address, 0)
    ring = ring_at(server.ring, 0)
    last = monotonic()
    while server.out > 0:
        answered = _answer(server, ring)
        if answered < 0:
            return CORRUPT
        now = monotonic()
        if answered > 0:
            last = now
        elif now - last > patience_ns:
            return STALLED
        else:
            yield_core()
    return 0


@jit
def fail_all(address: int, error: int) -> None:
    """Answer every request that is out with an error: the drive is gone."""
    server = server_at(address, 0)
    ring = ring_at(server.ring, 0)
    for number in range(ring.slot_count):
        slot = slot_at(ring.slots, number)
        if slot.index == SINGLE:
            _reply(server, number, error)
            give_slot(ring, number)
