"""The files of a mount: stretches of namespaces as bytes, and texts that are made when they are opened."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from emucsd.cli.units import plain
from emucsd.namespace import Namespace

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_PIECE = 4 << 20  # bytes of zeros written at a time


class Node(Protocol):
    """A file. Offsets and sizes in bytes."""

    writable: bool

    @property
    def size(self) -> int: ...

    def read(self, size: int, offset: int) -> bytes: ...

    def write(self, data: bytes, offset: int, *, sync: bool) -> int: ...

    def sync(self) -> None: ...

    def allocate(self, mode: int, offset: int, length: int) -> None: ...


class Stretch:
    """Parts of a namespace, one after the other, as a file of fixed size: all of it, or a table's extents.

    What does not begin or end with a block is read, changed and written back: one writer at a time.

    :param parts: (first byte in the namespace, bytes); starts are multiples of its blocks
    """

    def __init__(self, space: Namespace, parts: Sequence[tuple[int, int]], *, writable: bool) -> None:
        self.space, self.parts, self.writable = space, tuple(parts), writable

    @property
    def size(self) -> int:
        return sum(length for _, length in self.parts)

    def _runs(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(offset in the request, first byte in the namespace, bytes) of what a request covers."""
        begin = 0
        for start, length in self.parts:
            at, end = max(offset, begin), min(offset + size, begin + length)
            if at < end:
                yield at - offset, start + at - begin, end - at
            begin += length

    def read(self, size: int, offset: int) -> bytes:
        size = max(min(size, self.size - offset), 0)
        found = bytearray(size)
        block = self.space.lba_bytes
        for at, start, length in self._runs(offset, size):
            first, skip = divmod(start, block)
            data = self.space.read(first, -(-(skip + length) // block))
            found[at : at + length] = data[skip : skip + length].data
        return bytes(found)

    def write(self, data: bytes, offset: int, *, sync: bool) -> int:
        """:returns: bytes written: fewer than given at the end
        :raises OSError: ENOSPC at the end, as a block device has it
        """
        size = min(len(data), self.size - offset)
        if data and size <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        block = self.space.lba_bytes
        for at, start, length in self._runs(offset, size):
            first, skip = divmod(start, block)
            blocks = -(-(skip + length) // block)
            piece: Any = np.frombuffer(data, np.uint8, length, at)
            if skip or length % block:
                whole = self.space.read(first, blocks)
                whole[skip : skip + length] = piece
                piece = whole
            self.space.write(first, piece, fua=sync)
        return size

    def sync(self) -> None:
        self.space.flush()

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """:raises OSError: EFBIG past the end, EOPNOTSUPP for what a file of fixed size can't do"""
        if not mode & PUNCH_HOLE and offset + length > self.size:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if mode in (PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
            length = min(length, self.size - offset)
            for _, start, count in self._runs(offset, length):
                self._zero(start, count, give_up=bool(mode & PUNCH_HOLE))
        elif mode & ~KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _zero(self, start: int, length: int, *, give_up: bool) -> None:
        """Whole blocks by command, the rest by writing zeros."""
        block = self.space.lba_bytes
        first, end = -(-start // block), (start + length) // block
        if first >= end:
            self._write_zeros(start, length)
            return
        if give_up:
            self.space.deallocate(first, end - first)
        else:
            self.space.write_zeroes(first, end - first)
        self._write_zeros(start, first * block - start)
        self._write_zeros(end * block, start + length - end * block)

    def _write_zeros(self, start: int, length: int) -> None:
        whole = Stretch(self.space, ((0, self.space.size),), writable=True)
        for at in range(0, length, _PIECE):
            whole.write(bytes(min(_PIECE, length - at)), start + at, sync=False)


class Text:
    """A file that says something in JSON: as of when it was opened (or looked at, for its size)."""

    writable = False

    def __init__(self, tell: Callable[[], Any]) -> None:
        """:param tell: gives what is to be said"""
        self.text = (json.dumps(plain(tell()), indent=2) + "\n").encode()

    @property
    def size(self) -> int:
        return len(self.text)

    def read(self, size: int, offset: int) -> bytes:
        return self.text[offset : offset + size]

    def write(self, data: bytes, offset: int, *, sync: bool) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def sync(self) -> None:
        """Nothing is to be done."""

    def allocate(self, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
