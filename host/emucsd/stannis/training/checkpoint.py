"""Checkpoints that a crash can't take away: files in a folder, or two slots on a raw namespace of the drive.

    keeper = checkpoint.keeper("run/checkpoints")       # or "ns:3": namespace 3 of this node's drive
    keeper.save(trainer.state())
    trainer.load_state(checkpoint.load("run/checkpoints").state)

A state is stored as ``torch.save`` writes it, with a checksum of ours; PyTorch itself does not notice a changed byte.
Every save goes beside what is there, and becomes the newest by one last atomic write: a crash at any instant costs at
most the checkpoint that was being written. Loading takes the newest that is whole, and unpickles nothing but tensors
and plain values (``weights_only``).
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from emucsd.isp.disk import Disk
from emucsd.isp.errors import IspError
from emucsd.stannis.errors import CheckpointDamaged, CheckpointError, CheckpointFull, CheckpointMissing
from emucsd.stannis.training import seal
from emucsd.stannis.training.report import CheckpointReport

KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8})\.pt")
_NAMESPACE = re.compile(r"ns:(\d+)")
_BLANK_BYTES = 64 << 10


@dataclass(frozen=True)
class Loaded:
    """A checkpoint.

    :ivar where: the file or slot that it came from
    :ivar generation: counts the saves at this place, from 1
    :ivar passed_over: newer ones that are damaged, and how
    """

    state: dict[str, Any]
    where: str
    generation: int
    passed_over: tuple[str, ...]


class Store(Protocol):
    """A place for checkpoints."""

    def save(self, state: dict[str, Any]) -> CheckpointReport:
        """Keep a state; when this returns it survives a crash.

        :raises CheckpointFull: no room; what was kept before is whole
        :raises CheckpointError: the medium refused
        """

    def load(self) -> Loaded:
        """The newest whole one.

        :raises CheckpointMissing: there is none
        :raises CheckpointDamaged: there are some, and none is whole
        """

    def close(self) -> None:
        """Let the place go."""


def keeper(where: str) -> Store:
    """A place by its name: a folder, which is made, or ``ns:N``, a namespace of this node's drive (``$EMUCSD_DISK``).

    :raises CheckpointError: the folder can't be made, there is no such disk, or it holds something else
    """
    found = _NAMESPACE.fullmatch(where)
    if found is None:
        return Folder(where)
    with _medium(where):
        return Slots(Disk.open(nsid=int(found[1])), where)


def load(where: str) -> Loaded:
    """The newest whole checkpoint of a folder or ``ns:N``, or that of a single file.

    :raises CheckpointMissing, CheckpointDamaged, CheckpointError: as above
    """
    path = Path(where)
    if path.is_file():
        return _newest([path.name], Folder(path.parent).open, str(path.parent))
    if _NAMESPACE.fullmatch(where) is None and not path.is_dir():
        raise CheckpointMissing(f"{where}: no such folder, file or namespace (ns:N)")
    place = keeper(where)
    try:
        return place.load()
    finally:
        place.close()


class Folder:
    """The two newest in a folder, ``checkpoint-NNNNNNNN.pt``; ``torch.load`` reads them too.

    One process saves at a time. A file appears under its name when it is whole and on the medium.
    """

    def __init__(self, path: Path | str, kept: int = KEPT) -> None:
        self.path, self.kept = Path(path), kept
        with _medium(str(path)):
            self.path.mkdir(parents=True, exist_ok=True)

    def save(self, state: dict[str, Any]) -> CheckpointReport:
        """Write aside, fsync, rename, fsync the folder; then let the oldest go."""
        begun = time.perf_counter()
        payload = _packed(state)
        for stale in self.path.glob(".checkpoint-*.tmp"):
            stale.unlink(missing_ok=True)
        there = self._files()
        generation = there[0][0] + 1 if there else 1
        path = self.path / f"checkpoint-{generation:08d}.pt"
        aside = self.path / f".{path.name}.tmp"
        needed = len(payload) + seal.BYTES
        try:
            with _medium(str(path), needed, lambda: _free(self.path)):
                _write(aside, [payload, seal.make(payload, generation)])
                aside.rename(path)
                _sync_folder(self.path)
        finally:
            aside.unlink(missing_ok=True)
        for _, old in there[self.kept - 1 :]:
            (self.path / old).unlink(missing_ok=True)
        return CheckpointReport(_step(state), str(path), needed, time.perf_counter() - begun)

    def load(self) -> Loaded:
        """Newest first, by number."""
        return _newest([name for _, name in self._files()], self.open, str(self.path))

    def open(self, name: str) -> tuple[int, memoryview]:
        """A file's generation and payload. :raises CheckpointDamaged: it is not whole"""
        with _medium(str(self.path / name)):
            data = memoryview((self.path / name).read_bytes())
        mark = seal.read(data[-seal.BYTES :])
        if mark is None:
            raise CheckpointDamaged(f"{self.path / name}: its last {seal.BYTES} bytes are no valid seal")
        seal.check(mark, data[: -seal.BYTES], str(self.path / name))
        return mark.generation, data[: -seal.BYTES]

    def close(self) -> None:
        """Nothing is held."""

    def _files(self) -> list[tuple[int, str]]:
        with _medium(str(self.path)):
            names = [(int(found[1]), name) for name in os.listdir(self.path) if (found := _NAME.fullmatch(name))]
        return sorted(names, reverse=True)


