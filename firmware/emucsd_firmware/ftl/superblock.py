"""The superblock: what the last checkpoint covers, and counters. Two copies, written in turn, each with a CRC."""

from __future__ import annotations

import os
import zlib
from typing import Annotated, NamedTuple

from emucsd_wire.layout import I64, U32, U64, Codec, Raw

MAGIC = int.from_bytes(b"emucsdFT", "little")
FORMAT = 1
COPY_BYTES = 4096
BLOB_OFFSET = 2 * COPY_BYTES  # after a clean stop: pages of each map chunk, u16
COUNTER_BYTES = 256


class Superblock(NamedTuple):
    """One copy."""

    magic: U64
    format: U32
    clean: U32  # 1: the drive was stopped in order, nothing is to be replayed
    generation: U64
    checkpoint_seq: I64  # the map file covers everything up to here
    trims: I64  # records of the trim journal that it covers: the next lies at this number modulo its size; -1: none
    trim_seq: I64  # of the last record that it covers: those that follow in the ring and are older are of the last lap
    age: I64  # ns that the drive has been in use
    marked_pages: I64
    counters: Annotated[bytes, Raw(COUNTER_BYTES)]  # int64, in the order of statistics.PERSISTENT
    blob_crc: U32
    crc: U32  # over everything before it


SUPERBLOCK = Codec(Superblock, 328)


def write(fd: int, block: Superblock) -> None:
    """Write a copy over the older one. :raises OSError: the disk did not take it"""
    data = SUPERBLOCK.pack(block)[:-4]
    data += zlib.crc32(data).to_bytes(4, "little")
    if os.pwrite(fd, data, (block.generation & 1) * COPY_BYTES) != len(data):
        raise OSError(28, "the superblock was written in part")


def read(fd: int) -> Superblock | None:
    """The newest whole copy; None: neither is."""
    found = []
    for copy in range(2):
        data = os.pread(fd, SUPERBLOCK.size, copy * COPY_BYTES)
        if len(data) == SUPERBLOCK.size and zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little"):
            block = SUPERBLOCK.unpack(data)
            if block.magic == MAGIC:
                found.append(block)
    return max(found, key=lambda block: block.generation, default=None)
