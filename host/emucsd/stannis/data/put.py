"""Samples onto a drive: a namespace is made, written over this port, read back, and given to the drive's engine.

    with Drive.open("disk0") as drive:
        put(drive, "/data/cifar10.tar/train", private=True)

Made private, a namespace is attached to port 1 alone: this host has written it, and can read it no more.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emucsd.errors import EmucsdError, NvmeError
from emucsd.stannis.data.errors import DataFormat, NoRoom, PutFailed
from emucsd.stannis.data.pack import Pack
from emucsd.stannis.data.room import ENGINE, HOST, make_room
from emucsd.stannis.data.samples import Source
from emucsd.stannis.data.source import open
from emucsd.stannis.data.split import Part

if TYPE_CHECKING:
    from emucsd.drive import Drive
    from emucsd.namespace import Namespace

CHUNK = 4 << 20  # bytes of one write
_DIGEST = 16
Progress = Callable[[int], None]  # is given the bytes that were written or read back since


@dataclass(frozen=True)
class Put:
    """What lies where now.

    :ivar nsid: of the namespace; ``location`` is what the drive's engine opens
    :ivar size: bytes of the namespace; ``bytes`` of them are the tar
    :ivar room: what was done to make room, for people
    """

    nsid: int
    location: str
    private: bool
    count: int
    classes: tuple[str, ...]
    sample_bytes: int
    bytes: int
    size: int
    room: str

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {**asdict(self), "classes": list(self.classes)}


def put(
    drive: Drive,
    source: Source | str,
    *,
    private: bool = False,
    indices: Sequence[int] | None = None,
    namespace: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Put:
    """Write samples to a namespace of one drive, as a tar from its block 0.

    :param drive: on port 0; on port 1, so from within the drive, private samples never cross port 0 at all
    :param source: an open one, or a location
    :param private: attach it to port 1 alone when it is written; else both ports have it
    :param indices: only these of the source's samples
    :param namespace: an existing one, attached to this port, instead of a new one
    :param force: overwrite what that namespace holds
    :raises NoRoom: the drive's capacity, or that namespace, is too small; the text says how to make room
    :raises PutFailed: it did not read back equal, or the namespace holds other data; nothing new is left behind
    :raises DataError: the source can't be read
    """
    if isinstance(source, str):
        with open(source) as opened:
            return put(drive, opened, private=private, indices=indices, namespace=namespace, force=force,
                       progress=progress)  # fmt: skip
    part = Part(0, private, np.arange(source.count) if indices is None else np.asarray(indices, np.int64))
    return put_all([drive], source, [part], namespace=namespace, force=force, progress=progress)[0]


def put_all(
    drives: Sequence[Drive],
    source: Source,
    parts: Sequence[Part],
    *,
    namespace: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Put]:
    """Write parts of a source to several drives: all, or none. Private ones are detached when every part is written.

    :param parts: of ``split.split``; with ``namespace`` there is one part at most for a drive
    :raises NoRoom, PutFailed, DataError: as ``put``; namespaces that were made are deleted again
    """
    written = []
    with contextlib.ExitStack() as undo:
        for part in parts:
            drive, pack = drives[part.drive], Pack(source, part.indices.tolist())
            if not pack.count:
                raise DataFormat(f"{source.location}: no sample is to be put; leave the part out")
            if namespace is None:
                space, room = _new(drive, pack.size)
                undo.callback(_delete, drive, space.nsid)
            else:
                space, room = _existing(drive, namespace, pack.size, force=force), ""
            _write(space, pack, progress or _unheard)
            written.append(_described(source, part, pack, space, room))
        for part, done in zip(parts, written, strict=True):
            _share(drives[part.drive], done.nsid, private=part.private)
        undo.pop_all()
    return written


def _described(source: Source, part: Part, pack: Pack, space: Namespace, room: str) -> Put:
    labels, sizes = source.labels[pack.indices], source.sizes[pack.indices]
    classes = tuple(source.classes[label] for label in np.unique(labels))
    mean = round(float(sizes.mean()))
    return Put(space.nsid, f"ns:{space.nsid}", part.private, pack.count, classes, mean, pack.size, space.size, room)


def _delete(drive: Drive, nsid: int) -> None:
    with contextlib.suppress(EmucsdError):
        drive.admin.delete_namespace(nsid)


def _new(drive: Drive, size: int) -> tuple[Namespace, str]:
    lba_bytes = max(drive.admin.formats())
    blocks = -(-size // lba_bytes)
    room = make_room(drive, blocks * lba_bytes)
    try:
        nsid = drive.admin.create_namespace(blocks, lba_bytes)
    except NvmeError as problem:
        raise NoRoom(f"{drive.folder}: no namespace of {blocks * lba_bytes} bytes can be made: {problem}") from problem
    drive.admin.attach(nsid, drive.identity.cntlid)
    return drive.namespace(nsid), room


def _existing(drive: Drive, nsid: int, size: int, *, force: bool) -> Namespace:
    space = drive.namespace(nsid)
    if space.size < size:
        raise NoRoom(f"{drive.folder}, namespace {nsid}: {size} bytes are needed, and it has {space.size}")
    if not force and space.read(0, min(space.blocks, CHUNK // space.lba_bytes)).any():
        raise PutFailed(
            f"{drive.folder}, namespace {nsid}: holds data; --force overwrites it, and without --namespace a new "
            "one is made"
        )
    return space


def _write(space: Namespace, pack: Pack, progress: Progress) -> None:
    """The first chunk is written last: what was begun and never ended is no tar. :raises PutFailed: it differs"""
    digests = []
    head = b""
    for number, chunk in enumerate(_chunks(pack, space.lba_bytes)):
        digests.append(hashlib.blake2b(chunk, digest_size=_DIGEST).digest())
        if number:
            space.write(number * (CHUNK // space.lba_bytes), chunk)
        else:
            head = bytes(chunk)
            space.write(0, bytes(space.lba_bytes))
        progress(len(chunk))
    space.write(0, head)
    space.flush()
    at, last = 0, -(-pack.size // space.lba_bytes)
    for number, wanted in enumerate(digests):
        count = min(CHUNK // space.lba_bytes, last - at)
        found = space.read(at, count)
        if hashlib.blake2b(found.tobytes(), digest_size=_DIGEST).digest() != wanted:
            raise PutFailed(
                f"namespace {space.nsid}: bytes {number * CHUNK} to {number * CHUNK + found.nbytes} read back "
                "otherwise than written; does something else write to it?"
            )
        at += count
        progress(found.nbytes)


def _chunks(pack: Pack, lba_bytes: int) -> Iterator[bytearray]:
    """The tar in pieces of CHUNK bytes; the last one ends with its block."""
    held, total = bytearray(), 0
    for piece in pack.pieces():
        held += piece
        total += len(piece)
        while len(held) >= CHUNK:
            yield held[:CHUNK]
            del held[:CHUNK]
    assert total == pack.size, (total, pack.size)
    if held:
        yield held.ljust(-(-len(held) // lba_bytes) * lba_bytes, b"\0")


def _share(drive: Drive, nsid: int, *, private: bool) -> None:
    """Attach it to the engine, and detach it from the host. :raises PutFailed: this host still knows of it"""
    mine = drive.identity.cntlid
    owners = {ENGINE} if private else {HOST, ENGINE}
    for controller in sorted(owners - {mine} - set(drive.admin.owners(nsid))):
        drive.admin.attach(nsid, controller)
    if mine in owners:
        return
    drive.admin.detach(nsid, mine)
    if nsid in drive.admin.allocated_namespaces():
        raise PutFailed(f"namespace {nsid} was detached from the host, and the host still finds it: a bug of the drive")


def _unheard(done: int) -> None:
    pass
