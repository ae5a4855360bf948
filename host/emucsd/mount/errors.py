"""Errors of the mount, and what errno a program that uses its files sees.

EmucsdError
└── MountError              a mount cannot be made, used or taken away
    ├── MountUnavailable    this machine has no FUSE, or does not let this user have it
    ├── MountTaken          something is mounted there, or the folder can't take a mount
    ├── MountMissing        nothing of ours is mounted there
    └── MountBusy           somebody uses it: what, and how to go on
"""

from __future__ import annotations

import errno

from emucsd.errors import (
    BufferExhausted,
    ConnectionLost,
    DriveNotFound,
    DriveTimeout,
    EmucsdError,
    InvalidArgument,
    NvmeError,
)
from emucsd_wire.nvme import Status


class MountError(EmucsdError):
    """A mount cannot be made, used or taken away."""


class MountUnavailable(MountError):
    """This machine has no FUSE, or does not let this user have it."""


class MountTaken(MountError):
    """The folder cannot take a mount."""


class MountMissing(MountError):
    """Nothing of ours is mounted there."""


class MountBusy(MountError):
    """The mount is in use."""


OTHERWISE = errno.EIO
STATUSES: dict[int, int] = {  # what is not here is EIO, as the kernel has it for a disk
    Status.INVALID_OPCODE: errno.EOPNOTSUPP,
    Status.INVALID_FIELD: errno.EINVAL,
    Status.INVALID_NAMESPACE: errno.ENXIO,
    Status.NAMESPACE_NOT_ATTACHED: errno.ENXIO,
    Status.NAMESPACE_WRITE_PROTECTED: errno.EROFS,
    Status.WRITE_TO_READ_ONLY: errno.EROFS,
    Status.LBA_OUT_OF_RANGE: errno.ENOSPC,
    Status.CAPACITY_EXCEEDED: errno.ENOSPC,
    Status.NAMESPACE_NOT_READY: errno.EBUSY,
    Status.FORMAT_IN_PROGRESS: errno.EBUSY,
    Status.SANITIZE_IN_PROGRESS: errno.EBUSY,
    Status.COMMAND_SIZE_LIMIT: errno.EINVAL,
}
_KINDS: tuple[tuple[type[BaseException], int], ...] = (
    (ConnectionLost, errno.EIO),
    (DriveNotFound, errno.EIO),
    (DriveTimeout, errno.ETIMEDOUT),
    (BufferExhausted, errno.ENOMEM),
    (InvalidArgument, errno.EINVAL),
)


def errno_of_status(status: int) -> int:
    """What a command's status (SCT << 8 | SC, DNR and all) is to a program that used a file."""
    return STATUSES.get(status & 0x7FF, OTHERWISE)


def errno_of(error: BaseException) -> int:
    """What an exception is to a program that used a file."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, NvmeError):
        return errno_of_status(error.status)
    return next((number for kind, number in _KINDS if isinstance(error, kind)), OTHERWISE)
