"""What lies where in a tar: from its headers, without reading bodies; tarfile of the standard library parses them."""

from __future__ import annotations

import posixpath
import tarfile
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from emucsd.stannis.data.errors import DataFormat, ShardDamaged, ShardMissing
from emucsd.stannis.data.location import is_sample
from emucsd.stannis.data.reader import Reader

CHECKSUMS = ".emucsd/crc32"  # a member after the samples: u32[samples], little-endian, CRC-32 of each body in turn
END_BYTES = 2 * tarfile.BLOCKSIZE
_LEAST_WINDOW, _MOST_WINDOW = 4096, 256 << 10
_MOST_HEADER = 1 << 20  # a long name, or pax records; more is garbage
_LINKS = {tarfile.LNKTYPE: "hard link: pack again with --hard-dereference", tarfile.SYMTYPE: "link: pack again with -h"}


class Member(NamedTuple):
    """A sample in a shard."""

    cls: str
    path: str  # below the class
    offset: int
    size: int
    crc: int  # -1: the shard has no checksums


class Headers:
    """A shard as the file that tarfile reads headers from: by a window, wider while headers lie close together."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._at = 0
        self._begin, self._data = 0, b""
        self._window, self._used = _LEAST_WINDOW, 0

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, position: int, whence: int = 0) -> int:
        """Go to a position from the start."""
        assert whence == 0
        self._at = position
        return position

    def read(self, count: int = -1) -> bytes:
        """:raises ShardDamaged: more than a header can have"""
        if not 0 <= count <= _MOST_HEADER:
            raise ShardDamaged(f"{self._reader.name}, offset {self._at}: a header that goes on for {count} bytes")
        if not self._begin <= self._at <= self._at + count <= self._begin + len(self._data):
            self._fill(count)
        self._used += 1
        begin = self._at - self._begin
        found = self._data[begin : begin + count]
        self._at += len(found)
        return found

    def _fill(self, count: int) -> None:
        wider = self._used > 2
        self._window = min(self._window * 2, _MOST_WINDOW) if wider else max(self._window // 2, _LEAST_WINDOW)
        self._used = 0
        self._begin = self._at // self._reader.unit * self._reader.unit
        self._data = self._reader.read(self._begin, max(self._window, self._at - self._begin + count))


def index(reader: Reader, inside: str = "", *, private: bool = False) -> list[Member]:
    """Samples of a shard, as they lie.

    :param inside: only what lies in this folder of the tar, whose folders are the classes
    :raises ShardDamaged: cut off, garbage, links or sparse members among the samples; with the offset
    :raises ShardMissing: a namespace that holds nothing
    :raises DataFormat: images that lie in no class's folder
    """
    if not reader.read(0, tarfile.BLOCKSIZE).strip(b"\0"):
        raise ShardMissing(f"{reader.name}: holds no tar: its first {tarfile.BLOCKSIZE} bytes are zeros or missing")
    headers = Headers(reader)
    found: list[Member] = []
    checksums: tuple[int, int] | None = None
    for member in _members(headers, reader):
        name = posixpath.normpath(member.name).lstrip("/")
        if name == CHECKSUMS and member.isreg():
            checksums = member.offset_data, member.size
            continue
        below = name.removeprefix(f"{inside}/") if inside else name
        if (inside and below == name) or not is_sample(posixpath.basename(name)) or member.isdir():
            continue
        _check(member, reader)
        cls, slash, path = below.partition("/")
        if not slash:
            shown = "" if private else f" ({name})"
            raise DataFormat(f"{reader.name}, offset {member.offset}: an image{shown} in no class's folder: CLASS/name")
        if not cls.startswith("."):
            found.append(Member(cls, path, member.offset_data, member.size, -1))
    return found if checksums is None else _with_checksums(found, reader, *checksums)


def _members(headers: Headers, reader: Reader) -> Any:
    """Each header in turn. :raises ShardDamaged: the archive does not end as archives do"""
    at, why = 0, ""
    try:
        archive: Any = tarfile.TarFile(fileobj=cast(Any, headers), mode="r", errors="surrogateescape")
        member = archive.next()
        while member is not None:
            end = archive.offset
            if member.size < 0 or end <= at or member.offset_data + member.size > reader.size:
                break
            yield member
            archive.members.clear()
            at = end
            member = archive.next()
    except (tarfile.TarError, ValueError, UnicodeError, OverflowError, IndexError, KeyError):
        why = "a header is garbage"
    if why or reader.read(at, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        cut = at + tarfile.BLOCKSIZE > reader.size or (not why and member is not None)
        why = "it is cut off" if cut else "no header of a tar is there, nor its end"
        raise ShardDamaged(f"{reader.name}, offset {at}: {why}; write the shard anew")


def _check(member: tarfile.TarInfo, reader: Reader) -> None:
    where = f"{reader.name}, offset {member.offset}"
    if member.issparse():
        raise ShardDamaged(f"{where}: a sparse member, whose bytes do not lie together; pack again without --sparse")
    if member.type in _LINKS:
        raise ShardDamaged(f"{where}: a {_LINKS[member.type]}")
    if not member.isreg():
        raise ShardDamaged(f"{where}: a member of type {member.type!r} is no file; pack again without it")


def _with_checksums(found: list[Member], reader: Reader, offset: int, size: int) -> list[Member]:
    if size != 4 * len(found):
        raise ShardDamaged(f"{reader.name}, offset {offset}: checksums of {size // 4} samples; it has {len(found)}")
    values: NDArray[np.uint32] = np.frombuffer(reader.read(offset, size), "<u4")
    return [member._replace(crc=int(crc)) for member, crc in zip(found, values, strict=True)]
