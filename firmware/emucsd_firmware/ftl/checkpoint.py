"""Checkpoints: the map's changed chunks go to its file while the data plane goes on.

They are *fuzzy*: a chunk may already hold changes that came after ``checkpoint_seq``. That is safe, because recovery
plays back everything from that number on, and the newest record of a page wins whatever the file says. With
durability "machine" a chunk is written only after the pages that it names are on the disk.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np

from emucsd_firmware.errors import StoreError
from emucsd_firmware.ftl import superblock
from emucsd_firmware.ftl.files import CHUNK_BYTES, FLASH, Files
from emucsd_firmware.ftl.state import (
    BUFFERED_BIT,
    CHECKPOINTED,
    CHUNK,
    PUBLISHED,
    SLOT_MASK,
    TRIMS_FOLDED,
    TRIMS_WRITTEN,
    WANTED,
    Ftl,
    ftl_at,
    slot_at,
    trim_record_at,
)
from emucsd_firmware.ftl.statistics import counters
from emucsd_firmware.ftl.superblock import BLOB_OFFSET, Superblock
from emucsd_firmware.ftl.tables import Tables
from emucsd_wire.words import fence, get_i64, jit, load_i64, load_u32, put_u32, store_i64, store_u8

BATCH = 1024  # chunks that are copied, then written: 16 MiB


@jit
def _flash_entry(ftl: Ftl, lpn: int, entry: int) -> int:
    """What the map would say had a buffered page never been written. The data plane may be changing all of it."""
    while entry & BUFFERED_BIT != 0:
        record = slot_at(ftl.slots, entry & SLOT_MASK)
        old, owner = record.old, record.lpn
        fence()
        again = load_u32(ftl.map, lpn)
        if again == entry:
            return old if owner == lpn else 0
        entry = again
    return entry


@jit
def take_chunks(address: int, numbers: int, count: int, target: int) -> None:
    """Copy chunks as the map file shall have them, marked clean *before* they are read.

    An entry that changes meanwhile marks its chunk again, after the entry: it is in this copy or in the next.
    """
    ftl = ftl_at(address, 0)
    for index in range(count):
        store_u8(ftl.dirty, get_i64(numbers, index), 0)
    fence()
    for index in range(count):
        first = get_i64(numbers, index) * CHUNK
        for offset in range(CHUNK):
            entry = load_u32(ftl.map, first + offset)
            if entry & BUFFERED_BIT != 0:
                entry = _flash_entry(ftl, first + offset, entry)
            put_u32(target, index * CHUNK + offset, entry)


@jit
def trim_seq(address: int, trims: int) -> int:
    """Seq of the last of so many records of the trim journal; 0: there is none."""
    ftl = ftl_at(address, 0)
    return trim_record_at(ftl.journal, (trims - 1) & (ftl.trim_slots - 1)).seq if trims > 0 else 0


@jit
def load_word(words: int, index: int) -> int:
    """One of the words that the data plane writes."""
    return load_i64(words, index)


@jit
def store_word(words: int, index: int, value: int) -> None:
    """One of the words that the data plane reads."""
    store_i64(words, index, value)


class Checkpointer:
    """Writes checkpoints of one store. Call it from one thread at a time; the data plane may run."""

    def __init__(self, files: Files, tables: Tables, *, machine: bool) -> None:
        self._files = files
        self._tables = tables
        self._machine = machine
        self.generation = 0  # of the superblock that was written or read last
        self._staging = np.empty(BATCH * CHUNK, np.uint32)

    def run(self, record: Any, address: int, *, clean: bool = False) -> int:
        """Write what changed, then the superblock. :returns: chunks written

        :param clean: the data plane has ended: say that there is nothing to play back
        :raises StoreError: the disk took it in part; the last checkpoint stays in force
        """
        words = self._tables.words.ctypes.data
        trims = load_word(words, TRIMS_WRITTEN)  # before the number: every trim counted here is covered by it
        covered = (trims, trim_seq(address, trims))
        seq = load_word(words, PUBLISHED)
        numbers = np.flatnonzero(self._tables.dirty).astype(np.int64)
        if self._machine:
            self._files.sync(*FLASH)
        try:
            for start in range(0, len(numbers), BATCH):
                self._write_batch(address, numbers[start : start + BATCH])
            if self._machine:
                self._files.sync("map.ftl")
            self.write_superblock(record, seq, covered, clean=clean)
        except OSError as exc:
            self._tables.dirty[numbers] = 1
            raise StoreError(
                f"{self._files.folder}: the checkpoint could not be written ({exc.strerror}); the drive goes on from "
                "the last one: make room on this file system"
            ) from exc
        store_word(words, TRIMS_FOLDED, trims)
        store_word(words, CHECKPOINTED, seq)
        store_word(words, WANTED, 0)
        return len(numbers)

    def _write_batch(self, address: int, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        take_chunks(address, numbers.ctypes.data, len(numbers), self._staging.ctypes.data)
        if self._machine:
            self._files.sync(*FLASH)
        view = self._staging.view(np.uint8).data
        edges = np.flatnonzero(np.diff(numbers) != 1) + 1  # runs of neighbours go in one write
        for run in np.split(np.arange(len(numbers)), edges):
            begin, end = int(run[0]) * CHUNK_BYTES, (int(run[-1]) + 1) * CHUNK_BYTES
            _write_all(self._files.fd("map.ftl"), view[begin:end], int(numbers[run[0]]) * CHUNK_BYTES)

    def write_superblock(self, record: Any, seq: int, covered: tuple[int, int], *, clean: bool) -> None:
        """Make ``seq`` the point from which recovery plays back.

        :param covered: of the trim journal: how many records, and the seq of the last of them
        :raises OSError: the disk did not take it
        """
        fd = self._files.fd("checkpoint.ftl")
        crc = 0
        if clean:
            blob = self._tables.chunk_pages.tobytes()
            _write_all(fd, memoryview(blob), BLOB_OFFSET)
            crc = zlib.crc32(blob)
        if self._machine:
            self._files.sync("checkpoint.ftl")
        self.generation += 1
        block = Superblock(
            magic=superblock.MAGIC,
            format=superblock.FORMAT,
            clean=int(clean),
            generation=self.generation,
            checkpoint_seq=seq,
            trims=covered[0],
            trim_seq=covered[1],
            age=max(0, int(record["age_base"]) + int(record["last_now"])),
            marked_pages=int(record["marked_pages"]),
            counters=counters(record).ljust(superblock.COUNTER_BYTES, b"\0"),
            blob_crc=crc,
            crc=0,
        )
        superblock.write(fd, block)
        if self._machine:
            self._files.sync("checkpoint.ftl")


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def read_chunk_pages(files: Files, block: Superblock, count: int) -> np.ndarray[Any, np.dtype[np.uint16]] | None:
    """The chunk counts of a clean stop; None where they are not whole."""
    data = os.pread(files.fd("checkpoint.ftl"), 2 * count, BLOB_OFFSET)
    if len(data) != 2 * count or zlib.crc32(data) != block.blob_crc:
        return None
    return np.frombuffer(data, np.uint16)
