"""The tunnel's two I/O commands (``emucsd_wire.tunnel``), as the queues see them.

A command that has to wait is parked in a line of the relay, and moves on when the other side's next command has made
room or brought frames, when its time is over, or when its port is reset. A parked command keeps nothing of the host's
memory: its data pointer is walked when the frames move. Parked commands don't count as the controller's work.
"""

from __future__ import annotations

from emucsd_firmware.clock import REAL
from emucsd_firmware.memory import gather, scatter
from emucsd_firmware.nvme.commands import Command, command_at, leave, respond, rest, resume, sqe_at
from emucsd_firmware.nvme.lookups import PARKED
from emucsd_firmware.nvme.prp import map_data
from emucsd_firmware.nvme.queues import QUEUES, PortState, cq_at, interrupt, sq_at
from emucsd_firmware.state import DriveState, drive_at, port_of
from emucsd_firmware.tunnel.faults import pass_on, release_spare
from emucsd_firmware.tunnel.lines import earliest, enter, pop, pop_expired
from emucsd_firmware.tunnel.ring import check, fits, frame_size, place, room, straight, take_out
from emucsd_firmware.tunnel.state import HEARD_NS, HOLD_NS, NEVER, Line, Tunnel, Way
from emucsd_firmware.tunnel.watch import look_through
from emucsd_wire.nvme import MAX_TRANSFER, Sqe, Status
from emucsd_wire.tunnel import FRAME_ALIGN, MAX_BATCH, MIN_PACKET
from emucsd_wire.words import copy, jit, jit_inline, jit_unit, monotonic, signed

_INVALID_FIELD = int(Status.INVALID_FIELD)
_SIZE_LIMIT = int(Status.COMMAND_SIZE_LIMIT)
_CLOSED, _BATCH = int(Status.TUNNEL_CLOSED), int(Status.TUNNEL_BATCH)
_ABORTED = int(Status.ABORT_REQUESTED)
_MS = 1_000_000  # ns


@jit_inline
def _way_from(tunnel: Tunnel, number: int) -> Way:
    """The way that carries what port ``number`` sends."""
    return tunnel.to_isp if number == 0 else tunnel.to_host


@jit_inline
def _way_to(tunnel: Tunnel, number: int) -> Way:
    return tunnel.to_host if number == 0 else tunnel.to_isp


@jit_inline
def _there(drive: DriveState, way: Way) -> bool:
    """Whether the receiving end asks for frames. On a virtual clock, once is for good."""
    if way.receivers.first != 0:
        return True
    return way.heard >= 0 if drive.clock.mode != REAL else drive.clock.now - way.heard < HEARD_NS


@jit
def _park(drive: DriveState, port: PortState, line: Line, slot: int, milliseconds: int) -> int:
    """Wait in a line, or don't: then the command succeeds with nothing."""
    if milliseconds == 0:
        return 0
    # the plane's own time may be old: a drive without delays rarely looks at the clock
    deadline = monotonic() + milliseconds * _MS if drive.clock.mode == REAL else NEVER
    enter(drive.tunnel, line, slot, deadline)
    rest(drive.clock, port)
    return PARKED


