"""A volume: named extents of a namespace, kept on the namespace itself.

One page says that a volume is here; two copies of the directory take turns, each with a generation number and a CRC32.
A change writes the older copy and then flushes, so a crash at any instant leaves the newest whole copy. Space is given
out first fit, in units that are whole flash pages of any geometry. A name appears only once its bytes are in place.

One writer at a time; what another client has written before is seen, because each change looks first.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import EmucsdError, InvalidArgument
from emucsd_wire.layout import U32, U64, Codec, Raw

UNIT = 32768  # bytes: the largest flash page that a geometry may have
MAX_NAME = 255  # bytes of UTF-8
MAX_EXTENTS = 4096
_HEAD = 4096  # bytes in front of a directory copy's text, and of the superblock
_FIRST_COPY = UNIT
_VERSION = 1
_MAGIC = b"EMUCSDVL"
_COPY_MAGIC = b"EMUCSDDR"


class VolumeError(EmucsdError):
    """A volume cannot be used as asked."""


class VolumeMissing(VolumeError):
    """The namespace holds no volume."""


class VolumeDamaged(VolumeError):
    """The namespace holds a volume whose superblock or both directory copies are broken."""


class VolumeFull(VolumeError):
    """No room for the bytes, or for another name in the directory."""


class NameTaken(VolumeError):
    """The name is in use."""


class NameUnknown(VolumeError, KeyError):
    """The volume has no such name."""

    __str__ = Exception.__str__


class Superblock(NamedTuple):
    """The first bytes of a volume; written once."""

    magic: Annotated[bytes, Raw(8)]
    version: U32
    unit: U32  # bytes that extents are aligned to
    size: U64  # bytes of the namespace that the volume uses
    copy_bytes: U64  # of each directory copy; the first one starts at _FIRST_COPY
    crc: U32  # of what is before it


class CopyHead(NamedTuple):
    """The first bytes of a directory copy; JSON text follows at _HEAD."""

    magic: Annotated[bytes, Raw(8)]
    generation: U64
    length: U32  # of the text
    crc: U32  # of generation, length and text


SUPERBLOCK = Codec(Superblock, 36)
COPY_HEAD = Codec(CopyHead, 24)


class Extent(NamedTuple):
    """``blocks`` logical blocks from ``slba`` on."""

    slba: int
    blocks: int


class Entry(NamedTuple):
    """A name of a volume. ``size`` bytes are in use; the extents hold them, rounded up to units."""

    name: str
    size: int
    extents: tuple[Extent, ...]
    attributes: Mapping[str, Any]


class Space(Protocol):
    """What a volume lies on; ``emucsd.Namespace`` is one."""

    @property
    def lba_bytes(self) -> int: ...

    @property
    def blocks(self) -> int: ...

    def read(self, lba: int, blocks: int, /) -> NDArray[Any]: ...

    def write(self, lba: int, data: NDArray[Any], /) -> None: ...

    def flush(self) -> None: ...


class Volume:
    """The directory of one namespace.

    ``Volume.open(namespace)``, or with ``create=True`` a new volume where the namespace's first block is blank.
    """

    def __init__(self, space: Space, superblock: Superblock) -> None:
        self.space = space
        self._super = superblock
        self._generation = 0
        self._entries: dict[str, Entry] = {}

    @classmethod
    def open(cls, space: Space, *, create: bool = False) -> Volume:
        """The volume that lies on ``space``.

        :raises VolumeMissing: there is none, and ``create`` is off or other data is there
        :raises VolumeDamaged: no whole copy of its directory is left
        """
        head = _read(space, 0, _HEAD)
        if head[:8] == _MAGIC:
            volume = cls(space, _checked_superblock(head, space))
            volume.reload()
            return volume
        if not create:
            raise VolumeMissing("the namespace holds no volume; make one with Volume.format(namespace)")
        if any(head):
            raise VolumeMissing(
                f"the namespace begins with {head[:8].hex()}, as no volume does; Volume.format(namespace) overwrites it"
            )
        return cls.format(space)

    @classmethod
    def format(cls, space: Space) -> Volume:
        """Make an empty volume, whatever was there. :raises VolumeFull: the namespace is too small for one"""
        size = space.blocks * space.lba_bytes // UNIT * UNIT
        copy_bytes = (1 << 20) if size >= 64 << 20 else 4 * UNIT
        start = _FIRST_COPY + 2 * copy_bytes
        if size < start + UNIT:
            raise VolumeFull(f"the namespace has {size} bytes; a volume takes {start} before its first extent")
        plain = SUPERBLOCK.pack(Superblock(_MAGIC, _VERSION, UNIT, size, copy_bytes, 0))[:-4]
        volume = cls(space, SUPERBLOCK.unpack(plain + struct.pack("<I", zlib.crc32(plain))))
        for turn in range(2):
            _write(space, _FIRST_COPY + turn * copy_bytes, bytes(_HEAD))
        volume._save({})
        _write(space, 0, SUPERBLOCK.pack(volume._super).ljust(_HEAD, b"\0"))
        space.flush()
        return volume

    # -- what is there

    def reload(self) -> None:
        """Take over the newest directory on the namespace. :raises VolumeDamaged: neither copy is whole"""
        copies = [self._copy(turn) for turn in range(2)]
        whole = [copy for copy in copies if copy is not None]
        if not whole:
            raise VolumeDamaged("both copies of the volume's directory fail their CRC; Volume.format() starts anew")
        self._generation, text = max(whole)
        self._entries = {name: _entry(name, fields) for name, fields in json.loads(text).items()}

    def list(self) -> list[Entry]:
        """Every entry, by name."""
        return [self._entries[name] for name in sorted(self._entries)]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        """:raises NameUnknown: no such name"""
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries)[:8]) or "none"
            raise NameUnknown(f"the volume has no {name!r}; it has: {known}") from None

    @property
    def size(self) -> int:
        """Bytes that extents can take."""
        return self._super.size - self._start

    @property
    def free_bytes(self) -> int:
        """Bytes in no extent, not necessarily in one piece."""
        return sum(length for _, length in self._holes())

    # -- changes

    def reserve(self, size: int, extent_bytes: int | None = None) -> tuple[Extent, ...]:
        """Room for ``size`` bytes: the first hole that holds them all, else the first holes. Not yet anybody's.

        :param extent_bytes: no extent is to be longer than this (a multiple of UNIT); None: as long as fits
        :raises VolumeFull: not that many bytes are free, or only in more pieces than a table may have
        """
        if size <= 0 or (extent_bytes is not None and (extent_bytes <= 0 or extent_bytes % UNIT)):
            raise InvalidArgument(
                f"size {size}, extent_bytes {extent_bytes}: give bytes > 0, extents in units of {UNIT}"
            )
        wanted = -(-size // UNIT) * UNIT
        self.reload()
        holes = list(self._holes())
        free = sum(length for _, length in holes)
        if free < wanted:
            raise VolumeFull(
                f"{wanted} bytes are wanted, {free} of {self.size} are free; drop a table, or use a larger drive"
            )
        fitting = [hole for hole in holes if hole[1] >= wanted]
        pieces: list[tuple[int, int]] = []
        for at, length in fitting[:1] or holes:
            take = min(length, wanted)
            step = extent_bytes or take
            pieces += [(at + done, min(step, take - done)) for done in range(0, take, step)]
            wanted -= take
            if not wanted:
                break
        if len(pieces) > MAX_EXTENTS:
            raise VolumeFull(
                f"{size} bytes fit only in {len(pieces)} extents, the limit is {MAX_EXTENTS}; drop small tables"
            )
        lba = self.space.lba_bytes
        return tuple(Extent(at // lba, length // lba) for at, length in pieces)

    def publish(self, name: str, size: int, extents: Sequence[Extent], attributes: Mapping[str, Any]) -> Entry:
        """Give reserved extents a name, once their bytes are written and flushed.

        :param attributes: anything that JSON can say
        :raises NameTaken: the name is in use
        :raises VolumeFull: the directory holds no more names, or the extents were given away meanwhile
        """
        check_name(name)
        self.reload()
        if name in self._entries:
            raise NameTaken(f"{name!r} is in use; drop it first or choose another name")
        taken = sorted(self._spans())
        for slba, blocks in extents:
            at, end = slba * self.space.lba_bytes, (slba + blocks) * self.space.lba_bytes
            if any(at < other_end and other < end for other, other_end in taken):
                raise VolumeFull(f"LBA {slba} was given to another name meanwhile; reserve again")
        entry = Entry(name, size, tuple(extents), dict(attributes))
        self._save({**self._entries, name: entry})
        return entry

    def create(self, name: str, size: int, attributes: Mapping[str, Any] | None = None) -> Entry:
        """``reserve`` and ``publish`` in one: the extents hold whatever was there."""
        check_name(name)
        if name in self._entries:
            raise NameTaken(f"{name!r} is in use; drop it first or choose another name")
        return self.publish(name, size, self.reserve(size), attributes or {})

    def remove(self, name: str) -> None:
        """Forget a name; its extents are free. :raises NameUnknown: no such name"""
        self.reload()
        self[name]
        self._save({other: entry for other, entry in self._entries.items() if other != name})

    def exchange(self, first: str, second: str, keep: Sequence[str] = ()) -> tuple[Entry, Entry]:
        """Two names change what they stand for, both at once and durably: extents, sizes and attributes.

        :param keep: attributes that stay with the name
        :returns: the new entries of ``first`` and ``second``
        :raises NameUnknown: no such name
        """
        self.reload()
        one, two = self[first], self[second]

        def moved(name: str, here: Entry, there: Entry) -> Entry:
            kept = {key: here.attributes[key] for key in keep if key in here.attributes}
            others = {key: value for key, value in there.attributes.items() if key not in keep}
            return Entry(name, there.size, there.extents, {**others, **kept})

        changed = moved(first, one, two), moved(second, two, one)
        self._save({**self._entries, first: changed[0], second: changed[1]})
        return changed

    # -- inside

    @property
    def _start(self) -> int:
        return _FIRST_COPY + 2 * self._super.copy_bytes

    def _spans(self) -> Iterator[tuple[int, int]]:
        lba = self.space.lba_bytes
        for entry in self._entries.values():
            for slba, blocks in entry.extents:
                yield slba * lba, (slba + blocks) * lba

    def _holes(self) -> Iterator[tuple[int, int]]:
        """(first byte, length) of what no extent covers."""
        at = self._start
        for start, end in sorted(self._spans()):
            if start > at:
                yield at, start - at
            at = max(at, end)
        if at < self._super.size:
            yield at, self._super.size - at

    def _copy(self, turn: int) -> tuple[int, bytes] | None:
        """(generation, text) of a directory copy, or None where it is not whole."""
        at = _FIRST_COPY + turn * self._super.copy_bytes
        head = COPY_HEAD.unpack(_read(self.space, at, _HEAD))
        if head.magic != _COPY_MAGIC or head.length > self._super.copy_bytes - _HEAD:
            return None
        text = _read(self.space, at + _HEAD, head.length) if head.length else b""
        return (head.generation, text) if head.crc == _copy_crc(head.generation, text) else None

    def _save(self, entries: dict[str, Entry]) -> None:
        text = json.dumps(
            {e.name: {"size": e.size, "extents": e.extents, "attributes": e.attributes} for e in entries.values()},
            separators=(",", ":"),
        ).encode()
        if len(text) > self._super.copy_bytes - _HEAD:
            raise VolumeFull(
                f"the directory would take {len(text)} bytes of {self._super.copy_bytes - _HEAD}; drop something first"
            )
        generation = self._generation + 1
        at = _FIRST_COPY + generation % 2 * self._super.copy_bytes
        head = CopyHead(_COPY_MAGIC, generation, len(text), _copy_crc(generation, text))
        _write(self.space, at, COPY_HEAD.pack(head).ljust(_HEAD, b"\0") + text)
        self.space.flush()
        self._generation, self._entries = generation, entries


def check_name(name: str) -> None:
    """:raises InvalidArgument: empty, too long, or with control characters"""
    if not name or len(name.encode()) > MAX_NAME or not name.isprintable():
        raise InvalidArgument(f"name {name!r}: use 1 to {MAX_NAME} bytes of printable text")


def _checked_superblock(head: bytes, space: Space) -> Superblock:
    found = SUPERBLOCK.unpack(head)
    if found.crc != zlib.crc32(head[: SUPERBLOCK.size - 4]):
        raise VolumeDamaged("the volume's superblock fails its CRC; Volume.format() starts anew")
    if found.version != _VERSION or found.unit % space.lba_bytes or found.size > space.blocks * space.lba_bytes:
        raise VolumeDamaged(
            f"the volume is version {found.version} with {found.size} bytes in units of {found.unit}; this library "
            f"reads version {_VERSION}, and the namespace has {space.blocks} blocks of {space.lba_bytes}"
        )
    return found


def _entry(name: str, fields: Mapping[str, Any]) -> Entry:
    return Entry(name, fields["size"], tuple(Extent(*pair) for pair in fields["extents"]), fields["attributes"])


def _copy_crc(generation: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(struct.pack("<QI", generation, len(text))))


def _read(space: Space, at: int, count: int) -> bytes:
    blocks = -(-count // space.lba_bytes)
    return space.read(at // space.lba_bytes, blocks).tobytes()[:count]


def _write(space: Space, at: int, data: bytes) -> None:
    padded = data.ljust(-(-len(data) // space.lba_bytes) * space.lba_bytes, b"\0")
    space.write(at // space.lba_bytes, np.frombuffer(padded, np.uint8))
