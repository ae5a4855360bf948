"""What lies on a drive, as far as a port may know, and whether it is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emucsd.errors import NvmeError, UnrecoveredRead
from emucsd.stannis.data.decode import decode
from emucsd.stannis.data.errors import DataError, DriveGone, ShardDamaged, ShardMissing
from emucsd.stannis.data.location import parse
from emucsd.stannis.data.samples import Source
from emucsd.stannis.data.tar import TarSource

if TYPE_CHECKING:
    from emucsd.drive import Drive
    from emucsd.namespace import Namespace

_TOGETHER = 256
_SHOWN = 16


class NamespaceReader:
    """A namespace of a drive that this process has open, as a shard's bytes."""

    def __init__(self, space: Namespace) -> None:
        self.space, self.name, self.size, self.unit = space, f"ns:{space.nsid}", space.size, space.lba_bytes

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes, fewer only at the end. :raises ShardDamaged, DriveGone: lost by the flash, refused"""
        end = min(offset + count, self.size)
        if end <= offset:
            return b""
        first = offset // self.unit
        try:
            blocks = self.space.read(first, -(-end // self.unit) - first)
        except UnrecoveredRead as problem:
            raise ShardDamaged(f"{self.name}, offset {offset}: {problem}") from problem
        except NvmeError as problem:
            raise DriveGone(f"{self.name}, offset {offset}: {problem}") from problem
        return blocks.tobytes()[offset - first * self.unit : end - first * self.unit]

    def close(self) -> None:
        """The drive stays open."""


def open_namespace(drive: Drive, nsid: int) -> TarSource:
    """The samples on a namespace of a port that this process has open.

    :raises InvalidNamespace: this port has none of that id
    :raises ShardMissing, ShardDamaged, DataFormat: no tar, a damaged one, one without samples
    """
    return TarSource(parse(f"ns:{nsid}"), shards=[NamespaceReader(drive.namespace(nsid))])


@dataclass(frozen=True)
class Held:
    """A namespace that the port has.

    :ivar owners: controllers that it is attached to: 1 is the host's, 2 the engine's
    :ivar what: ``samples``, ``nothing`` (no tar), or why the tar can't be read
    :ivar checked: each sample has a checksum
    """

    nsid: int
    size: int
    owners: tuple[int, ...]
    what: str
    count: int = 0
    classes: tuple[str, ...] = ()
    bytes: int = 0
    checked: bool = False


@dataclass(frozen=True)
class Listing:
    """A drive's namespaces.

    :ivar hidden: bytes in namespaces that this port may not see: those of the other port alone
    """

    total: int
    free: int
    hidden: int
    namespaces: tuple[Held, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)


def listing(drive: Drive) -> Listing:
    """What this port may know of a drive: its own namespaces, and of others how much room they take."""
    about = drive.admin.controller()
    seen = sum(drive.admin.allocated_namespace(nsid).nvmcap for nsid in drive.admin.allocated_namespaces())
    held = tuple(_held(drive, space) for space in drive.namespaces)
    return Listing(about.tnvmcap, about.unvmcap, about.tnvmcap - about.unvmcap - seen, held)


def _held(drive: Drive, space: Namespace) -> Held:
    owners = drive.admin.owners(space.nsid)
    try:
        with open_namespace(drive, space.nsid) as source:
            total = int(source.sizes.sum())
            return Held(space.nsid, space.size, owners, "samples", source.count, source.classes, total, source.checked)
    except ShardMissing:
        return Held(space.nsid, space.size, owners, "nothing")
    except ShardDamaged as problem:
        tar = NamespaceReader(space).read(257, 5) == b"ustar"  # else a file system or a volume, no tar that went bad
        return Held(space.nsid, space.size, owners, str(problem) if tar else "other data")
    except DataError as problem:
        return Held(space.nsid, space.size, owners, str(problem))


@dataclass(frozen=True)
class Checked:
    """How a source's samples are.

    :ivar damaged: how many can't be read or decoded; ``first`` are the first of them: (index, why)
    :ivar smallest, largest: (height, width) of pictures
    """

    count: int
    damaged: int
    first: tuple[tuple[int, str], ...]
    smallest: tuple[int, int]
    largest: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)


def check(source: Source, progress: Callable[[int], None] | None = None) -> Checked:
    """Read and decode every sample.

    :param progress: is given how many were checked since
    :raises DriveGone: reads fail as a whole; DecoderMissing: there is no Pillow
    """
    bad: list[tuple[int, str]] = []
    sizes: set[tuple[int, int]] = set()
    for first in range(0, source.count, _TOGETHER):
        some = list(range(first, min(first + _TOGETHER, source.count)))
        bad += _look(source, some, sizes)
        if progress is not None:
            progress(len(some))
    heights, widths = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    least, most = (min(heights), min(widths)), (max(heights), max(widths))
    return Checked(source.count, len(bad), tuple(bad[:_SHOWN]), least, most)


def _look(source: Source, indices: Sequence[int], sizes: set[tuple[int, int]]) -> list[tuple[int, str]]:
    bad = []
    for index, payload in zip(indices, source.samples(indices), strict=True):
        if isinstance(payload, ShardMissing | ShardDamaged):
            bad.append((index, str(payload)))
            continue
        try:
            picture = decode(payload, 3) if isinstance(payload, bytes) else payload
        except ShardDamaged as problem:
            bad.append((index, f"{source.where(index)}: {problem}"))
            continue
        sizes.add((picture.shape[0], picture.shape[1]) if picture.dtype == np.uint8 else picture.shape[1:3])
    return bad
