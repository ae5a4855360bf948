"""Any command, with data either way: what every other module of the client sends its commands with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.transport import CommandQueue, Memory
from emucsd_wire.nvme import Sqe

Data = bytes | bytearray | memoryview | NDArray[Any]
_DWORDS = ("cdw2", "cdw3", "cdw10", "cdw11", "cdw12", "cdw13", "cdw14", "cdw15")


class Answer(NamedTuple):
    """A command's completion and the data that it brought.

    :ivar status: SCT << 8 | SC, and DNR (14); always 0 when the command was checked
    :ivar dw0: completion dword 0; ``dw1`` the next
    :ivar data: u8 array in the drive's memory, empty when the command brings none
    :ivar latency: ns from submission to seeing the completion
    """

    status: int
    dw0: int
    dw1: int
    data: NDArray[np.uint8]
    latency: int


def entry(opcode: int, nsid: int = 0, **dwords: int) -> Sqe:
    """A submission entry without data pointers. :raises InvalidArgument: an unknown dword, or a value above 32 bits"""
    for name, value in (("nsid", nsid), *dwords.items()):
        if name not in _DWORDS and name != "nsid":
            raise InvalidArgument(f"{name}: the dwords of a command are {', '.join(_DWORDS)}")
        if not 0 <= value < 1 << 32:
            raise InvalidArgument(f"{name} = {value:#x} is no 32-bit value")
    if not 0 <= opcode <= 0xFF:
        raise InvalidArgument(f"opcode {opcode:#x} is no 8-bit value")
    words = {name: dwords.get(name, 0) for name in _DWORDS}
    return Sqe(opcode, 0, 0, nsid, words["cdw2"], words["cdw3"], 0, 0, 0, *(words[name] for name in _DWORDS[2:]))


def as_bytes(data: Data) -> NDArray[np.uint8]:
    """Data to be sent as one row of bytes, without a copy where that can be."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, np.uint8)


def stage(memory: Memory, data: Data) -> NDArray[np.uint8]:
    """Data to be sent, in the drive's memory: the array itself where it lies there, else a copy."""
    row = as_bytes(data)
    if memory.holds(row):
        return row
    staged: NDArray[np.uint8] = memory.array(len(row))
    staged[:] = row
    return staged


def run(
    queue: CommandQueue,
    command: Sqe,
    *,
    data: Data | None = None,
    length: int = 0,
    out: NDArray[Any] | None = None,
    name: str = "",
    check: bool = True,
    timeout: float | None = None,
) -> Answer:
    """Send one command and wait for it.

    :param data: bytes for the drive (copied into its memory unless they lie there)
    :param length: bytes that the drive answers with
    :param out: instead of ``length``: an array in the drive's memory for them
    :param name: what to call the command in errors
    :param check: raise on a status; otherwise it is in the Answer
    :param timeout: seconds (default: the queue's)
    :raises NvmeError: the command failed
    :raises DriveTimeout: it did not complete in time
    """
    memory = queue.memory
    if data is not None and (length or out is not None):
        raise InvalidArgument("a command's data go one way: give data for the drive, or length for the answer")
    buffer: NDArray[Any] | None = None
    if data is not None:
        buffer = stage(memory, data)
    elif out is not None:
        buffer = out
    elif length:
        buffer = memory.array(-(-length // 4) * 4)
        buffer[:] = 0
    if buffer is not None and not len(buffer):
        buffer = None
    completion = queue.call(command, buffer, timeout)
    if check:
        completion.check(name or f"opcode {command.opcode:#04x} nsid {command.nsid:#x}")
    brought = buffer if data is None and buffer is not None else np.empty(0, np.uint8)
    if out is None:
        brought = brought[:length]
    low, high = completion.result & 0xFFFF_FFFF, completion.result >> 32 & 0xFFFF_FFFF
    return Answer(completion.status, low, high, brought, completion.latency)
