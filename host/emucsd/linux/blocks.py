"""From a file to the namespace that it lies on: /sys/dev/block, partitions, and what can't be seen through."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from emucsd.extents import FileElsewhere, FileStacked
from emucsd.linux import nodes

_SECTOR = 512  # sysfs counts in these, whatever a block is
_DISK = re.compile(r"nvme\d+n\d+")
_STACKED = re.compile(r"(dm-|md|loop|bcache|drbd|nbd|rbd|zram)\d")


class BlockPlace(NamedTuple):
    """A block device on a drive of ours.

    :ivar controller: ``nvme0``
    :ivar nsid: of the namespace
    :ivar offset: byte of the namespace at which the device (a partition) begins
    :ivar serial: the drive's
    """

    controller: str
    nsid: int
    offset: int
    serial: str


def place_of(fd: int, path: str | Path, root: Path = Path("/sys")) -> BlockPlace:
    """Where the block device of an open file lies.

    :param root: where sysfs is
    :raises FileStacked: a device above another one (dm, loop, md): its extents are not the drive's
    :raises FileElsewhere: no block device, or none of a drive of this project
    """
    number = os.fstat(fd).st_dev
    return place_of_device(f"{os.major(number)}:{os.minor(number)}", path, root)


def place_of_device(number: str, path: str | Path, root: Path = Path("/sys")) -> BlockPlace:
    """The same for a device's ``major:minor``; ``path`` is for errors."""
    link = root / "dev/block" / number
    if not link.exists():
        raise FileElsewhere(path, f"its file system (device {number}) lies on no block device; use one on a drive")
    folder = link.resolve()
    offset = 0
    if (folder / "partition").exists():
        offset = int((folder / "start").read_text()) * _SECTOR
        folder = folder.parent
    disk = folder.name
    if _STACKED.match(disk):
        below = ", ".join(sorted(entry.name for entry in (folder / "slaves").glob("*")))
        if (backing := folder / "loop/backing_file").exists():
            below = backing.read_text().strip()
        raise FileStacked(
            path, f"it lies on {disk}, above {below or 'another device'}; mount the drive's own device or a partition"
        )
    if not _DISK.fullmatch(disk):
        raise FileElsewhere(path, f"it lies on {disk}, no NVMe device; use a file system on a drive of this project")
    for controller in nodes.controllers(root):
        for space in nodes.namespaces(controller.name, root):
            if space.block is not None and space.block.name == disk:
                if not controller.ours:
                    raise FileElsewhere(path, f"it lies on {disk}, which is {controller.model!r} and no drive of ours")
                return BlockPlace(controller.name, space.nsid, offset, controller.serial)
    raise FileElsewhere(path, f"it lies on {disk}, whose controller Linux does not name")