@jit_unit
def tunnel_send(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """TUNNEL_SEND (85h). dw0: frames taken, or the offset of the first bad one."""
    tunnel = drive.tunnel
    count = signed(sqe.cdw12)
    if tunnel.open == 0:
        return _CLOSED
    if count < frame_size(MIN_PACKET) or count % FRAME_ALIGN != 0:
        return _INVALID_FIELD
    if count > MAX_BATCH:
        return _SIZE_LIMIT
    way = _way_from(tunnel, port.number)
    if not _there(drive, way):
        way.head = way.tail  # nobody will ever ask for these
        way.spare_bytes = 0
    if way.senders.first != 0 or not fits(tunnel, way, count):
        way.waited += 1
        return _park(drive, port, way.senders, slot, signed(sqe.cdw13))
    status = _take(drive, port, way, command, sqe)
    _pump(drive, way)
    return status


@jit_unit
def tunnel_receive(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """TUNNEL_RECEIVE (86h). dw0: bytes, dw1: frames."""
    tunnel = drive.tunnel
    if tunnel.open == 0:
        return _CLOSED
    if signed(sqe.cdw12) < frame_size(tunnel.mtu) or signed(sqe.cdw12) > MAX_TRANSFER:
        return _SIZE_LIMIT
    way = _way_to(tunnel, port.number)
    way.heard = drive.clock.now
    if way.receivers.first != 0 or way.tail == way.head:
        return _park(drive, port, way.receivers, slot, signed(sqe.cdw13))
    status = _give(drive, port, way, command, sqe)
    _pump(drive, way)
    return status


@jit_unit
def _take(drive: DriveState, port: PortState, way: Way, command: Command, sqe: Sqe) -> int:
    """Copy a sender's batch behind the ring's tail, check it there, and let it in. There is room for it."""
    tunnel = drive.tunnel
    count = signed(sqe.cdw12)
    status = map_data(port.memory, drive.transfer, sqe, count, 0)
    if status != 0:
        return status
    first = min(count, straight(way, way.tail))
    gather(drive.transfer, place(way, way.tail), first)
    gather(drive.transfer, way.data, count - first)
    command.incoming = count
    if check(tunnel, way, count) == 0:
        way.refused += 1
        command.dw0 = tunnel.found
        return _BATCH
    command.dw0 = tunnel.found
    way.frames += tunnel.found
    way.bytes += count
    way.batches += 1
    if tunnel.watch.table != 0:
        look_through(tunnel, way, count)
    if not _there(drive, way):
        way.unheard += tunnel.found
    elif tunnel.faults != 0 or way.spare_bytes != 0:
        copy(tunnel.scratch, place(way, way.tail), first)
        copy(tunnel.scratch + first, way.data, count - first)
        pass_on(tunnel, way, tunnel.scratch, count, drive.clock.now)
        if drive.clock.mode != REAL:
            release_spare(way)  # virtual time may stand still: nothing is held back beyond its batch
    else:
        way.tail += count
    return 0


@jit_unit
def _give(drive: DriveState, port: PortState, way: Way, command: Command, sqe: Sqe) -> int:
    """Copy the frames at the ring's head to a receiver. There is at least one."""
    most = signed(sqe.cdw12)
    count = take_out(drive.tunnel, way, most)
    frames = drive.tunnel.found
    if count == 0:
        return _SIZE_LIMIT
    # all of the buffer, though less comes: how PRP2 is meant depends on the whole length
    status = map_data(port.memory, drive.transfer, sqe, most, 1)
    if status != 0:
        return status
    first = min(count, straight(way, way.head))
    scatter(drive.transfer, place(way, way.head), first)
    scatter(drive.transfer, way.data, count - first)
    way.head += count
    way.delivered += frames
    command.outgoing = count
    command.dw0 = count
    command.dw1 = frames
    return 0


@jit_inline
def _alive(port: PortState, command: Command) -> bool:
    """Whether the command's queue is still there."""
    return sq_at(port.sqs, command.sqid).generation == command.generation


@jit
def _answer(drive: DriveState, slot: int, status: int) -> None:
    """A parked command has what it waited for, or will not get it."""
    command = command_at(drive.commands.slots, slot)
    port = port_of(drive, command.port)
    resume(drive.clock, port)
    command.status = status
    command.arrived = command.ready = drive.clock.now  # waiting is nobody's lateness
    respond(drive.clock, drive.costs, drive.commands, port, slot, drive.clock.now)


@jit_unit
def _pump(drive: DriveState, way: Way) -> None:
    """Frames to who waits for them, senders into the room that makes, until nothing moves."""
    tunnel = drive.tunnel
    while True:
        if way.receivers.first != 0 and way.tail != way.head:
            slot = pop(tunnel, way.receivers)
            command = command_at(drive.commands.slots, slot)
            port = port_of(drive, command.port)
            status = 0
            if _alive(port, command):
                way.heard = drive.clock.now
                status = _give(drive, port, way, command, sqe_at(drive.commands.sqes, slot))
            _answer(drive, slot, status)
            continue
        if way.senders.first == 0:
            return
        slot = way.senders.first - 1
        command = command_at(drive.commands.slots, slot)
        port = port_of(drive, command.port)
        sqe = sqe_at(drive.commands.sqes, slot)
        status = 0
        if _alive(port, command):
            if not fits(tunnel, way, signed(sqe.cdw12)):
                return
            status = _take(drive, port, way, command, sqe)
        pop(tunnel, way.senders)
        _answer(drive, slot, status)


@jit_unit
def expire(drive: DriveState) -> int:
    """Whoever's time is over goes with nothing; a frame that was held back goes on. :returns: 1, there was work"""
    tunnel, now = drive.tunnel, drive.clock.now
    tunnel.wake = NEVER
    for number in range(2):
        way = _way_from(tunnel, number)
        if way.spare_until <= now:
            if room(way) >= way.spare_bytes:
                release_spare(way)
            else:
                way.spare_until = now + HOLD_NS
            _pump(drive, way)
        while True:
            slot = pop_expired(tunnel, way.senders, now)
            if slot < 0:
                break
            way.expired += 1
            _answer(drive, slot, 0)
        while True:
            slot = pop_expired(tunnel, way.receivers, now)
            if slot < 0:
                break
            way.idle += 1
            way.heard = now
            _answer(drive, slot, 0)
        _pump(drive, way)  # a smaller batch may have stood behind one that has gone
        lines = min(earliest(tunnel, way.senders), earliest(tunnel, way.receivers))
        tunnel.wake = min(tunnel.wake, lines, way.spare_until)
    return 1


# ---- for the control plane, with the data plane held ----


@jit
def _end(drive: DriveState, number: int, status: int) -> None:
    """End what waits on a port with a status; -1: its controller is being reset, nobody is told."""
    tunnel = drive.tunnel
    port = port_of(drive, number)
    for turn in range(2):
        line = _way_from(tunnel, number).senders if turn == 0 else _way_to(tunnel, number).receivers
        while True:
            slot = pop(tunnel, line)
            if slot < 0:
                break
            if status >= 0:
                _answer(drive, slot, status)
            else:
                resume(drive.clock, port)
                leave(drive.clock, drive.commands, port, slot)
    if port.enabled == 0:
        return
    for qid in range(1, QUEUES):
        if cq_at(port.cqs, qid).raised != 0:
            interrupt(port, qid)


@jit
def _empty(way: Way) -> None:
    way.head = way.tail
    way.spare_bytes = 0
    way.spare_until = NEVER


@jit
def end_waiting(address: int, number: int, status: int) -> None:
    """End the commands that wait on a port with a status."""
    _end(drive_at(address, 0), number, status)


@jit
def set_up(address: int, opened: int, mtu: int) -> None:
    """A new setup: the tunnel is empty, and nobody waits any more."""
    drive = drive_at(address, 0)
    _end(drive, 0, _ABORTED)
    _end(drive, 1, _CLOSED)
    _empty(drive.tunnel.to_isp)
    _empty(drive.tunnel.to_host)
    drive.tunnel.open = opened
    drive.tunnel.mtu = mtu


@jit
def reset_tunnel(address: int, number: int) -> None:
    """A controller reset: what waits on the port is gone, and what was on its way to it. Port 0's closes the tunnel."""
    drive = drive_at(address, 0)
    tunnel = drive.tunnel
    _end(drive, number, -1)
    way = _way_to(tunnel, number)
    _empty(way)
    way.heard = -NEVER
    way.generation += 1
    if number == 0 and tunnel.open != 0:
        tunnel.open = 0
        _end(drive, 1, _CLOSED)
        _empty(tunnel.to_isp)
