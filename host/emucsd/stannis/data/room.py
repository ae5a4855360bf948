"""Capacity for a new namespace: what the drive has left, and how a blank first namespace makes way."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from emucsd.errors import EmucsdError
from emucsd.stannis.data.errors import NoRoom

if TYPE_CHECKING:
    from emucsd.drive import Drive
    from emucsd.namespace import Namespace

HOST, ENGINE = 1, 2  # controllers of port 0 and port 1
_PIECE = 8 << 20
_GRAIN = 1 << 20  # of the namespace that a blank one is cut to: whole flash pages, whatever their size


def make_room(drive: Drive, size: int) -> str:
    """See that ``size`` bytes are unallocated.

    A new drive has one namespace over all of its capacity. Where nothing was ever written to it, it is made smaller: to
    half of what the drive has left then, so that more can be put later.

    :returns: what was done, for people; "" where there was room
    :raises NoRoom: the text says what to do
    """
    about = drive.admin.controller()
    if about.unvmcap >= size:
        return ""
    first = next((space for space in drive.namespaces if space.nsid == 1), None)
    if first is None or about.unvmcap + first.size < size:
        raise NoRoom(
            f"{drive.folder}: {size} bytes are needed, and {about.unvmcap} of {about.tnvmcap} are in no namespace; "
            "delete a namespace that is of no more use (nvme delete-ns, or for a private one "
            "`emucsd data take DRIVE N --delete`), or make a larger drive: emucsd up NAME --drive-only --size"
        )
    if not blank(drive, first):
        raise NoRoom(
            f"{drive.folder}: {size} bytes are needed, and {about.unvmcap} are in no namespace; namespace 1 takes "
            f"{first.size} and holds data. Use another drive, delete namespace 1 (nvme delete-ns /dev/nvme0 -n 1, or "
            "drive.admin.delete_namespace(1)), or put the samples into it: --namespace 1"
        )
    kept = min((about.unvmcap + first.size - size) // 2, first.size) // _GRAIN * _GRAIN
    was, lba_bytes = first.size, first.lba_bytes
    drive.admin.delete_namespace(1)
    if kept:
        again = drive.admin.create_namespace(kept // lba_bytes, lba_bytes)
        drive.admin.attach(again, HOST, ENGINE)
    return f"namespace 1 was blank and has {kept >> 20} MiB now, not {was >> 20}"


def blank(drive: Drive, space: Namespace) -> bool:
    """Whether a namespace reads as zeros all over; a drive that has never been written to is not asked twice."""
    with contextlib.suppress(EmucsdError):  # behind Linux's driver there is no control API
        if not drive.control.stats()["ftl"]["mapped"]:
            return True
    step = _PIECE // space.lba_bytes
    with drive.borrow(_PIECE) as buffer:
        for lba in range(0, space.blocks, step):
            count = min(step, space.blocks - lba)
            if space.read(lba, count, buffer[: count * space.lba_bytes]).any():
                return False
    return True
