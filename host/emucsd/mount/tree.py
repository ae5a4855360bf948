"""The tree of a mount, and what the kernel asks of it: paths to files, attributes, opening, reading, writing.

ns1, ns2 …              a namespace, all of its bytes
tables/NAME.f32         a table's rows, FP32, row after row; .f16, .i8 and .i4 are rows of other types (docs/tables.md)
tables/NAME.json        its shape and where it lies
tables/ns2/…            the same of other namespaces than the first
status.json stats.json smart.json
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from emucsd.drive import Drive
from emucsd.errors import ConnectionLost, EmucsdError
from emucsd.mount.nodes import Node, Stretch, Text
from emucsd.mount.serve import FAST, SYNC
from emucsd.namespace import Namespace
from emucsd.table import Table, TableInfo

_KEPT_S = 1.0  # what the drive has is asked anew after so long
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
_OPERATIONS = frozenset(
    {"getattr", "readdir", "open", "read", "write", "fsync", "flush", "release", "truncate", "statfs", "fallocate",
     "utimens", "chmod", "chown"}
)  # fmt: skip


class Tree:
    """The files of one drive. Callable as fusepy's operations are: with an operation's name and arguments.

    :param tell_status: gives what status.json says; it must work when the drive has gone
    :param writable: False: nothing may be written
    :param shared: other users may use the files as the owner may
    :param cached: reads and writes of namespaces go through the kernel's page cache
    """

    def __init__(
        self, drive: Drive, tell_status: Callable[[], Any], *, writable: bool, shared: bool, cached: bool
    ) -> None:
        self.drive, self.writable, self.shared, self.cached = drive, writable, shared, cached
        self.lost: ConnectionLost | None = None
        self._texts: dict[str, Callable[[], Any]] = {
            "status.json": tell_status,
            "stats.json": drive.control.stats,
            "smart.json": self._smart,
        }
        self._began = time.time_ns()
        self._handles: dict[int, Node] = {}
        self._next_handle = 1
        self._spaces: dict[int, Namespace] = {}
        self._tables: dict[str, Node] = {}
        self._folders: dict[str, list[str]] = {}
        self._looked = 0.0
        self._look()

    def has(self, name: str) -> bool:
        """Whether an operation is there."""
        return name in _OPERATIONS

    def __call__(self, name: str, *arguments: Any) -> Any:
        return getattr(self, name)(*arguments)

    # -- what there is

    @property
    def spaces(self) -> dict[int, Namespace]:
        """Namespaces, by id, as of the last look."""
        return self._spaces

    def refresh(self) -> None:
        """Look at the drive's namespaces and tables, unless that was done a moment ago."""
        if self.lost is None and time.monotonic() - self._looked >= _KEPT_S:
            try:
                self._look()
            except ConnectionLost as exc:  # names stay as they were: what is behind them can't be had
                self.lost = exc

    def _look(self) -> None:
        self._spaces = {space.nsid: space for space in self.drive.namespaces}
        spaces = {FAST | nsid: self._whole(space) for nsid, space in self._spaces.items()}
        self._handles = {number: node for number, node in self._handles.items() if not number & FAST} | spaces
        tables: dict[str, Node] = {}
        for nsid, space in self._spaces.items():
            folder = "tables" if nsid == min(self._spaces) else f"tables/ns{nsid}"
            for info in self._stored(nsid):
                name = f"{folder}/{escaped(info.name)}"
                parts = _parts(info, space)
                tables[f"{name}.{_SUFFIXES.get(info.dtype, info.dtype)}"] = Stretch(
                    space, parts, writable=self.writable
                )
                tables[f"{name}.json"] = Text(_teller(info, space))
        self._tables = tables
        self._folders = _folders([*(f"ns{nsid}" for nsid in self._spaces), *tables, *self._texts])
        self._looked = time.monotonic()

    def _stored(self, nsid: int) -> list[TableInfo]:
        """The namespace's tables; none where something else than a volume lies on it, whole or damaged."""
        try:
            return Table.list(self.drive, nsid=nsid)
        except ConnectionLost:
            raise
        except EmucsdError:
            return []

    def _node(self, path: str) -> Node:
        """:raises OSError: ENOENT"""
        name = path.lstrip("/")
        if name in self._texts:
            return Text(self._texts[name])
        self.refresh()
        if name in self._tables:
            return self._tables[name]
        space = next((space for nsid, space in self._spaces.items() if name == f"ns{nsid}"), None)
        if space is not None:
            return self._whole(space)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _whole(self, space: Namespace) -> Node:
        return Stretch(space, ((0, space.size),), writable=self.writable)

    def _smart(self) -> dict[str, Any]:
        """The SMART log's figures; of 128-bit counters the low word, which is all that is ever used."""
        log = self.drive.admin.smart()
        found = {key: value for key, value in log._asdict().items() if isinstance(value, int)}
        kelvin = int.from_bytes(log.temperature, "little")
        return {"temperature_kelvin": kelvin} | {k: v for k, v in found.items() if not k.endswith("_high")}

    # -- operations: names and attributes

    def getattr(self, path: str, info: Any = None) -> dict[str, int]:
        name = path.strip("/")
        if name in self._folders:
            return self._attributes(stat.S_IFDIR | (0o755 if self.shared else 0o700), 0)
        node = self._handle(info) if info is not None and info.fh in self._handles else self._node(path)
        rights = 0o666 if node.writable else 0o444
        return self._attributes(stat.S_IFREG | (rights if self.shared else rights & 0o600), node.size)

    def _attributes(self, mode: int, size: int) -> dict[str, int]:
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._began)
        return {
            "st_mode": mode,
            "st_nlink": 2 if stat.S_ISDIR(mode) else 1,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_size": size,
            "st_blocks": -(-size // 512),
            "st_blksize": 1 << 20,
            **times,
        }

    def readdir(self, path: str, _: int) -> list[str]:
        self.refresh()
        name = path.strip("/")
        if name not in self._folders:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return [".", "..", *self._folders[name]]

    def statfs(self, _: str) -> dict[str, int]:
        size = sum(space.size for space in self._spaces.values())
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": size // 4096, "f_files": 16, "f_namemax": 255}

    def utimens(self, path: str, _: Any) -> None:
        """Times are the mount's; setting them is no mistake."""
        self.getattr(path)

    def chmod(self, path: str, mode: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def chown(self, path: str, uid: int, gid: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def truncate(self, path: str, length: int, _: Any = None) -> None:
        """A namespace keeps its size; emptying it is what a program asks that writes it anew, as for a disk."""
        size = self._node(path).size
        if length > size:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if 0 < length < size:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    # -- operations: open files

    def open(self, path: str, info: Any) -> None:
        node = self._node(path)
        if not isinstance(node, Text):
            self._check()
        if info.flags & _ACCESS != os.O_RDONLY and not node.writable:
            raise OSError(errno.EROFS if not self.writable else errno.EACCES, "not to be written")
        name = path.strip("/")
        info.direct_io = int(isinstance(node, Text) or (name.startswith("ns") and not self.cached))
        if name.startswith("ns"):
            info.fh = FAST | int(name[2:])  # one for all who have it open
            return
        info.fh, self._next_handle = self._next_handle, self._next_handle + 1
        self._handles[info.fh] = node

    def _handle(self, info: Any) -> Node:
        """:raises OSError: ENXIO: the namespace has been deleted"""
        if info.fh not in self._handles:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return self._handles[info.fh]

    def _check(self) -> None:
        """:raises ConnectionLost: the drive has gone"""
        if self.lost is not None:
            raise self.lost

    def read(self, _: str, size: int, offset: int, info: Any) -> bytes:
        return self._handle(info).read(size, offset)

    def write(self, _: str, data: bytes, offset: int, info: Any) -> int:
        self._check()
        return self._handle(info).write(data, offset, sync=bool(info.flags & SYNC))

    def fsync(self, _: str, __: int, info: Any) -> None:
        self._check()
        self._handle(info).sync()

    def flush(self, _: str, info: Any) -> None:
        """close(2): nothing is promised by it."""

    def release(self, _: str, info: Any) -> None:
        if not info.fh & FAST:
            self._handles.pop(info.fh, None)

    def fallocate(self, _: str, mode: int, offset: int, length: int, info: Any) -> None:
        self._check()
        self._handle(info).allocate(mode, offset, length)


def escaped(name: str) -> str:
    """A table's name as a file's."""
    return name.replace("%", "%25").replace("/", "%2F")


_SUFFIXES = {"float32": "f32", "float16": "f16", "int8": "i8", "int4": "i4"}


def _parts(info: TableInfo, space: Namespace) -> list[tuple[int, int]]:
    """A table's extents in bytes, cut to its rows."""
    parts, left = [], info.size
    for slba, blocks in info.extents:
        length = min(blocks * space.lba_bytes, left)
        parts.append((slba * space.lba_bytes, length))
        left -= length
    return parts


def _teller(info: TableInfo, space: Namespace) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "name": info.name,
        "nsid": space.nsid,
        "rows": info.rows,
        "dim": info.dim,
        "dtype": info.dtype,
        "row_bytes": info.row_bytes,
        "bytes": info.size,
        "lba_bytes": space.lba_bytes,
        "extents": [list(extent) for extent in info.extents],
    }


def _folders(paths: list[str]) -> dict[str, list[str]]:
    """Names in each folder, the root's being ''."""
    folders: dict[str, list[str]] = {"": [], "tables": []}
    for path in [*paths, "tables"]:
        parts = path.split("/")
        for depth, part in enumerate(parts):
            names = folders.setdefault("/".join(parts[:depth]), [])
            if part not in names:
                names.append(part)
    return folders
