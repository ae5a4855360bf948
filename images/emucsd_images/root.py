"""A root filesystem as a list of entries: a tree of unpacked packages, less what is not wanted, plus what is made here.

Nothing is written into the tree, and nothing is root's before it is in the archive: everything in it is.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat
import tarfile
from pathlib import Path
from typing import IO, NamedTuple

from emucsd_images.recipe import Recipe, guest_script

_SET_ID = stat.S_ISUID | stat.S_ISGID  # a plain user's unpacking loses them; in the machines everybody is root
EPOCH = 1_760_000_000  # every file's date: an image is the same whenever it is made


class Entry(NamedTuple):
    """A file (bytes, or where to copy it from), a link (its target), or a folder (None)."""

    mode: int
    content: bytes | Path | str | None


class Root:
    """Entries by path; a later one of the same path replaces an earlier one."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def tree(self, folder: Path, exclude: tuple[str, ...] = ()) -> None:
        """Everything below a folder, except what matches."""
        left_out = re.compile("|".join(fnmatch.translate(pattern) for pattern in exclude) or r"(?!)")
        todo = [folder]
        while todo:
            for entry in os.scandir(todo.pop()):
                path = os.path.relpath(entry.path, folder)
                if left_out.match(path):
                    continue
                mode = entry.stat(follow_symlinks=False).st_mode & ~_SET_ID
                if stat.S_ISLNK(mode):
                    self.entries[path] = Entry(0o777, os.readlink(entry.path))
                elif stat.S_ISDIR(mode):
                    self.entries[path] = Entry(stat.S_IMODE(mode), None)
                    todo.append(Path(entry.path))
                elif stat.S_ISREG(mode):
                    self.entries[path] = Entry(stat.S_IMODE(mode), Path(entry.path))

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._parents(path)
        self.entries[path] = Entry(mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._parents(path)
        self.entries[path] = Entry(0o777, target)

    def folder(self, path: str, mode: int) -> None:
        """A folder."""
        self._parents(path)
        self.entries[path] = Entry(mode, None)

    def recipe(self, recipe: Recipe) -> None:
        """What a recipe adds to its packages."""
        for path, mode in recipe.folders.items():
            self.folder(path, int(mode, 8))
        for script, path in recipe.scripts.items():
            self.file(path, guest_script(script), 0o755)
        for path, text in recipe.files.items():
            self.file(path, text.encode(), 0o600 if path == "etc/shadow" else 0o644)
        for path, target in recipe.links.items():
            self.link(path, target)

    def archive(self, stream: IO[bytes]) -> None:
        """Write all of it as a tar archive, parents first."""
        # GNU's format has names as bytes: mke2fs would have to convert the other one's, which takes a locale
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for path in sorted(self.entries, key=lambda name: name.split("/")):
                _add(archive, path, self.entries[path])

    def _parents(self, path: str) -> None:
        for parent in reversed(Path(path).parents):
            if str(parent) != ".":
                self.entries.setdefault(str(parent), Entry(0o755, None))


def _add(archive: tarfile.TarFile, path: str, entry: Entry) -> None:
    info = tarfile.TarInfo(path)
    info.mtime, info.mode = EPOCH, entry.mode
    content = entry.content
    if content is None:
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif isinstance(content, str):
        info.type, info.linkname = tarfile.SYMTYPE, content
        archive.addfile(info)
    elif isinstance(content, Path):
        info.size = content.stat().st_size
        with open(content, "rb") as source:
            archive.addfile(info, source)
    else:
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
