"""EV translator: from a row id to the place of its vector in the flash address space.

A flash address is ``lpn << page_shift | byte``. A table's extents say which of its bytes lie where; RM-SSD compares an
index with all of them at once, here a binary search stands for that. A vector that crosses a page or an extent has no
one place: its entry says so, and the flash controller gathers its pieces.
"""

from __future__ import annotations

from emucsd_firmware.lookup.state import Lookup, Request, Table, extent_at
from emucsd_wire.words import get_i64, get_u32, jit, jit_inline, put_i64


@jit_inline
def extent_of(table: Table, byte: int) -> int:
    """Which extent holds this byte of the table."""
    low, count = 0, table.extent_count
    while count > 1:
        half = count >> 1
        if extent_at(table.extents, low + half).first <= byte:
            low += half
        count -= half
    return low


@jit_inline
def extent_end(table: Table, extent: int) -> int:
    """The first byte of the table that is no longer in this extent."""
    return extent_at(table.extents, extent + 1).first


@jit_inline
def row_id(request: Request, position: int) -> int:
    """The id at ``position`` of a request. One of 8 bytes with its top bit set reads as negative."""
    if request.id_bytes == 4:
        return get_u32(request.indices, position)
    return get_i64(request.indices, position)


@jit
def first_out_of_range(table: Table, request: Request) -> int:
    """Position of the first id that names no row, or -1."""
    rows, first, end, indices = table.rows, request.first, request.ids, request.indices
    wrong = 0  # counted, not left at the first: a loop without exits is a loop of vectors
    if request.id_bytes == 4:
        for position in range(first, end):
            wrong += 1 if get_u32(indices, position) >= rows else 0
    else:
        for position in range(first, end):
            row = get_i64(indices, position)
            wrong += 1 if row < 0 or row >= rows else 0
    if wrong == 0:
        return -1
    position = first
    while 0 <= row_id(request, position) < rows:
        position += 1
    return position


@jit
def translate(lookup: Lookup, table: Table, request: Request, count: int) -> None:
    """Fill ``lookup.places`` for ``count`` ids from ``request.cursor`` on."""
    first, width, stride, places = request.cursor, table.row_bytes, table.stride, lookup.places
    if table.extent_count == 1 and table.whole != 0:
        base = extent_at(table.extents, 0).base
        for index in range(count):
            put_i64(places, index, base + row_id(request, first + index) * stride)
        return
    mask = (1 << lookup.page_shift) - 1
    for index in range(count):
        byte = row_id(request, first + index) * stride
        extent = extent_of(table, byte)
        place = extent_at(table.extents, extent).base + byte
        if table.whole == 0 and ((place & mask) + width > mask + 1 or byte + width > extent_end(table, extent)):
            place = -1 - byte
        put_i64(places, index, place)
