"""Writing a page: prepare an image, let the caller copy the host's bytes over it, commit.

One page at a time: between ``prepare_write`` and ``commit_write`` nothing but ``mark_bad`` and reads may be called. A
prepared page that is never committed changes nothing. What was written exists at once; *when* the write may complete is
the answer of ``commit_write`` and of the job.
"""

from __future__ import annotations

from emucsd_firmware.ftl.buffer import (
    commit_buffered,
    destage_all,
    discard,
    fill_image,
    out_of_room,
    prepare_buffered,
    program_host,
    wait_for_flights,
)
from emucsd_firmware.ftl.mapping import bad_mask, count_mapped, entry_of, media_of, publish, set_entry
from emucsd_firmware.ftl.place import room, stream_for
from emucsd_firmware.ftl.program import invalidate
from emucsd_firmware.ftl.state import BUFFERED_BIT, SLOT_MASK, Ftl, place_at, slot_at
from emucsd_firmware.nand.state import BLOCK, Nand
from emucsd_wire.nvme import Status
from emucsd_wire.words import jit, jit_inline, jit_unit

__all__ = ["bad_mask", "commit_write", "flush", "mark_bad", "prepare_write", "set_write_cache"]

WHEN_DONE = -1  # commit_write: the write completes with its job
_CAPACITY = int(Status.CAPACITY_EXCEEDED)
_WRITE_FAULT = int(Status.WRITE_FAULT)


@jit_unit
def prepare_write(ftl: Ftl, nand: Nand, now: int, job: int, lpn: int, whole: int) -> int:
    """An image for the page's new content: to be overlaid with the host's bytes, all of them if ``whole``.

    :param job: open job of the command: what it must wait for is submitted under it
    :returns: the image's address, or -status (Capacity Exceeded, Write Fault)
    """
    if ftl.read_only | ftl.disk_full != 0:
        return -_WRITE_FAULT
    if entry_of(ftl, lpn) == 0 and ftl.mapped >= ftl.mapped_limit:
        return -_CAPACITY
    if ftl.write_cache != 0:
        return prepare_buffered(ftl, nand, now, lpn, whole)
    return _prepare_through(ftl, nand, now, job, lpn, whole)


@jit_inline
def _flash_entry(ftl: Ftl, lpn: int) -> int:
    """Map entry of the page's version on flash; 0: there is none."""
    entry = entry_of(ftl, lpn)
    return slot_at(ftl.slots, entry & SLOT_MASK).old if entry & BUFFERED_BIT != 0 else entry


@jit
def _prepare_through(ftl: Ftl, nand: Nand, now: int, job: int, lpn: int, whole: int) -> int:
    stream = stream_for(ftl, _flash_entry(ftl, lpn))
    index = room(ftl, nand, now, job, stream)
    if index < 0:
        return -out_of_room(ftl)
    image = media_of(ftl, place_at(ftl.places, index).next)
    ftl.image_slot = -1
    ftl.image_place = index
    ftl.image_stream = stream
    ftl.image_bad = 0
    if whole == 0:
        fill_image(ftl, nand, now, job, BLOCK, lpn, image)
    return image


@jit_unit
def commit_write(ftl: Ftl, nand: Nand, now: int, job: int, lpn: int, fua: int) -> int:
    """Publish the prepared image as the page's content.

    :param fua: 1: on flash before the write completes
    :returns: the time from which the write may complete; WHEN_DONE: with its job; below that: -status
    """
    ftl.host_pages += 1
    if ftl.image_slot >= 0:
        return commit_buffered(ftl, nand, now, job, lpn, fua)
    ppn = program_host(ftl, nand, now, job, ftl.image_place, lpn, ftl.image_bad, ftl.image_stream)
    if ppn < 0:
        return -out_of_room(ftl)
    entry = entry_of(ftl, lpn)
    if entry & BUFFERED_BIT != 0:
        entry = discard(ftl, entry & SLOT_MASK)
    elif entry == 0:
        count_mapped(ftl, lpn, 1)
    set_entry(ftl, lpn, ppn + 1)
    if entry != 0:
        invalidate(ftl, entry - 1)
    publish(ftl)
    return WHEN_DONE


@jit
def mark_bad(ftl: Ftl, lpn: int, first: int, count: int, on: int) -> None:
    """Between prepare and commit of this page: logical blocks ``first`` to ``first + count - 1`` of it read as
    uncorrectable from then on (``on`` 1, Write Uncorrectable), or no longer (0, they are being written)."""
    bits = -1 if count >= 64 else ((1 << count) - 1) << first
    if on != 0:
        ftl.image_bad |= bits
    else:
        ftl.image_bad &= ~bits


@jit_unit
def flush(ftl: Ftl, nand: Nand, now: int, job: int) -> int:
    """Everything that was committed reaches flash; the job ends when it has. :returns: 0, or a status: it can't"""
    status = destage_all(ftl, nand, now)
    wait_for_flights(ftl, nand, job)
    return status


@jit_unit
def set_write_cache(ftl: Ftl, nand: Nand, now: int, on: int) -> int:
    """Turn the volatile write cache on or off (Set Features 06h); off destages it. Without a buffer it stays off.

    :returns: 0, or a status: the buffer can't be emptied, and stays on
    """
    if on != 0:
        ftl.write_cache = 1 if ftl.buffer_pages > 0 else 0
        return 0
    status = destage_all(ftl, nand, now)
    if status == 0:
        ftl.write_cache = 0
    return status
