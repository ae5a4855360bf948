"""Where a file's bytes lie on its block device: FIEMAP (include/uapi/linux/fiemap.h), and which answers can be used.

The drive reads a table's bytes from flash itself. That is right only for *plain* extents: written, unshared, unencoded
data that the file system overwrites in place. ``plain_extents`` gives those or says why there are none:

    FileRefused                     base (an EmucsdError); ``path`` is the file
    ├── FileUnwritten               a hole, or blocks that are allocated and not written
    ├── FileInline                  the data lie in the inode, or share a block with other files
    ├── FileEncoded                 compressed or encrypted
    ├── FileShared                  blocks shared with another file (reflink, snapshot): a write will move them
    ├── FilePending                 not on disk yet, although the file was synced
    ├── FileUnaligned               an extent that begins inside a logical block of the drive
    ├── FileFragmented              more extents than a table may have
    ├── FileJournaled               data go to a journal first (ext4's data=journal)
    ├── FileChanged                 not the extents that it had when the table was made or opened
    ├── FileUnrecorded              no record of a table beside it, or none that can be kept
    └── FileElsewhere               not on a drive of this project
        └── FileStacked             ... but on a device above another one (dm, loop, md)

Nothing here knows a drive; ``emucsd.linux.blocks`` knows which block device is which namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from enum import IntFlag
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, NamedTuple

from emucsd.errors import EmucsdError
from emucsd_wire.layout import U32, U64, Codec, Raw

FS_IOC_FIEMAP = 0xC020660B
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_GETVERSION = 0x80087601
FS_IOC_FSGETXATTR = 0x801C581F
_FLAG_SYNC = 1
_JOURNAL_DATA = 0x4000
_REALTIME = 1
_PIECE = 512  # extents asked for at a time
_TOO_MANY = 65536  # extents, before neighbours are joined: who has more is not asked further
# file systems that keep a file's blocks where they are when it is overwritten, and say so truly
IN_PLACE = ("ext2", "ext3", "ext4", "xfs", "ocfs2")


class ExtentFlag(IntFlag):
    """FIEMAP_EXTENT_*."""

    LAST = 0x1
    UNKNOWN = 0x2
    DELALLOC = 0x4
    ENCODED = 0x8
    DATA_ENCRYPTED = 0x80
    NOT_ALIGNED = 0x100
    DATA_INLINE = 0x200
    DATA_TAIL = 0x400
    UNWRITTEN = 0x800
    MERGED = 0x1000
    SHARED = 0x2000


class FiemapHead(NamedTuple):
    """struct fiemap, without its extents."""

    start: U64
    length: U64
    flags: U32
    mapped: U32
    room: U32  # extents that the caller has room for
    reserved: U32


class FiemapExtent(NamedTuple):
    """struct fiemap_extent; all in bytes."""

    logical: U64
    physical: U64
    length: U64
    reserved64: Annotated[bytes, Raw(16)]
    flags: U32
    reserved: Annotated[bytes, Raw(12)]


FIEMAP_HEAD = Codec(FiemapHead, 32)
FIEMAP_EXTENT = Codec(FiemapExtent, 56)


class FileRefused(EmucsdError):
    """A file that a drive can't read by itself: ``path``, and the ``reason`` with what to do."""

    def __init__(self, path: str | Path, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.path, self.reason = Path(path), text

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason)


class FileUnwritten(FileRefused):
    """A hole, or blocks that were allocated and never written."""


class FileInline(FileRefused):
    """The data lie in the inode, or in a block with another file's."""


class FileEncoded(FileRefused):
    """Compressed or encrypted: the blocks hold something else than the file."""


class FileShared(FileRefused):
    """Blocks shared with another file."""


class FilePending(FileRefused):
    """Data without a place on disk, even after the file was synced."""


class FileUnaligned(FileRefused):
    """An extent that begins inside a logical block of the drive."""


class FileFragmented(FileRefused):
    """More extents than a table may have."""


class FileJournaled(FileRefused):
    """The file system puts data into its journal first, and in place later."""


class FileChanged(FileRefused):
    """Other extents than the file had."""


class FileUnrecorded(FileRefused):
    """No record of a table beside the file, or no room for one."""


class FileElsewhere(FileRefused):
    """No file system on a drive of this project."""


