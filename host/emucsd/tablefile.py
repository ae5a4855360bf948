"""A plain file whose bytes are a table's rows: made, recorded, and watched for changes of place.

The drive knows nothing of files: TABLE_OPEN gives it extents, and it reads flash there. So

- *overwriting in place* is fine: extents stay. What ``write`` left in the page cache is written out before each lookup
  (``verify``), or by ``fsync``;
- *truncating, punching holes, defragmenting, sharing* (reflink) moves or frees blocks, and the drive would read what
  others write there. ``check`` asks the file system again and refuses then. It runs before and after each lookup when
  the table was opened with ``verify=True``, else only when a table is opened;
- *renaming* does nothing; *deleting* does nothing while the table is open, for the open file keeps its blocks.

What ``create`` made is recorded in the extended attribute ``user.emucsd.table`` of the file: shape, inode, and a digest
of the extents. An attribute and not a second file, because it follows the inode when the file is renamed, is not copied
with the bytes (a copy has other extents), and ext4, xfs and ocfs2 all have them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.errors import DriveNotFound, EmucsdError, InvalidArgument, NotPermitted
from emucsd.extents import (
    FileChanged,
    FileElsewhere,
    FileExtent,
    FileRefused,
    FileUnrecorded,
    as_blocks,
    check_filesystem,
    current_extents,
    digest,
    generation,
    plain_extents,
)
from emucsd.linux.blocks import place_of
from emucsd.rows import PIECE, Rows, TableInfo, TableShapeError, checked_rows, shape_of
from emucsd.rowtypes import Generated
from emucsd.volume import Extent
from emucsd_wire.vendor import MAX_DIM, MAX_EXTENTS

ATTRIBUTE = "user.emucsd.table"
_VERSION = 1


class Place(NamedTuple):
    """Where a file system's block device lies on a drive, where Linux can't tell: a loop device over ``emucsd mount``.

    :ivar nsid: of the namespace
    :ivar offset: its byte at which the block device begins
    """

    nsid: int
    offset: int = 0


class TableFile:
    """An open file, its extents as they were when it was opened, and its shape.

    :param drive: that it lies on; None: found through /sys, opened, and closed with the file
    :param place: where on the drive; None: found through /sys
    :param dim: elements of a row; None: from the record
    :param renew: take the file as it is now and record that, whatever was recorded before
    :raises FileRefused: the drive can't read it by itself; the class says why
    :raises TableShapeError: its size is no whole number of rows
    """

    def __init__(
        self,
        path: Path,
        dim: int | None,
        *,
        drive: Drive | None = None,
        place: Place | None = None,
        verify: bool = True,
        renew: bool = False,
    ) -> None:
        if place is not None and drive is None:
            raise InvalidArgument("with a place there is no device to look at: say which drive it is on (drive=…)")
        self.path, self.verify = path, verify
        with contextlib.ExitStack() as stack:
            self.fd = _open(path)
            stack.callback(os.close, self.fd)
            os.fsync(self.fd)
            if place is None:
                drive, place = _found(self.fd, path, drive, stack)
            assert drive is not None
            self.drive, self.namespace = drive, drive.namespace(place.nsid)
            self._extents = plain_extents(self.fd, path, most=MAX_EXTENTS)
            self._digest = digest(self._extents)
            self.info = self._shape(dim, place, renew)
            if renew:
                self.record()
            self._closing = stack.pop_all()

    def _shape(self, dim: int | None, place: Place, renew: bool) -> TableInfo:
        known = None if renew else _recorded(self.fd, self.path)
        size = os.fstat(self.fd).st_size
        if known is not None:
            self._compare(known, size)
            if dim is not None and dim != known["dim"]:
                raise TableShapeError(f"{self.path} was made with rows of {known['dim']} elements, not {dim}")
            dim = int(known["dim"])
        if dim is None:
            raise FileUnrecorded(self.path, "nothing says how long its rows are: give dim")
        if not 1 <= dim <= MAX_DIM or size % (4 * dim):
            raise TableShapeError(
                f"{self.path} has {size} bytes, no whole number of rows of {dim} FP32 (1 to {MAX_DIM} elements)"
            )
        blocks = as_blocks(self._extents, place.offset, self.namespace.lba_bytes, self.path)
        return TableInfo(self.path.name, size // (4 * dim), dim, tuple(Extent(*pair) for pair in blocks))

    def _compare(self, known: dict[str, Any], size: int) -> None:
        """:raises FileChanged: the file is not as it was recorded"""
        about = os.fstat(self.fd)
        now = {"size": size, "inode": about.st_ino, "generation": generation(self.fd), "digest": self._digest}
        changed = [name for name, value in now.items() if known.get(name) != value]
        if changed:
            what = {"size": "size", "inode": "inode", "generation": "inode", "digest": "places on disk"}
            told = " and ".join(sorted({what[name] for name in changed}))
            raise FileChanged(
                self.path,
                f"its {told} changed since it was made a table (truncated, copied over, defragmented, restored?); "
                "where that was meant, renew=True takes it as it is now",
            )

    def check(self, *, sync: bool = True) -> None:
        """Ask the file system again. :raises FileChanged: other extents than when it was opened, or none to use

        :param sync: have what is in memory written first
        """
        try:
            now = current_extents(self.fd, self.path, sync=sync, most=MAX_EXTENTS)
        except FileRefused as problem:
            raise FileChanged(
                self.path, f"it can no longer be used: {problem.reason}; then open the table again"
            ) from problem
        if os.fstat(self.fd).st_size < self.info.size or not _same(now, self._extents, self.info.size):
            raise FileChanged(
                self.path,
                "its places on disk changed since the table was opened (truncated, defragmented?); close the table and "
                "open it again, with renew=True where it was recorded",
            )

    def record(self) -> None:
        """Note shape and extents beside the file. :raises FileUnrecorded: the file system keeps no such notes"""
        about = os.fstat(self.fd)
        text = json.dumps(
            {
                "version": _VERSION,
                "dtype": "float32",
                "rows": self.info.rows,
                "dim": self.info.dim,
                "size": about.st_size,
                "inode": about.st_ino,
                "generation": generation(self.fd),
                "digest": self._digest,
            }
        )
        try:
            os.setxattr(self.fd, ATTRIBUTE, text.encode())
            os.fsync(self.fd)
        except OSError as problem:
            raise FileUnrecorded(
                self.path, f"{ATTRIBUTE} can't be written ({problem.strerror}); is it mounted with nouser_xattr?"
            ) from problem

    # -- rows

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        """Bytes of the table, as the file has them."""
        data = np.empty(size, np.uint8)
        at = 0
        while at < size:
            count = os.preadv(self.fd, [data.data[at : at + PIECE]], start + at)
            if not count:
                raise FileChanged(self.path, f"it ends at byte {start + at}; the table goes on")
            at += count
        return data

    def write(self, start: int, data: NDArray[np.uint8]) -> None:
        """Overwrite in place and sync. :raises NotPermitted: the file could only be opened for reading"""
        view, at = np.ascontiguousarray(data).data, 0
        try:
            while at < len(view):
                at += os.pwrite(self.fd, view[at : at + PIECE], start + at)
        except OSError as problem:
            if problem.errno == errno.EBADF:
                raise NotPermitted(f"{self.path}: this user may not write it") from problem
            raise
        os.fsync(self.fd)
        self.check()

    def close(self) -> None:
        """Close the file, and the drive where it was opened for it. Harmless when repeated."""
        self._closing.close()


def create(
    path: Path,
    data: Rows | tuple[int, int],
    chunks: Iterable[Rows] | None,
    progress: Callable[[int], None] | None,
    place: Place | None,
    opened: Callable[[Path], TableFile],
) -> TableFile:
    """Write a table's rows to a new file; it appears under its name once it is whole, on disk and recorded.

    :param place: as TableFile takes it
    :param opened: opens the draft, to find out whether it can be a table at all
    :raises InvalidArgument: something of that name is there
    :raises TableShapeError: chunks bring other rows than announced
    :raises FileRefused: not where a drive can read it
    """
    if path.exists():
        raise InvalidArgument(f"{path} is there already; choose another name, or delete it")
    if isinstance(data, Generated):
        raise TableShapeError("a file has its rows: generated ones are for tables of a volume (Table.create)")
    shape = shape_of(data)
    _check_folder(path, place)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.posix_fallocate(fd, 0, 4 * shape[0] * shape[1])  # in few pieces; each is unwritten until it is written
            _write_all(fd, shape, data, chunks, progress or (lambda _: None))
            os.fsync(fd)
        finally:
            os.close(fd)
        file = opened(draft)
        try:
            file.record()
            os.rename(draft, path)
            _sync_folder(path.parent)
        except BaseException:
            file.close()
            raise
    except BaseException as problem:
        draft.unlink(missing_ok=True)
        if isinstance(problem, FileRefused):
            raise type(problem)(path, problem.reason) from problem
        if isinstance(problem, OSError) and not isinstance(problem, EmucsdError):
            raise FileRefused(path, f"it can't be written: {problem.strerror}") from problem
        raise
    file.path, file.info = path, file.info._replace(name=path.name)
    return file


def _check_folder(path: Path, place: Place | None) -> None:
    """Before anything is written. :raises FileRefused: no file of this folder can be a table"""
    try:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise FileElsewhere(path, f"its folder can't be opened: {problem.strerror}") from problem
    try:
        check_filesystem(fd, path)
        if place is None:
            place_of(fd, path)
    finally:
        os.close(fd)


def _write_all(
    fd: int,
    shape: tuple[int, int],
    data: Rows | tuple[int, int],
    chunks: Iterable[Rows] | None,
    progress: Callable[[int], None],
) -> None:
    rows, dim = shape
    if isinstance(data, np.ndarray):
        chunks = [checked_rows(data, dim)]
    elif chunks is None:
        step = max(PIECE // (4 * dim), 1)
        chunks = (np.zeros((min(step, rows - at), dim), np.float32) for at in range(0, rows, step))
    at = 0
    for chunk in chunks:
        view = checked_rows(chunk, dim).reshape(-1).view(np.uint8).data
        if at + len(view) > 4 * rows * dim:
            raise TableShapeError(f"chunks bring more than the {rows} rows that were announced")
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done : done + PIECE], at + done)
            progress(at + done)
        at += len(view)
    if at != 4 * rows * dim:
        raise TableShapeError(f"{at // (4 * dim)} rows came, {rows} were announced")


def _open(path: Path) -> int:
    for flags in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except PermissionError as problem:
            refused = problem
        except OSError as problem:
            if problem.errno != errno.EROFS:
                raise FileElsewhere(path, f"it can't be opened: {problem.strerror}") from problem
    raise NotPermitted(f"{path}: this user may not read it") from refused


def _found(fd: int, path: Path, drive: Drive | None, stack: contextlib.ExitStack) -> tuple[Drive, Place]:
    """The drive below a file. :raises FileElsewhere: another drive's than ``drive``, or none"""
    found = place_of(fd, path)
    if drive is None:
        try:
            drive = Drive.open(f"/dev/{found.controller}")
        except DriveNotFound as problem:
            raise FileElsewhere(path, f"its drive is not to be had: {problem}") from problem
        stack.callback(drive.close)
    elif (serial := drive.identity.sn.decode("ascii", "replace").strip(" \0")) != found.serial:
        raise FileElsewhere(path, f"it lies on the drive {found.serial} ({found.controller}), not on {serial}")
    return drive, Place(found.nsid, found.offset)


def _recorded(fd: int, path: Path) -> dict[str, Any] | None:
    """The record, or None where there is none. :raises FileUnrecorded: one that this library can't read"""
    try:
        text = os.getxattr(fd, ATTRIBUTE)
    except OSError as problem:
        if problem.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise FileUnrecorded(path, f"{ATTRIBUTE} can't be read: {problem.strerror}") from problem
    try:
        known: dict[str, Any] = json.loads(text)
        if known["version"] == _VERSION and known["dtype"] == "float32" and int(known["dim"]) > 0:
            return known
    except (ValueError, KeyError, TypeError):
        pass
    raise FileUnrecorded(
        path, f"{ATTRIBUTE} is {text[:64]!r}, no record that this library knows; renew=True writes one"
    )


def _same(now: list[FileExtent], before: list[FileExtent], size: int) -> bool:
    """Whether the first ``size`` bytes lie where they did: a file may have grown behind its table."""

    def places(extents: list[FileExtent]) -> list[tuple[int, int, int]]:
        return [(e.logical, e.physical, min(e.end, size)) for e in extents if e.logical < size]

    return places(now) == places(before)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
