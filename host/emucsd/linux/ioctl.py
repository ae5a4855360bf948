"""NVMe commands through ioctls of Linux's driver (include/uapi/linux/nvme_ioctl.h): one at a time, waiting for each.

    with open("/dev/nvme0", "rb") as node:
        page = mmap.mmap(-1, 4096)
        answer = admin(node.fileno(), 0x06, address=address_of(page), length=4096, cdw10=1)

Admin commands go to a controller's or a namespace's node, I/O commands to a namespace's (``/dev/ng0n1`` or
``/dev/nvme0n1``). Linux takes the direction of the data from the opcode's lowest bit. It lets nobody set CDW4 and CDW5.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from typing import NamedTuple

from emucsd.errors import DriveNotFound, DriveTimeout, EmucsdError, InvalidArgument, NotOurDrive, NotPermitted
from emucsd_wire.layout import U8, U16, U32, U64, Codec

IOCTL_ID = 0x4E40
IOCTL_RESET = 0x4E44
IOCTL_RESCAN = 0x4E46
IOCTL_ADMIN64_CMD = 0xC0504E47
IOCTL_IO64_CMD = 0xC0504E48


class PassthruCommand64(NamedTuple):
    """struct nvme_passthru_cmd64; nvme_uring_cmd is the same without ``result``, in the 80 bytes of a ring's entry."""

    opcode: U8
    flags: U8
    reserved1: U16
    nsid: U32
    cdw2: U32
    cdw3: U32
    metadata: U64
    address: U64
    metadata_length: U32
    length: U32
    cdw10: U32
    cdw11: U32
    cdw12: U32
    cdw13: U32
    cdw14: U32
    cdw15: U32
    timeout_ms: U32
    reserved2: U32
    result: U64


PASSTHRU_COMMAND64 = Codec(PassthruCommand64, 80)
_BLANK = PassthruCommand64(*(0,) * len(PassthruCommand64._fields))


class Answer(NamedTuple):
    """How a command ended.

    :ivar status: SCT << 8 | SC, and DNR (14) where set; 0 is success
    :ivar result: completion dword 0 and, above it, dword 1
    """

    status: int
    result: int


def address_of(buffer: mmap.mmap | bytearray | memoryview) -> int:
    """Where a writable buffer lies; the caller keeps it as it is until the command has ended."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def command(
    opcode: int, nsid: int = 0, address: int = 0, length: int = 0, timeout_ms: int = 0, **dwords: int
) -> PassthruCommand64:
    """A command.

    :param address: of ``length`` bytes of this process's memory
    :param timeout_ms: 0 is the driver's own: 60 s for admin commands, 30 s for others (parameters of nvme_core)
    :param dwords: ``cdw2``, ``cdw3``, ``cdw10`` … ``cdw15``
    """
    return _BLANK._replace(opcode=opcode, nsid=nsid, address=address, length=length, timeout_ms=timeout_ms, **dwords)


def admin(
    fd: int, opcode: int, nsid: int = 0, address: int = 0, length: int = 0, timeout_ms: int = 0, **dwords: int
) -> Answer:
    """Run one admin command (see ``command``) and wait for it.

    :raises NotPermitted: Linux wants CAP_SYS_ADMIN for this opcode
    :raises DriveTimeout: the driver gave the command up
    :raises DriveNotFound: the device is gone, or its controller dead
    """
    return run(fd, IOCTL_ADMIN64_CMD, command(opcode, nsid, address, length, timeout_ms, **dwords))


def io(
    fd: int, opcode: int, nsid: int, address: int = 0, length: int = 0, timeout_ms: int = 0, **dwords: int
) -> Answer:
    """Run one I/O command and wait for it; ``nsid`` is the node's. Everything else as ``admin``."""
    return run(fd, IOCTL_IO64_CMD, command(opcode, nsid, address, length, timeout_ms, **dwords))


def run(fd: int, request: int, prepared: PassthruCommand64) -> Answer:
    """One prepared command. :raises EmucsdError: see ``admin``"""
    data = bytearray(PASSTHRU_COMMAND64.pack(prepared))
    try:
        status = fcntl.ioctl(fd, request, data, True)
    except OSError as problem:
        raise refusal(problem.errno or 0, prepared.opcode, request == IOCTL_ADMIN64_CMD, prepared.length) from problem
    return Answer(status & 0xFFFF, PASSTHRU_COMMAND64.unpack(data).result)


def namespace_id(fd: int) -> int:
    """The namespace behind a node. :raises NotOurDrive: the node is no NVMe namespace's"""
    try:
        return fcntl.ioctl(fd, IOCTL_ID)
    except OSError as problem:
        raise NotOurDrive(f"descriptor {fd} is no node of an NVMe namespace: {problem.strerror}") from problem


def reset(fd: int) -> None:
    """Have the driver reset the controller behind ``fd``, a controller's node. :raises EmucsdError: it can't"""
    _plain(fd, IOCTL_RESET, "reset")


def rescan(fd: int) -> None:
    """Have the driver look for namespaces anew. :raises EmucsdError: it can't"""
    _plain(fd, IOCTL_RESCAN, "rescan")


def _plain(fd: int, request: int, what: str) -> None:
    try:
        fcntl.ioctl(fd, request)
    except OSError as problem:
        if problem.errno in (errno.EPERM, errno.EACCES):
            raise NotPermitted(
                f"Linux lets only CAP_SYS_ADMIN {what} a controller; run as root, or give that capability"
            ) from problem
        raise EmucsdError(f"the {what} failed: {problem.strerror}; the kernel's log (dmesg) may say why") from problem


def refusal(code: int, opcode: int, is_admin: bool, length: int) -> EmucsdError:
    """What an errno of a passthrough command means. ``code`` is positive."""
    what = f"{'admin' if is_admin else 'I/O'} opcode {opcode:#04x}"
    match code:
        case errno.EACCES | errno.EPERM:
            return NotPermitted(
                f"{what}: Linux wants CAP_SYS_ADMIN for vendor opcodes and most admin commands, and a node opened for "
                "writing for the others; run as root, or give that capability"
            )
        case errno.EINTR:
            return DriveTimeout(
                f"{what}: Linux's driver gave the command up, after its timeout or a reset; the kernel's log (dmesg) "
                "says which"
            )
        case errno.ETIME | errno.ETIMEDOUT:
            return DriveTimeout(f"{what}: no answer in the time allowed; the kernel's log (dmesg) may say why")
        case errno.ENODEV | errno.ENXIO:
            return DriveNotFound(f"{what}: the controller is gone or dead; the kernel's log (dmesg) says why")
        case errno.ENOTTY:
            return NotOurDrive(f"{what}: the node is no NVMe device's; use /dev/nvme0, /dev/nvme0n1 or /dev/ng0n1")
        case errno.EINVAL:
            return InvalidArgument(
                f"{what} with {length} bytes: Linux refused it (EINVAL): nsid must be the node's own, and "
                "the data within the driver's limit (max_hw_sectors_kb, max_segments of the block device's queue)"
            )
        case errno.EFAULT:
            return InvalidArgument(f"{what}: {length} bytes of data are not all memory of this process")
    return EmucsdError(f"{what} with {length} bytes: {os.strerror(code)} (errno {code})")