class FileStacked(FileElsewhere):
    """A file system on a device that stands on another one."""


class FileExtent(NamedTuple):
    """``length`` bytes of a file from ``logical`` on lie on its block device from ``physical`` on."""

    logical: int
    physical: int
    length: int
    flags: int = 0

    @property
    def end(self) -> int:
        """The file's first byte after it."""
        return self.logical + self.length


class FileSystem(NamedTuple):
    """What a file lies on.

    :ivar kind: as /proc/mounts has it; empty where that has no line for it
    :ivar device: ``major:minor`` of the file's st_dev
    :ivar options: of the file system itself
    """

    kind: str
    device: str
    options: tuple[str, ...]


def fiemap(fd: int, size: int, *, sync: bool = True) -> list[FileExtent]:
    """The extents of a file's first ``size`` bytes, as the file system tells them.

    :param sync: have what is in memory written first
    :raises OSError: the file system knows no FIEMAP (EOPNOTSUPP), or reading it failed
    """
    found: list[FileExtent] = []
    start = 0
    while start < size and len(found) < _TOO_MANY:
        head = FiemapHead(start, size - start, _FLAG_SYNC if sync else 0, 0, _PIECE, 0)
        data = bytearray(FIEMAP_HEAD.pack(head)) + bytearray(_PIECE * FIEMAP_EXTENT.size)
        fcntl.ioctl(fd, FS_IOC_FIEMAP, data, True)
        mapped = FIEMAP_HEAD.unpack(data).mapped
        for place in range(mapped):
            one = FIEMAP_EXTENT.unpack(data, FIEMAP_HEAD.size + place * FIEMAP_EXTENT.size)
            found.append(FileExtent(one.logical, one.physical, one.length, one.flags))
        if not mapped or found[-1].flags & ExtentFlag.LAST or found[-1].end <= start:
            break
        start = found[-1].end
    return found


def generation(fd: int) -> int | None:
    """The inode's generation, another one when its number is used again; None where the file system tells none."""
    data = bytearray(8)
    try:
        fcntl.ioctl(fd, FS_IOC_GETVERSION, data, True)
    except OSError:
        return None
    return int(struct.unpack_from("<I", data)[0])


def filesystem(fd: int) -> FileSystem:
    """What a file lies on, from this process's mounts."""
    number = os.fstat(fd).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == device and "-" in words[6:]:
            kind, _, options = words[words.index("-", 6) + 1 :][:3]
            return FileSystem(kind, device, tuple(options.split(",")))
    return FileSystem("", device, ())


def check_filesystem(fd: int, path: str | Path) -> FileSystem:
    """What a file or folder lies on. :raises FileElsewhere: a file system whose extents are not to be trusted"""
    kind = filesystem(fd)
    if kind.kind not in IN_PLACE:
        told = f"its file system is {kind.kind}" if kind.kind else "its file system can't be told"
        raise FileElsewhere(path, f"{told}; tables can be files of {', '.join(IN_PLACE)}")
    return kind


def plain_extents(fd: int, path: str | Path, *, sync: bool = True, most: int = 4096) -> list[FileExtent]:
    """A file's extents, checked: they cover it without a gap, and neighbours are joined.

    :param sync: have what is in memory written first; the drive must hold it before it is asked
    :param most: extents that a table may have
    :raises FileRefused: the class says why, see above
    """
    kind = check_filesystem(fd, path)
    _check_inode(fd, path, kind)
    return current_extents(fd, path, sync=sync, most=most)


def current_extents(fd: int, path: str | Path, *, sync: bool = True, most: int = 4096) -> list[FileExtent]:
    """``plain_extents`` of a file that was found good before: its file system is not looked at again."""
    size = os.fstat(fd).st_size
    if not size:
        raise FileUnwritten(path, "it is empty; a table has at least one row")
    try:
        found = fiemap(fd, size, sync=sync)
    except OSError as problem:
        if problem.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            raise FileElsewhere(path, f"its file system tells no extents (FIEMAP): {problem.strerror}") from problem
        raise FileRefused(path, f"its extents can't be read: {problem.strerror}") from problem
    return checked(found, size, path, most)


