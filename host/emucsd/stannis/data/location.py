"""Where samples lie, as a text that is read on the node which has them.

| location | samples |
| --- | --- |
| ``/data/train`` | ImageFolder: ``CLASS/…/name.jpg`` (.jpeg, .png) |
| ``/data/x.tar``, ``/data/*.tar`` | the same inside of tar shards |
| ``/data/x.tar/train`` | only what lies in ``train/`` of the tar |
| ``/data/x.npz``, ``/data/x.pt`` | arrays ``images`` and ``labels`` |
| ``ns:2`` | a tar from block 0 of namespace 2 of this node's drive |
| ``ns:2@1`` | the same, of drive 1: on a host with several |
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from typing import Literal

from emucsd.stannis.data.errors import DataFormat, ShardMissing, SplitsFound

IMAGES = (".jpg", ".jpeg", ".png")
SPLITS = frozenset({"train", "test", "val", "valid", "validation"})  # no classes, where all of a set are named so

_NAMESPACE = re.compile(r"ns:(\d+)(?:@(\w+))?")
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2|txz)(/|$)", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.tar$")
_INSIDE = re.compile(r"(.+?\.tar)/+(.+)", re.DOTALL)

Kind = Literal["folder", "tar", "tensors", "namespace"]


@dataclass(frozen=True)
class Location:
    """A location, taken apart.

    :ivar text: as it was given
    :ivar kind: which source reads it
    :ivar path: of the file or folder, or a pattern of files; "" for a namespace
    :ivar inside: the folder in a tar that counts; "" is all of it
    :ivar nsid: of a namespace, else 0
    :ivar drive: K of ``ns:N@K``; "" is the node's own drive
    """

    text: str
    kind: Kind
    path: str = ""
    inside: str = ""
    nsid: int = 0
    drive: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that says where the drive's disk is."""
        return f"EMUCSD_DISK_{self.drive}" if self.drive else "EMUCSD_DISK"

    def files(self) -> list[str]:
        """The tar shards, in order; the path itself where it is no pattern."""
        return sorted(glob.glob(self.path)) if _MAGIC.search(self.path) else [self.path]

    def check_shards(self, paths: list[str]) -> None:
        """:raises ShardMissing: shards are numbered ``…-00003-of-00010.tar``, and some are not there"""
        numbered = [match for path in paths if (match := _NUMBERED.search(path))]
        if _MAGIC.search(self.path) and numbered and len(numbered) == len(paths):
            wanted = int(numbered[0][2])
            first = min(int(match[1]) for match in numbered)
            lacking = set(range(first and 1, wanted + (first and 1))) - {int(match[1]) for match in numbered}
            if lacking:
                some = ", ".join(map(str, sorted(lacking)[:8]))
                raise ShardMissing(f"{self.text}: of {wanted} shards {len(lacking)} are not there: {some}")


def parse(text: str) -> Location:
    """Take a location apart; nothing is opened.

    :raises DataFormat: it has no form that is known
    """
    if text.startswith("ns:"):
        match = _NAMESPACE.fullmatch(text)
        if match is None or not 1 <= int(match[1]) < 0xFFFF_FFFF:
            raise DataFormat(f"location {text!r}: a namespace is ns:N, or ns:N@K on a host with several drives")
        return Location(text, "namespace", nsid=int(match[1]), drive=match[2] or "")
    if packed := _PACKED.search(text):
        raise DataFormat(
            f"location {text!r}: samples are read from anywhere in a shard, and a .{packed[1]} can only be read from "
            f"its start; unpack it first (for .tar.gz: gunzip -k FILE), or unpack the images into folders"
        )
    whole = text.rstrip("/")
    if not whole:
        raise DataFormat(f"location {text!r}: give a folder, a .tar, a .npz, a .pt, or ns:N")
    suffix = os.path.splitext(whole)[1].lower()
    if suffix in (".npz", ".pt"):
        return Location(text, "tensors", whole)
    if suffix == ".tar" and not os.path.isdir(whole):
        return Location(text, "tar", whole)
    inside = _INSIDE.fullmatch(whole)
    if inside is not None and not os.path.isdir(inside[1]):
        return Location(text, "tar", inside[1], inside[2].strip("/"))
    if suffix in IMAGES or _MAGIC.search(whole):
        raise DataFormat(f"location {text!r}: give the folder of class folders, or tar shards such as '*.tar'")
    return Location(text, "folder", whole)


def check_classes(where: str, names: set[str], root: str) -> None:
    """:param root: the location that they are in :raises SplitsFound: the top folders are no classes"""
    if names and names <= SPLITS:
        parts = {name: f"{root}/{name}" for name in sorted(names)}
        some = ", ".join(parts)
        raise SplitsFound(
            f"{where}: its folders are {some}, which are no classes; name one: {parts[max(parts)]}", parts
        )


def ordered(names: set[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: numbers by value, else by name."""
    if names and all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def is_sample(name: str) -> bool:
    """Whether a file's name is a sample's: an image, and not hidden."""
    return name.lower().endswith(IMAGES) and not name.startswith(".")
