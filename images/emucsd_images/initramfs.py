"""A guest's first filesystem, as a cpio archive (the kernel's "newc" format), made of bytes in memory."""

from __future__ import annotations

import stat
from pathlib import Path

_ALIGN = 4


class Initramfs:
    """Collects entries; ``pack`` is what ``-initrd`` takes."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._folders: set[str] = set()
        self._inode = 0

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file; its folders are made as needed."""
        self._parents(path)
        self._entry(path, stat.S_IFREG | mode, content)

    def program(self, path: str, source: Path) -> None:
        """A copy of an executable of this machine's."""
        self.file(path, source.read_bytes(), 0o755)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str, mode: int = 0o755) -> None:
        """An empty folder, once: the first mode counts."""
        if path not in self._folders:
            self._parents(path)
            self._folders.add(path)
            self._entry(path, stat.S_IFDIR | mode, b"")

    def console(self) -> None:
        """/dev/console: the kernel opens it before init has mounted anything."""
        self.folder("dev")
        self._entry("dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))

    def pack(self) -> bytes:
        """The archive so far."""
        return b"".join([*self._chunks, _record("TRAILER!!!", 0, 0, b"", (0, 0))])

    def _parents(self, path: str) -> None:
        for parent in reversed(Path(path).parents):
            if str(parent) != ".":
                self.folder(str(parent))

    def _entry(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._chunks.append(_record(path, self._inode, mode, content, device))


def _record(path: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device, special device, name size, check
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)