def _check_inode(fd: int, path: str | Path, kind: FileSystem) -> None:
    flags, attributes = bytearray(8), bytearray(28)
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags, True)
    if "data=journal" in kind.options or struct.unpack_from("<I", flags)[0] & _JOURNAL_DATA:
        raise FileJournaled(
            path, "ext4 writes its data to the journal first; mount without data=journal, or chattr -j the file"
        )
    if kind.kind == "xfs":
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, FS_IOC_FSGETXATTR, attributes, True)
        if struct.unpack_from("<I", attributes)[0] & _REALTIME:
            raise FileElsewhere(path, "it lies on XFS's real-time device, whose place is not known here")


def checked(found: list[FileExtent], size: int, path: str | Path, most: int = 4096) -> list[FileExtent]:
    """Extents that cover bytes 0 to ``size`` without a gap, neighbours joined. :raises FileRefused: see above"""
    joined: list[FileExtent] = []
    at = 0
    for extent in found:
        if extent.logical >= size:
            break
        _check_flags(extent, path)
        if extent.logical != at:
            break
        at = extent.end
        last = joined[-1] if joined else None
        if last is not None and last.physical + last.length == extent.physical:
            joined[-1] = FileExtent(last.logical, last.physical, last.length + extent.length)
        else:
            joined.append(FileExtent(extent.logical, extent.physical, extent.length))
        if len(joined) > most:
            raise FileFragmented(
                path, f"more than {most} extents; copy it to a file of its own, with more free space in one piece"
            )
    if at < size:
        raise FileUnwritten(
            path,
            f"bytes from {at} on have no blocks (a hole); write them: cp --sparse=never makes a copy without holes",
        )
    return joined


def _check_flags(extent: FileExtent, path: str | Path) -> None:
    """:raises FileRefused: the extent is not plain"""
    where = f"bytes {extent.logical} to {extent.end - 1}"
    flags = ExtentFlag(extent.flags)
    if flags & (ExtentFlag.DATA_INLINE | ExtentFlag.DATA_TAIL):
        raise FileInline(path, f"{where} lie in the inode or beside another file's; tables need blocks of their own")
    if flags & (ExtentFlag.ENCODED | ExtentFlag.DATA_ENCRYPTED):
        raise FileEncoded(path, f"{where} are compressed or encrypted; copy it to where files are neither")
    if flags & (ExtentFlag.DELALLOC | ExtentFlag.UNKNOWN):
        raise FilePending(path, f"{where} have no place on disk although it was synced; is somebody writing to it?")
    if flags & ExtentFlag.UNWRITTEN:
        raise FileUnwritten(path, f"{where} were allocated (fallocate) and not written; write them, zeros too")
    if flags & ExtentFlag.SHARED:
        raise FileShared(path, f"{where} are shared with another file; cp --reflink=never makes a copy of its own")
    if flags & ExtentFlag.NOT_ALIGNED:
        raise FileUnaligned(path, f"{where} begin inside a block; tables need whole ones")
    if unknown := extent.flags & ~int(ExtentFlag.LAST | ExtentFlag.MERGED) & ~sum(ExtentFlag):
        raise FileRefused(path, f"{where} have flags {unknown:#x}, which this library does not know")


def as_blocks(extents: list[FileExtent], offset: int, lba_bytes: int, path: str | Path) -> tuple[tuple[int, int], ...]:
    """(first LBA, blocks) of each extent.

    :param offset: bytes of the namespace before the block device's first: where its partition begins
    :raises FileUnaligned: an extent begins inside an LBA, or in the middle of the file ends inside one
    """
    found = []
    for place, extent in enumerate(extents):
        start, last = offset + extent.physical, place == len(extents) - 1
        if start % lba_bytes or (extent.length % lba_bytes and not last):
            raise FileUnaligned(
                path,
                f"an extent of {extent.length} bytes at byte {start} of the namespace, whose blocks have {lba_bytes} "
                "bytes; make the file system with blocks of at least that, in a partition that is aligned to them",
            )
        found.append((start // lba_bytes, -(-extent.length // lba_bytes)))
    return tuple(found)


def digest(extents: list[FileExtent]) -> str:
    """A name for exactly these places."""
    packed = b"".join(struct.pack("<QQQ", extent.logical, extent.physical, extent.length) for extent in extents)
    return blake2b(packed, digest_size=16).hexdigest()