class Slots:
    """Two slots on a raw namespace: the older is overwritten, and its header is written last.

    A header has its own checksum and lies in one block, which the drive writes whole or not at all. A slot counts if
    header and payload are whole; of two the higher generation.

    :raises CheckpointError: the namespace holds something that is not ours and not zeros
    """

    def __init__(self, disk: Disk, name: str = "disk") -> None:
        self.disk, self.name = disk, name
        block = disk.block_bytes
        self._head = -(-seal.BYTES // block) * block
        self._size = disk.size // 2 // block * block
        self._newest: tuple[int, int] | None = None  # generation and slot, once they are known
        if self._size <= self._head:
            raise CheckpointFull(f"{name} has {disk.size} bytes, no room for a checkpoint", free=disk.size)
        with _medium(name):
            self._claim()

    def _claim(self) -> None:
        """Make sure that nothing of anybody else's is overwritten."""
        if any(self.disk.read(slot * self._size, len(seal.MAGIC)) == seal.MAGIC for slot in (0, 1)):
            return
        if any(self.disk.read(0, min(_BLANK_BYTES, self.disk.size))):
            raise CheckpointError(
                f"{self.name} holds something else than checkpoints; name another namespace, or zero its first "
                f"{_BLANK_BYTES} bytes"
            )
        self._write_head(0, seal.make(b"", 0))

    def save(self, state: dict[str, Any]) -> CheckpointReport:
        """Payload, flush, header, flush."""
        begun = time.perf_counter()
        payload = _packed(state)
        room = self._size - self._head
        if len(payload) > room:
            raise CheckpointFull(
                f"{self.name}: the checkpoint has {len(payload)} bytes, a slot (half of the namespace) {room}; give it "
                f"a namespace of {2 * (len(payload) + self._head + self.disk.block_bytes)} bytes",
                len(payload),
                room,
            )
        last, slot = self._newest or next(iter(self._whole()), (0, 1))
        generation, slot = last + 1, 1 - slot
        with _medium(self.name, len(payload), lambda: room):
            self._write(slot * self._size + self._head, payload)
            self.disk.flush()
            self._write_head(slot, seal.make(payload, generation))
        self._newest = generation, slot
        seconds = time.perf_counter() - begun
        return CheckpointReport(_step(state), f"{self.name}, slot {slot}", len(payload) + self._head, seconds)

    def load(self) -> Loaded:
        """The higher generation first."""
        return _newest([f"slot {slot}" for _, slot in self._marked()], self.open, self.name)

    def open(self, name: str) -> tuple[int, memoryview]:
        """A slot's generation and payload. :raises CheckpointDamaged: it is not whole"""
        at = int(name.removeprefix("slot ")) * self._size
        with _medium(self.name):
            mark = seal.read(self.disk.read(at, seal.BYTES))
            if mark is None or not 0 < mark.length <= self._size - self._head:
                raise CheckpointDamaged(f"{self.name}, {name}: no valid header")
            payload = memoryview(self.disk.read(at + self._head, mark.length))
        seal.check(mark, payload, f"{self.name}, {name}")
        return mark.generation, payload

    def _marked(self) -> list[tuple[int, int]]:
        """(generation, slot) as the headers say, newest first."""
        with _medium(self.name):
            marks = [(seal.read(self.disk.read(slot * self._size, seal.BYTES)), slot) for slot in (0, 1)]
        return sorted(((mark.generation, slot) for mark, slot in marks if mark and mark.length), reverse=True)

    def _whole(self) -> Iterator[tuple[int, int]]:
        """Of these, the ones whose payload is there."""
        for generation, slot in self._marked():
            with suppress(CheckpointDamaged):
                self.open(f"slot {slot}")
                yield generation, slot

    def _write(self, at: int, payload: memoryview) -> None:
        """Whole blocks, the last one filled up with zeros."""
        block = self.disk.block_bytes
        whole = len(payload) // block * block
        self.disk.write(at, payload[:whole])
        if whole < len(payload):
            self.disk.write(at + whole, bytes(payload[whole:]).ljust(block, b"\0"))

    def _write_head(self, slot: int, mark: bytes) -> None:
        self.disk.write(slot * self._size, mark + bytes(self._head - len(mark)))
        self.disk.flush()

    def close(self) -> None:
        """Let the disk go."""
        self.disk.close()


# -- what both do


def _packed(state: dict[str, Any]) -> memoryview:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getbuffer()


def _step(state: dict[str, Any]) -> int:
    return int(state.get("at", {}).get("step", 0))


def _newest(names: list[str], opened: Callable[[str], tuple[int, memoryview]], where: str) -> Loaded:
    """The first that is whole."""
    if not names:
        raise CheckpointMissing(f"{where}: no checkpoint was ever kept there")
    damaged: list[str] = []
    for name in names:
        try:
            generation, payload = opened(name)
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            return Loaded(state, f"{where}, {name}", generation, tuple(damaged))
        except CheckpointDamaged as problem:
            damaged.append(str(problem))
        except (pickle.UnpicklingError, RuntimeError, EOFError) as problem:  # sealed by somebody, but no state
            damaged.append(f"{where}, {name}: {type(problem).__name__}, {str(problem).partition(chr(10))[0]}")
    raise CheckpointDamaged(f"none of {len(damaged)} checkpoints is whole: {'; '.join(damaged)}")


def _write(path: Path, pieces: list[bytes | memoryview]) -> None:
    """A new file that is on the medium when this returns."""
    with open(path, "wb", buffering=0) as file:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """A rename is on the medium once its folder is."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@contextmanager
def _medium(where: str, needed: int = 0, free: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """What a file system or drive says, as errors of this package."""
    try:
        yield
    except (OSError, IspError) as problem:
        cause = problem if isinstance(problem, OSError) else problem.__cause__
        said = str(problem)
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or os.strerror(errno.ENOSPC) in said:
            left = free()
            raise CheckpointFull(
                f"{where}: no room for a checkpoint of {needed} bytes, {left} are free; the one before it stays valid. "
                "Make room, or name another place",
                needed,
                left,
            ) from problem
        raise CheckpointError(f"{where}: {said}; the one before it stays valid") from problem
