"""One admin command on its way: its entry, its data in host memory by PRP, and how it is refused."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from emucsd_firmware.memory import MAX_SEGMENTS, Memory, Segment, Transfer
from emucsd_firmware.nvme.prp import walk_prp
from emucsd_wire.nvme import DNR, MAX_TRANSFER, PAGE, SQE, Sqe, Status
from emucsd_wire.words import jit, pointer

NO_LOCATION = 0xFFFF

memory_at = pointer(Memory)
transfer_at = pointer(Transfer)

# statuses that another try may not meet: all others carry Do Not Retry
_TRANSIENT = frozenset(
    {
        Status.INTERNAL_ERROR,
        Status.ABORT_REQUESTED,
        Status.SANITIZE_IN_PROGRESS,
        Status.FORMAT_IN_PROGRESS,
        Status.NAMESPACE_NOT_READY,
        Status.AER_LIMIT,
        Status.ABORT_LIMIT,
    }
)


class Refused(Exception):
    """Ends an admin command with a status. It never leaves the controller: a guest's mistake is no error of ours.

    :param field: name of the entry's field at fault, for the Error Information log
    """

    def __init__(self, status: Status, field: str | None = None, *, dw0: int = 0) -> None:
        super().__init__(f"{status.name} ({int(status):#x}){f' in {field}' if field else ''}")
        self.status = status
        self.dw0 = dw0
        self.location = NO_LOCATION if field is None else SQE.offset(field)


def with_flags(status: int) -> int:
    """A status with Do Not Retry where repeating the command would not help."""
    return int(status if status == 0 or status in _TRANSIENT else status | DNR)


@jit
def _walk(memory: int, transfer: int, prp1: int, prp2: int, length: int, writing: int) -> int:
    return walk_prp(memory_at(memory, 0), transfer_at(transfer, 0), prp1, prp2, length, writing)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class HostData:
    """Moves admin commands' data. Every byte's place is checked before the first one moves.

    :param memory: the Memory record of a port
    """

    def __init__(self, memory: Any) -> None:
        self._memory = int(memory.__array_interface__["data"][0])
        self._segments = np.zeros(MAX_SEGMENTS, Segment.dtype)
        self._transfer = np.zeros(1, Transfer.dtype)
        self._transfer["segments"] = self._segments.ctypes.data

    def read(self, sqe: Sqe, count: int) -> bytes:
        """The command's first ``count`` bytes. :raises Refused: its PRPs do not describe them"""
        return b"".join(ctypes.string_at(address, length) for address, length in self._walk(sqe, count, writing=False))

    def write(self, sqe: Sqe, data: bytes) -> None:
        """Answer with ``data``. :raises Refused: the command's PRPs do not describe that much"""
        at = 0
        for address, length in self._walk(sqe, len(data), writing=True):
            ctypes.memmove(address, data[at : at + length], length)
            at += length

    def _walk(self, sqe: Sqe, count: int, *, writing: bool) -> list[tuple[int, int]]:
        if count == 0:
            return []
        if count > MAX_TRANSFER:
            raise Refused(Status.INVALID_FIELD, "cdw10")
        if count > PAGE - (sqe.prp1 & (PAGE - 1)) and sqe.prp2 == 0:
            raise Refused(Status.INVALID_FIELD, "prp2")  # the host gave less than the command moves
        record = self._transfer.ctypes.data
        status = _walk(self._memory, record, _signed(sqe.prp1), _signed(sqe.prp2), count, int(writing))
        if status != 0:
            raise Refused(Status(status), "prp1")
        used = self._segments[: int(self._transfer["count"][0])]
        return [(int(segment["address"]), int(segment["length"])) for segment in used]


class Request:
    """An admin command: ``sqe``, and its data.

    Handlers return DW0 (None for 0) or raise ``Refused``.
    """

    def __init__(self, sqe: Sqe, data: HostData) -> None:
        self.sqe = sqe
        self._data = data

    @property
    def nsid(self) -> int:
        return self.sqe.nsid

    def read(self, count: int) -> bytes:
        """The ``count`` bytes that the host sends. :raises Refused: its PRPs do not describe them"""
        return self._data.read(self.sqe, count)

    def write(self, data: bytes) -> None:
        """Data for the host. :raises Refused: its PRPs do not describe that much; nothing was written then"""
        self._data.write(self.sqe, data)
