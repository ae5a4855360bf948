"""Batches: what RM_SEND leaves with a session under a tag, until RM_READ takes the outputs away.

A batch is checked whole before it has any effect.
"""

from __future__ import annotations

from emucsd_firmware.lookup.queue import check, first_bad_offset
from emucsd_firmware.lookup.state import Lookup
from emucsd_firmware.mlp.engine import Program, program_at, stage_at
from emucsd_firmware.session.pipeline import enter
from emucsd_firmware.session.requests import feed, stop
from emucsd_firmware.session.state import (
    FREE,
    READY,
    WORKING,
    Batch,
    Session,
    Sessions,
    batch_at,
    mini_at,
    session_at,
)
from emucsd_wire.nvme import Status
from emucsd_wire.rm import (
    MAX_DEPTH,
    MAX_RM_PAYLOAD,
    MAX_RM_TAGS,
    MAX_SESSIONS,
    RM_BATCH,
    RM_REGISTERS,
    RmBatchFlag,
)
from emucsd_wire.words import get_i64, get_u32, jit, jit_unit, load_u32, put_i64

_INVALID_FIELD = int(Status.INVALID_FIELD)
_SIZE_LIMIT = int(Status.COMMAND_SIZE_LIMIT)
_OFFSETS = int(Status.LOOKUP_OFFSETS)
_NO_SESSION, _NO_BATCH, _BUSY = int(Status.RM_NO_SESSION), int(Status.RM_NO_BATCH), int(Status.RM_BUSY)
_WEIGHTS, _BATCH = int(Status.RM_WEIGHTS), int(Status.RM_BATCH)
_WEIGHTED, _WIDE = int(RmBatchFlag.WEIGHTED), int(RmBatchFlag.WIDE_IDS)

