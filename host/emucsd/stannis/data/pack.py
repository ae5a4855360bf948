"""Samples to the bytes of a tar: what ``put`` writes.

Members are ``CLASS/<number>.jpg`` or ``.png``, in the source's order, owned by nobody and dated 1970: equal samples
make equal bytes, and no file's name comes along. Behind them ``.emucsd/crc32`` has each body's CRC-32, which readers
compare: JPEG decoders make a picture of damaged bytes without a word. Any tar program reads the result.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from emucsd.stannis.data.decode import encode
from emucsd.stannis.data.errors import DataFormat, ShardDamaged, ShardMissing
from emucsd.stannis.data.index import CHECKSUMS, END_BYTES
from emucsd.stannis.data.samples import Payload, Source

_TOGETHER = 256  # samples asked of the source at a time
_BLOCK = tarfile.BLOCKSIZE
_PNG = b"\x89PNG"


class Pack:
    """A tar of some samples of a source, as a stream whose size is known before.

    :param indices: of the source's samples; they are written in rising order
    :ivar size: bytes of the tar
    :raises DataFormat: tensors that are no pictures
    :raises ShardMissing, ShardDamaged: while streaming: a sample can't be read
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, sorted(indices)
        self.count = len(self.indices)
        self._encoded: dict[int, bytes] = {}
        self._digits = max(len(str(source.count - 1)), 4)
        if self.indices and not isinstance(source.sample(self.indices[0])[0], bytes):
            self._encoded = dict(self._pictures())
        self.size = self._members() + _padded(4 * self.count) + _BLOCK + END_BYTES

    def _pictures(self) -> Iterator[tuple[int, bytes]]:
        for index in self.indices:
            picture, _ = self.source.sample(index)
            if isinstance(picture, bytes) or picture.dtype != np.uint8:
                raise DataFormat(
                    f"{self.source.location}: f32 tensors are no pictures, and a drive holds pictures; save them as "
                    "uint8, before normalisation"
                )
            yield index, encode(picture)

    def _bytes_of(self, index: int) -> int:
        return len(self._encoded[index]) if self._encoded else self.source.bytes_of(index)

    def _members(self) -> int:
        """Bytes of all samples with their headers; within a class headers are of one length."""
        labels, firsts = np.unique(self.source.labels[self.indices], return_index=True)
        lengths = np.zeros(len(self.source.classes), np.int64)
        lengths[labels] = [len(self._header(self.indices[first], b"")) for first in firsts]
        sizes = np.array([self._bytes_of(index) for index in self.indices], np.int64)
        bodies = -(-sizes // _BLOCK) * _BLOCK
        return int(bodies.sum() + lengths[self.source.labels[self.indices]].sum())

    def _header(self, index: int, data: bytes) -> bytes:
        cls = self.source.classes[self.source.labels[index]]
        suffix = "png" if data.startswith(_PNG) else "jpg"
        return _header(f"{cls}/{index:0{self._digits}}.{suffix}", self._bytes_of(index))

    def pieces(self) -> Iterator[bytes]:
        """The tar, in pieces of any size."""
        checksums = []
        for first in range(0, self.count, _TOGETHER):
            some = self.indices[first : first + _TOGETHER]
            for index, data in zip(some, self._read(some), strict=True):
                checksums.append(zlib.crc32(data))
                yield self._header(index, data)
                yield data
                yield bytes(_padded(len(data)) - len(data))
        table = np.array(checksums, "<u4").tobytes()
        yield _header(CHECKSUMS, len(table))
        yield table.ljust(_padded(len(table)), b"\0")
        yield bytes(END_BYTES)

    def _read(self, indices: list[int]) -> Iterator[bytes]:
        found: list[Payload | ShardMissing | ShardDamaged] = (
            [self._encoded[index] for index in indices] if self._encoded else self.source.samples(indices)
        )
        for payload in found:
            if isinstance(payload, ShardMissing | ShardDamaged):
                raise payload
            assert isinstance(payload, bytes)
            yield payload


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
