"""ImageFolder: a folder for each class, images in it or below it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from emucsd.stannis.data.errors import DataFormat, Lost, ShardDamaged, ShardMissing
from emucsd.stannis.data.location import Location, check_classes, is_sample, ordered
from emucsd.stannis.data.samples import Indexed, Payload


class FolderSource(Indexed):
    """Samples in files ``CLASS/…/name.jpg``. Hidden files, other suffixes and classes without a sample don't count.

    :raises ShardMissing: there is no such folder
    :raises DataFormat: there are no samples in class folders
    """

    def __init__(self, location: Location, *, private: bool = False) -> None:
        self._root = location.path
        found = sorted(_walk(location, private))
        if not found:
            raise DataFormat(
                f"{location.text}: no samples; a folder for each class is wanted, with .jpg or .png files in it"
            )
        classes = ordered({name for name, _, _ in found})
        check_classes(location.text, set(classes), location.path)
        number = {name: index for index, name in enumerate(classes)}
        if classes != tuple(sorted(classes)):
            found.sort(key=lambda entry: (number[entry[0]], entry[1]))
        labels = np.fromiter((number[name] for name, _, _ in found), np.int64, len(found))
        sizes = np.fromiter((size for _, _, size in found), np.int64, len(found))
        super().__init__(location.text, classes, labels, sizes, private=private)
        self._paths = [path for _, path, _ in found]

    def where(self, index: int) -> str:
        """The file's name, or only the folder's where that is private."""
        return self.location if self.private else self._path(index)

    def _path(self, index: int) -> str:
        return os.path.join(self._root, self.classes[self.labels[index]], self._paths[index])

    def samples(self, indices: Sequence[int]) -> list[Payload | Lost]:
        """Several at once, in the order asked for; an error stands where its sample would."""
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> Payload | Lost:
        why = ""
        try:
            with open(self._path(index), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return ShardMissing(f"{self.where(index)}: the file is gone since the run began; put it back")
        except OSError as problem:
            why = problem.strerror or "it can't be read"
        if why:
            return ShardDamaged(f"{self.where(index)}: {why}")
        if len(data) != self.sizes[index]:
            return ShardDamaged(
                f"{self.where(index)}: {len(data)} bytes, and it had {self.sizes[index]} when the run began"
            )
        return data


def _walk(location: Location, private: bool) -> Iterator[tuple[str, str, int]]:
    """(class, path below it, bytes) of each sample."""
    why = ""
    try:
        for top in os.scandir(location.path):
            if top.is_dir() and not top.name.startswith("."):
                for path, size in _below(top.path, ""):
                    yield top.name, path, size
    except FileNotFoundError as problem:
        gone = "" if private else f" ({problem.filename})" if problem.filename != location.path else ""
        why = f"no such folder{gone}"
    except NotADirectoryError:
        why = "is a file; give a folder of class folders, a .tar, a .npz or a .pt"
    except PermissionError as problem:
        why = "this user may not read it" if private else f"this user may not read {problem.filename}"
    if why:
        raise ShardMissing(f"{location.text}: {why}")


def _below(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            if not entry.name.startswith("."):
                yield from _below(entry.path, f"{prefix}{entry.name}/")
        elif is_sample(entry.name) and entry.is_file():
            yield prefix + entry.name, entry.stat().st_size