_HEADER = RM_BATCH.size
_SAMPLES, _LOOKUPS, _FLAGS = (RM_BATCH.offset(name) for name in ("samples", "lookups", "flags"))
_R_SAMPLES, _R_LOOKUPS, _R_FLAGS = (RM_REGISTERS.offset(name) // 4 for name in ("samples", "lookups", "flags"))


@jit
def find_session(sessions: Sessions, port: int, number: int) -> int:
    """The slot of a port's open session, or -1. Ids carry a generation: an old one finds nothing."""
    slot = number % MAX_SESSIONS
    session = session_at(sessions.sessions, slot)
    return slot if number != 0 and session.id == number and session.port == port else -1


@jit
def _find_batch(sessions: Sessions, slot: int, tag: int) -> int:
    """The number of the batch that has a tag, or -1."""
    for number in range(slot * MAX_DEPTH, (slot + 1) * MAX_DEPTH):
        batch = batch_at(sessions.batches, number)
        if batch.state != FREE and batch.dropped == 0 and batch.tag == tag:
            return number
    return -1


@jit
def _first_missing(program: Program) -> int:
    """The first layer that has weights missing."""
    layer = 0
    while stage_at(program.stages, get_i64(program.layers, layer)).missing == 0:
        layer += 1
    return layer


@jit
def place_for(sessions: Sessions, port: int, number: int, tag: int, count: int) -> int:
    """The number of a free batch to whose ``payload`` an RM_SEND's data may be copied before ``send``, or a negative
    status. No effect."""
    sessions.position = 0
    slot = find_session(sessions, port, number)
    if slot < 0:
        return -_NO_SESSION
    if tag < 0 or tag >= MAX_RM_TAGS or count < _HEADER:
        return -_INVALID_FIELD
    if count > MAX_RM_PAYLOAD:
        return -_SIZE_LIMIT
    session = session_at(sessions.sessions, slot)
    program = program_at(session.program, 0)
    if program.missing != 0:
        sessions.position = _first_missing(program)
        return -_WEIGHTS
    if _find_batch(sessions, slot, tag) >= 0:
        return -_BUSY
    for place in range(slot * MAX_DEPTH, slot * MAX_DEPTH + session.depth):
        if batch_at(sessions.batches, place).state == FREE:
            return place
    return -_BUSY


@jit
def _parse(session: Session, batch: Batch, count: int) -> int:
    """Read the header, find the parts, and check their sizes. 0 or a status."""
    data = batch.payload
    samples, lookups, flags = get_u32(data + _SAMPLES, 0), get_u32(data + _LOOKUPS, 0), get_u32(data + _FLAGS, 0)
    if samples == 0:
        samples, lookups = load_u32(session.registers, _R_SAMPLES), load_u32(session.registers, _R_LOOKUPS)
        flags = load_u32(session.registers, _R_FLAGS)
    if flags > (_WEIGHTED | _WIDE):
        return _INVALID_FIELD
    if samples == 0 or samples > session.samples:
        return _BATCH
    # as ``emucsd_wire.rm.batch_layout``
    offsets = _HEADER + 4 * samples * session.dense
    ids = (offsets + 4 * (session.tables * samples + 1) + 7) & -8
    id_bytes = 8 if flags & _WIDE != 0 else 4
    ids_end = ids + lookups * id_bytes
    weights = (ids_end + 7) & -8
    if (weights + 4 * lookups if flags & _WEIGHTED != 0 else ids_end) != count:
        return _BATCH
    batch.samples = samples
    batch.lookups = lookups
    batch.id_bytes = id_bytes
    batch.dense = data + _HEADER
    batch.offsets = data + offsets
    batch.ids = data + ids
    batch.weights = data + weights if flags & _WEIGHTED != 0 else 0
    return 0


@jit
def _check(sessions: Sessions, lookup: Lookup, session: Session, batch: Batch) -> int:
    """Offsets and ids. 0, or a status and ``sessions.position``."""
    bad = first_bad_offset(batch.offsets, session.tables * batch.samples, 0, batch.lookups)
    if bad >= 0:
        sessions.position = bad
        return _OFFSETS
    probe = sessions.probe
    probe.bags = batch.samples
    probe.id_bytes = batch.id_bytes
    probe.indices = batch.ids
    for table in range(session.tables):
        probe.table = session.slots[table]
        probe.offsets = batch.offsets + 4 * table * batch.samples
        probe.first = get_u32(probe.offsets, 0)
        probe.ids = get_u32(probe.offsets, batch.samples)
        status = check(lookup, probe)
        if status != 0:
            sessions.position = lookup.position
            return status
    return 0


@jit_unit
def send(sessions: Sessions, lookup: Lookup, now: int, number: int, tag: int, count: int) -> int:
    """Take up the batch whose ``count`` bytes were copied to its ``payload``. 0, or a status and ``sessions.position``.

    :param number: of the batch, as ``place_for`` has given it
    """
    sessions.position = 0
    batch = batch_at(sessions.batches, number)
    session = session_at(sessions.sessions, number // MAX_DEPTH)
    status = _parse(session, batch, count)
    if status == 0:
        status = _check(sessions, lookup, session, batch)
    if status != 0:
        return status
    batch.state = WORKING
    batch.tag = tag
    batch.arrived = now
    batch.count = (batch.samples + session.minibatch - 1) // session.minibatch
    batch.mini = batch.table = batch.timed = batch.settled = batch.topped = 0
    batch.bottomed = 0 if session.bottom_stages != 0 else batch.samples
    batch.finish = now
    batch.changed = batch.status = batch.position = batch.dropped = 0
    batch.waiter = -1
    for index in range(batch.count):
        mini = mini_at(batch.minis, index)
        mini.pending = session.tables
        mini.ready = now
    for table in range(session.tables):
        put_i64(batch.versions, table, -1)
    session.lookups += batch.lookups
    enter(sessions, session, batch)
    feed(sessions, lookup, now)
    return 0


@jit
def read(sessions: Sessions, port: int, number: int, tag: int, count: int, waiter: int) -> int:
    """RM_READ: the number of the tag's batch, or a negative status.

    Where its state is READY, ``status`` is how it went: ``release`` it. Else ``waiter`` is remembered, and the batch
    comes out of ``pipeline.pop_ready``.

    :param count: the bytes that the host has room for; must be all of the outputs'
    :param waiter: a number >= 0 of the caller's
    """
    slot = find_session(sessions, port, number)
    if slot < 0:
        return -_NO_SESSION
    found = _find_batch(sessions, slot, tag)
    if found < 0:
        return -_NO_BATCH
    batch = batch_at(sessions.batches, found)
    if batch.waiter >= 0:
        return -_BUSY
    if count != output_bytes(sessions, batch):
        return -_BATCH
    batch.waiter = waiter
    return found


@jit
def output_bytes(sessions: Sessions, batch: Batch) -> int:
    """Size of a batch's outputs."""
    return 4 * batch.samples * session_at(sessions.sessions, batch.number // MAX_DEPTH).out


@jit
def release(batch: Batch) -> None:
    """Free a READY batch that has been read."""
    batch.state = FREE
    batch.waiter = -1


@jit
def drop(sessions: Sessions, lookup: Lookup, now: int, port: int, number: int, tag: int) -> int:
    """RM_READ of 0 bytes: free the tag, whatever becomes of its batch. 0 or a status."""
    slot = find_session(sessions, port, number)
    if slot < 0:
        return _NO_SESSION
    found = _find_batch(sessions, slot, tag)
    if found < 0:
        return _NO_BATCH
    batch = batch_at(sessions.batches, found)
    if batch.waiter >= 0:
        return _BUSY
    if batch.state == READY:
        release(batch)
    else:
        batch.dropped = 1
        stop(sessions, lookup, session_at(sessions.sessions, slot), batch, now)
    return 0
