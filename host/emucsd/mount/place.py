"""From a file on a loop-mounted file system to its drive: what Linux can't tell, because a mount is in between.

    drive, place = open_below("/mnt/rows.f32")          # /mnt: a file system on /tmp/disk0/ns1, loop-mounted
    with drive, Table.from_file("/mnt/rows.f32", dim=64, drive=drive, place=place) as table: ...

The mount has one port of the drive, so the drive is opened by the other one: both see the same namespaces.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from emucsd.drive import Drive
from emucsd.extents import FileElsewhere, FileStacked
from emucsd.mount.mounts import Mounted, mount_at
from emucsd.tablefile import Place
from emucsd_wire.paths import PORTS

_SECTOR = 512  # sysfs counts in these
_SPACE = re.compile(r"ns(\d+)")


class Below(NamedTuple):
    """Where the file system of a file begins.

    :ivar mount: that has the drive
    :ivar place: namespace, and its byte at which the file system's device begins
    """

    mount: Mounted
    place: Place


def below(path: str | Path, root: Path = Path("/sys")) -> Below:
    """What a file's file system lies on.

    :param root: where sysfs is
    :raises FileElsewhere: no loop device over a mount of ours
    :raises FileStacked: something else lies between
    """
    number = os.stat(path).st_dev
    link = root / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    if not link.exists():
        raise FileElsewhere(path, "its file system lies on no block device; loop-mount one that is on DIR/ns1")
    folder, offset = link.resolve(), 0
    if (folder / "partition").exists():
        offset = int((folder / "start").read_text()) * _SECTOR
        folder = folder.parent
    if not (folder / "loop" / "backing_file").exists():
        kind = FileStacked if list((folder / "slaves").glob("*")) else FileElsewhere
        raise kind(path, f"its file system lies on {folder.name}, no loop device over a mounted drive")
    backing = Path((folder / "loop" / "backing_file").read_text().strip())
    offset += int((folder / "loop" / "offset").read_text())
    mount, named = mount_at(backing.parent), _SPACE.fullmatch(backing.name)
    if mount is None or named is None:
        raise FileElsewhere(path, f"its file system lies on {backing} ({folder.name}), no namespace of a mounted drive")
    return Below(mount, Place(int(named[1]), offset))


def open_below(path: str | Path) -> tuple[Drive, Place]:
    """The drive below a file, by the port that the mount left free, and where the file system begins. Close the drive.

    :raises FileRefused: see ``below``
    :raises DriveBusy: the other port is in use as well
    """
    found = below(path)
    return Drive.open(found.mount.runtime, port=PORTS - 1 - found.mount.port), found.place
