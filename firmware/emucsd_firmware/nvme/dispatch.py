"""From an opcode to the function that runs it, and what the data plane asks about an entry before it acts."""

from __future__ import annotations

from emucsd_firmware.nvme.commands import Command
from emucsd_firmware.nvme.dataset import copy_blocks, dataset_management, write_zeroes
from emucsd_firmware.nvme.io import (
    block_count,
    check_namespace,
    compare,
    flush_namespace,
    read,
    slba,
    verify,
    write,
    write_uncorrectable,
)
from emucsd_firmware.nvme.lookups import lookup_read, lookup_send, table_update
from emucsd_firmware.nvme.queues import NAMESPACES, PortState, namespace_at
from emucsd_firmware.nvme.recssd import marked, moved_bytes, recssd_command
from emucsd_firmware.nvme.sessions import rm_read, rm_send, rm_weights
from emucsd_firmware.nvme.tunnels import tunnel_receive, tunnel_send
from emucsd_firmware.state import DriveState
from emucsd_wire import nvme
from emucsd_wire.nvme import Sqe
from emucsd_wire.words import jit, jit_unit, signed

_INVALID_OPCODE = int(nvme.Status.INVALID_OPCODE)
_INVALID_FIELD = int(nvme.Status.INVALID_FIELD)
_FLUSH, _WRITE, _READ = int(nvme.Io.FLUSH), int(nvme.Io.WRITE), int(nvme.Io.READ)
_WRITE_UNCORRECTABLE, _COMPARE = int(nvme.Io.WRITE_UNCORRECTABLE), int(nvme.Io.COMPARE)
_WRITE_ZEROES, _DSM = int(nvme.Io.WRITE_ZEROES), int(nvme.Io.DATASET_MANAGEMENT)
_VERIFY, _COPY = int(nvme.Io.VERIFY), int(nvme.Io.COPY)
_SEND, _READ_SUMS = int(nvme.Io.LOOKUP_SEND), int(nvme.Io.LOOKUP_READ)
_UPDATE = int(nvme.Io.TABLE_UPDATE)
_TUNNEL_SEND, _TUNNEL_RECEIVE = int(nvme.Io.TUNNEL_SEND), int(nvme.Io.TUNNEL_RECEIVE)
_RM_SEND, _RM_READ, _RM_WEIGHTS = int(nvme.Io.RM_SEND), int(nvme.Io.RM_READ), int(nvme.Io.RM_WEIGHTS)
_FUSE = 3


@jit
def peek_lpn(drive: DriveState, port: PortState, sqe: Sqe) -> int:
    """The page of a one-page read or write, for prefetching its map entry; -1 when there is nothing to fetch early."""
    opcode, nsid = signed(sqe.opcode), signed(sqe.nsid)
    if (opcode != _READ and opcode != _WRITE) or nsid < 1 or nsid > NAMESPACES:
        return -1
    space = namespace_at(port.namespaces, nsid)
    first = slba(sqe)
    if space.attached == 0 or first < 0 or first >= space.blocks:
        return -1
    return space.first_lpn + (first >> (drive.ftl.page_shift - space.lba_shift))


@jit
def touched_bytes(drive: DriveState, port: PortState, sqe: Sqe) -> int:
    """Bytes of the namespace that a read or write is about: the controller handles each of their pages."""
    opcode, nsid = signed(sqe.opcode), signed(sqe.nsid)
    if marked(drive, sqe):
        return moved_bytes(sqe, opcode)
    if (opcode != _READ and opcode != _WRITE and opcode != _COMPARE) or nsid < 1 or nsid > NAMESPACES:
        return 0
    return block_count(sqe) << namespace_at(port.namespaces, nsid).lba_shift


@jit
def incoming_bytes(drive: DriveState, port: PortState, sqe: Sqe) -> int:
    """Bytes that a command brings over the link before it can act."""
    opcode = signed(sqe.opcode)
    if opcode == _WRITE or opcode == _COMPARE:
        return touched_bytes(drive, port, sqe)
    if opcode == _SEND or opcode == _TUNNEL_SEND or opcode == _RM_SEND or opcode == _RM_WEIGHTS or opcode == _UPDATE:
        return min(signed(sqe.cdw12), nvme.MAX_TRANSFER)
    if opcode == _DSM:
        return 16 * ((signed(sqe.cdw10) & 0xFF) + 1)
    if opcode == _COPY:
        return 32 * ((signed(sqe.cdw12) & 0xFF) + 1)
    return 0


@jit_unit
def execute(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Run one I/O command. :returns: its status, or PARKED when a lookup, a session or a tunnel completes it later"""
    opcode = command.opcode
    if opcode == _TUNNEL_SEND or opcode == _TUNNEL_RECEIVE:
        return _execute_tunnel(drive, port, slot, command, sqe)
    if drive.refused != 0:
        return drive.refused  # a sanitize operation runs or has failed, a format is under way
    if signed(sqe.flags) & _FUSE != 0:
        return _INVALID_FIELD  # fused operations are not offered (Identify Controller FUSES = 0)
    if opcode == _FLUSH:
        return flush_namespace(drive, port, slot, command)
    status = check_namespace(port, command.nsid)
    if status != 0:
        return status
    if marked(drive, sqe):
        return recssd_command(drive, port, slot, command, sqe)
    if opcode == _READ:
        return read(drive, port, slot, command, sqe)
    if opcode == _WRITE:
        return write(drive, port, slot, command, sqe)
    if opcode == _SEND:
        return lookup_send(drive, port, command, sqe)
    if opcode == _READ_SUMS:
        return lookup_read(drive, port, slot, command, sqe)
    if opcode == _RM_SEND:
        return rm_send(drive, port, command, sqe)
    if opcode == _RM_READ:
        return rm_read(drive, port, slot, command, sqe)
    return _execute_rare(drive, port, slot, command, sqe)


@jit
def _execute_tunnel(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """The tunnel is of no namespace, and of no concern to a sanitize operation."""
    if signed(sqe.flags) & _FUSE != 0:
        return _INVALID_FIELD
    if command.opcode == _TUNNEL_SEND:
        return tunnel_send(drive, port, slot, command, sqe)
    return tunnel_receive(drive, port, slot, command, sqe)


@jit
def _execute_rare(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    opcode = command.opcode
    if opcode == _RM_WEIGHTS:
        return rm_weights(drive, port, command, sqe)
    if opcode == _UPDATE:
        return table_update(drive, port, slot, command, sqe)
    if opcode == _DSM:
        return dataset_management(drive, port, slot, command, sqe)
    if opcode == _WRITE_ZEROES:
        return write_zeroes(drive, port, slot, command, sqe)
    if opcode == _COMPARE:
        return compare(drive, port, slot, command, sqe)
    if opcode == _VERIFY:
        return verify(drive, port, slot, command, sqe)
    if opcode == _COPY:
        return copy_blocks(drive, port, slot, command, sqe)
    if opcode == _WRITE_UNCORRECTABLE:
        return write_uncorrectable(drive, port, slot, command, sqe)
    return _INVALID_OPCODE
