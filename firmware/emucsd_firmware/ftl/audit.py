"""Checking the FTL's tables against each other and against the flash: for tests, and for whoever doubts a drive."""

from __future__ import annotations

from typing import Any

import numpy as np

from emucsd_firmware.errors import StoreError
from emucsd_firmware.ftl.blocks import word_kind, word_written
from emucsd_firmware.ftl.program import oob_whole
from emucsd_firmware.ftl.state import (
    ABSENT,
    BUFFERED_BIT,
    CHUNK,
    CHUNK_BITS,
    CLEAN,
    DIRTY,
    FAILED,
    FREE,
    FULL,
    LIMBO,
    OPEN,
    REFRESH,
    SLOT_MASK,
    Ftl,
    ftl_at,
    header_at,
    oob_at,
    slot_at,
)
from emucsd_firmware.ftl.tables import Tables
from emucsd_wire.words import get_u8, get_u16, get_u32, jit, put_u32

FAULTS = (
    "",
    "entry {} names a slot of another page",
    "entry {} names a flash page of another logical page, or a torn one",
    "entry {} names a page beyond its block's write pointer",
    "entry {} names a block that holds no data",
    "block {} has another number of valid pages than its count says",
    "chunk {} has another number of mapped pages than its count says",
    "{} pages are mapped, not as many as counted",
    "block {} is of another kind on flash than in memory",
)


@jit
def _flash_fault(ftl: Ftl, lpn: int, ppn: int) -> int:
    block = ppn >> ftl.page_bits
    if block >= ftl.block_end:
        return 4
    kind = get_u8(ftl.kinds, block)
    if kind != OPEN and kind != FULL and kind != FAILED and kind != REFRESH:
        return 4
    if ppn & (ftl.pages - 1) >= word_written(header_at(ftl.headers, block).word):
        return 3
    return 0 if oob_at(ftl.oob, ppn).lpn == lpn and oob_whole(ftl, ppn) != 0 else 2


@jit
def _check_chunk(ftl: Ftl, chunk: int, counts: int) -> tuple[int, int, int]:
    """:returns: mapped pages, then fault and where"""
    mapped = 0
    for lpn in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        entry = get_u32(ftl.map, lpn)
        if entry == 0:
            continue
        mapped += 1
        if entry & BUFFERED_BIT != 0:
            slot = slot_at(ftl.slots, entry & SLOT_MASK)
            if slot.lpn != lpn or (slot.state != DIRTY and slot.state != CLEAN):
                return mapped, 1, lpn
            entry = slot.old
        if entry != 0:
            fault = _flash_fault(ftl, lpn, entry - 1)
            if fault != 0:
                return mapped, fault, lpn
            block = (entry - 1) >> ftl.page_bits
            put_u32(counts, block, get_u32(counts, block) + 1)
    return mapped, 0, 0


@jit
def _check_blocks(ftl: Ftl, counts: int) -> tuple[int, int]:
    for block in range(ftl.block_end):
        kind = get_u8(ftl.kinds, block)
        if kind == ABSENT:
            continue
        on_flash = word_kind(header_at(ftl.headers, block).word)
        same = on_flash == kind or (kind == REFRESH and on_flash == FULL)
        if not same and not (kind == LIMBO and (on_flash == FULL or on_flash == FAILED)):
            return 8, block
        if kind != FREE and kind != LIMBO and get_u32(counts, block) != get_u32(ftl.valid, block):
            return 5, block
    return 0, 0


@jit
def check(address: int, counts: int) -> tuple[int, int]:
    """:param counts: address of a zeroed u32 for each block. :returns: index into FAULTS, and where"""
    ftl = ftl_at(address, 0)
    total = 0
    for chunk in range(ftl.lpn_end >> CHUNK_BITS):
        if get_u16(ftl.chunk_pages, chunk) == 0:
            continue
        mapped, fault, where = _check_chunk(ftl, chunk, counts)
        if fault != 0:
            return fault, where
        if mapped != get_u16(ftl.chunk_pages, chunk):
            return 6, chunk
        total += mapped
    if total != ftl.mapped:
        return 7, total
    return _check_blocks(ftl, counts)


def audit(address: int, record: Any, tables: Tables) -> None:
    """:raises StoreError: something does not hold"""
    counts = np.zeros(len(tables.valid), np.uint32)
    fault, where = check(address, counts.ctypes.data)
    if fault:
        raise StoreError(f"audit: {FAULTS[fault].format(where)}: the drive's firmware has a fault; keep the folder")
    free = int(np.count_nonzero(tables.kinds == FREE))
    if free != int(tables.die_table["free"].sum()) or free != int(tables.heap_counts.sum()):
        raise StoreError(f"audit: {free} blocks are free, the dies count {int(tables.die_table['free'].sum())}")
    if int(record["faults"]):
        raise StoreError(f"audit: {int(record['faults'])} invariants did not hold while the drive ran")
