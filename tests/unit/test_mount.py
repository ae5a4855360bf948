"""What a mount needs no kernel for: errnos, names, the amended first answer, the kernel's list of mounts."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from emucsd import errors
from emucsd.mount import mounts, session
from emucsd.mount.errors import MountMissing, errno_of, errno_of_status
from emucsd.mount.tree import escaped
from emucsd_wire.nvme import DNR, Status


@pytest.mark.parametrize(
    ("status", "number"),
    [
        (Status.LBA_OUT_OF_RANGE, errno.ENOSPC),
        (Status.CAPACITY_EXCEEDED, errno.ENOSPC),
        (Status.NAMESPACE_WRITE_PROTECTED, errno.EROFS),
        (Status.INVALID_FIELD, errno.EINVAL),
        (Status.UNRECOVERED_READ, errno.EIO),
        (Status.WRITE_FAULT, errno.EIO),
        (0x7FF, errno.EIO),
    ],
)
def test_statuses(status: int, number: int) -> None:
    """A program sees the errno that fits the drive's status, with or without Do Not Retry; EIO where none does."""
    assert errno_of_status(status) == number
    assert errno_of_status(status | DNR) == number
    assert errno_of(errors.error_for("WRITE", status)) == number


def test_other_errors() -> None:
    """A drive that is gone is EIO, one that is late ETIMEDOUT; an OSError keeps its errno."""
    assert errno_of(errors.DriveDied("killed", -9)) == errno.EIO
    assert errno_of(errors.DriveTimeout("late")) == errno.ETIMEDOUT
    assert errno_of(OSError(errno.ENOENT, "")) == errno.ENOENT
    assert errno_of(ValueError("a bug of ours")) == errno.EIO


@pytest.mark.parametrize(("name", "file"), [("items", "items"), ("a/b", "a%2Fb"), ("50%/x", "50%25%2Fx")])
def test_names(name: str, file: str) -> None:
    """A table's name is a file's name, and no two tables share one."""
    assert escaped(name) == file


def first_request(flags: int, flags2: int = 0) -> bytes:
    return bytes(40) + struct.pack("<IIIII", 7, 45, 131072, flags, flags2) + bytes(44)


def test_amended_answer() -> None:
    """The kernel is told of large requests and asynchronous direct I/O where it offers them, and not otherwise."""
    answer = struct.pack("<IiQIIIIHHI", 40, 0, 77, 7, 19, 131072, 0x8, 0, 0, 131072)
    told = session.amended(answer, first_request(0xFFFF_FFFF, 0xFFFF_FFFF))
    length, error, unique = struct.unpack_from("<IiQ", told)
    assert (length, error, unique) == (len(told), 0, 77)
    major, minor, _, flags = struct.unpack_from("<IIII", told, 16)
    assert (major, minor) == (7, 19)
    assert flags & 0x8
    assert flags & (1 << 15)
    assert struct.unpack_from("<I", told, 36) == (session.MOST,)
    assert struct.unpack_from("<H", told, 44) == (session.MOST // 4096,)
    old = session.amended(answer, first_request(0x1))
    assert struct.unpack_from("<I", old, 28) == (0x9,)
    assert struct.unpack_from("<I", old, 36) == (131072,)
    assert session.amended(answer[:20], first_request(1)) == answer[:20]


def test_missing_mount(tmp_path: Path) -> None:
    """What is not mounted can't be taken away; the error says what is mounted."""
    with pytest.raises(MountMissing, match="drives are mounted on"):
        mounts.umount(tmp_path)
