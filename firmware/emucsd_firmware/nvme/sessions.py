"""The three commands of inference sessions, as the queues see them: data in, data out; the engine knows no NVMe.

RM_SEND completes when the drive has taken the batch; RM_READ is parked until the batch's modelled time has come and its
outputs are computed. A parked command keeps nothing of the host's memory: its data pointer is walked when they go out.
"""

from __future__ import annotations

from emucsd_firmware.clock import push
from emucsd_firmware.lookup.queue import pop_settled
from emucsd_firmware.memory import gather, scatter
from emucsd_firmware.mlp.engine import load_weights, program_at
from emucsd_firmware.nvme.commands import COMPLETE, Command, command_at, leave, sqe_at
from emucsd_firmware.nvme.lookups import PARKED
from emucsd_firmware.nvme.prp import map_data
from emucsd_firmware.nvme.queues import PortState, sq_at
from emucsd_firmware.session.batches import drop, find_session, output_bytes, place_for, read, release, send
from emucsd_firmware.session.pipeline import pop_ready, set_wake
from emucsd_firmware.session.requests import feed, settle, stop
from emucsd_firmware.session.state import FREE, READY, batch_at, session_at
from emucsd_firmware.state import DriveState, drive_at, port_of
from emucsd_wire.nvme import Sqe, Status
from emucsd_wire.rm import MAX_DEPTH, MAX_RM_PAYLOAD
from emucsd_wire.words import jit, jit_unit, signed, store_u32

_INVALID_FIELD, _SIZE_LIMIT = int(Status.INVALID_FIELD), int(Status.COMMAND_SIZE_LIMIT)
_NO_SESSION, _BUSY, _WEIGHTS = int(Status.RM_NO_SESSION), int(Status.RM_BUSY), int(Status.RM_WEIGHTS)


@jit_unit
def rm_send(drive: DriveState, port: PortState, command: Command, sqe: Sqe) -> int:
    """RM_SEND (89h). dw0 of a refusal: position of the first bad id or offset, or the layer without weights."""
    sessions, tag, count = drive.sessions, signed(sqe.cdw11), signed(sqe.cdw12)
    number = place_for(sessions, port.number, signed(sqe.cdw10), tag, count)
    status = -min(number, 0)
    if status == 0:
        status = map_data(port.memory, drive.transfer, sqe, count, 0)
    if status == 0:
        gather(drive.transfer, batch_at(sessions.batches, number).payload, count)
        command.incoming = count
        status = send(sessions, drive.lookup, drive.clock.now, number, tag, count)
    if status != 0:
        command.dw0 = sessions.position
    else:
        port.counters.lookups += 1
    return status


@jit_unit
def rm_weights(drive: DriveState, port: PortState, command: Command, sqe: Sqe) -> int:
    """RM_WEIGHTS (8Dh)."""
    sessions, count = drive.sessions, signed(sqe.cdw12)
    slot = find_session(sessions, port.number, signed(sqe.cdw10))
    if slot < 0:
        return _NO_SESSION
    if count > MAX_RM_PAYLOAD:
        return _SIZE_LIMIT
    if count == 0:
        return _INVALID_FIELD
    session = session_at(sessions.sessions, slot)
    if session.count != 0:
        return _BUSY
    status = map_data(port.memory, drive.transfer, sqe, count, 0)
    if status != 0:
        return status
    buffer = batch_at(sessions.batches, slot * MAX_DEPTH).payload  # no batch is under way: it is free
    gather(drive.transfer, buffer, count)
    command.incoming = count
    program = program_at(session.program, 0)
    return _WEIGHTS if load_weights(program, signed(sqe.cdw11), signed(sqe.cdw13), buffer, count) != 0 else 0


@jit_unit
def rm_read(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """RM_READ (8Ah). dw0: whether a table has changed meanwhile; of Unrecovered Read the position of the row's id."""
    sessions, session, tag = drive.sessions, signed(sqe.cdw10), signed(sqe.cdw11)
    count = signed(sqe.cdw12)
    if count == 0:
        return drop(sessions, drive.lookup, drive.clock.now, port.number, session, tag)
    number = read(sessions, port.number, session, tag, count, slot)
    if number < 0:
        return -number
    if batch_at(sessions.batches, number).state != READY:
        return PARKED
    return _take_outputs(drive, number)


@jit
def _take_outputs(drive: DriveState, number: int) -> int:
    """Copy a READY batch's outputs to the command that waits for it and free the batch. :returns: the status"""
    batch = batch_at(drive.sessions.batches, number)
    slot = batch.waiter
    command = command_at(drive.commands.slots, slot)
    port = port_of(drive, command.port)
    status = batch.status
    command.dw0 = batch.changed if status == 0 else batch.position
    command.ready = max(command.ready, batch.finish)
    count = output_bytes(drive.sessions, batch)
    if status == 0:
        status = map_data(port.memory, drive.transfer, sqe_at(drive.commands.sqes, slot), count, 1)
    if status == 0:
        scatter(drive.transfer, batch.outputs, count)
        command.outgoing = count
    release(batch)
    return status


@jit_unit
def next_inferred(drive: DriveState) -> int:
    """The slot of the next parked command whose batch is ready, with its outputs copied, or -1."""
    number = pop_ready(drive.sessions)
    if number < 0:
        return -1
    batch = batch_at(drive.sessions.batches, number)
    slot = batch.waiter
    command = command_at(drive.commands.slots, slot)
    port = port_of(drive, command.port)
    command.status = 0
    if sq_at(port.sqs, command.sqid).generation == command.generation:
        command.status = _take_outputs(drive, number)
    else:
        batch.waiter = -1  # its queue was deleted: the command ends in silence, another can read the batch
    return slot


@jit_unit
def collect(drive: DriveState) -> None:
    """Hand sums that have come to their sessions, and send out what there is room for now."""
    while True:
        number = pop_settled(drive.lookup)
        if number < 0:
            break
        settle(drive.sessions, drive.lookup, number)
    if drive.sessions.backlog != 0:
        feed(drive.sessions, drive.lookup, drive.clock.now)


# ---- for the control plane, with the data plane held ----


@jit
def end_session(address: int, slot: int, status: int) -> None:
    """Drop a session's batches and forget it. Who waits for one gets ``status``; 0: nobody is told, as in a reset."""
    drive = drive_at(address, 0)
    sessions = drive.sessions
    session = session_at(sessions.sessions, slot)
    port = port_of(drive, session.port)
    for number in range(slot * MAX_DEPTH, (slot + 1) * MAX_DEPTH):
        batch = batch_at(sessions.batches, number)
        waiter = batch.waiter
        if batch.state != FREE:
            stop(sessions, drive.lookup, session, batch, drive.clock.now)
            batch.state = FREE
            batch.waiter = -1
        if waiter >= 0:
            _dismiss(drive, port, waiter, status)
    session.count = 0
    session.running = 0
    session.id = 0
    sessions.work &= ~(1 << slot)
    set_wake(sessions)
    for word in range(16):
        store_u32(session.registers, word, 0)


@jit
def _dismiss(drive: DriveState, port: PortState, slot: int, status: int) -> None:
    """A parked command gets no outputs."""
    if status == 0:
        leave(drive.clock, drive.commands, port, slot)
        return
    command = command_at(drive.commands.slots, slot)
    command.status = status
    command.ready = drive.clock.now
    push(drive.clock, drive.clock.now, 2 * slot + COMPLETE)
