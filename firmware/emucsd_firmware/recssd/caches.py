"""RecSSD's two caches in the drive: pages of each die, and single rows.

Both keep only what says whether bytes would be there: bytes themselves always come from a page's newest version. An
entry names the flash page that it was read from, so that a page written anew, or moved, is a miss.

The row cache is direct-mapped, with places of 128 bytes: key = row << 5 | table, place = its low bits. A row of more
than 128 bytes takes as many places in a row as it needs, and is a hit when it has all of them (the published firmware
let such a row overrun its place).
"""

from __future__ import annotations

from emucsd_firmware.recssd.state import RecSsd, cache_at
from emucsd_wire.words import get_i64, jit, put_i64

ENTRY_BYTES = 128


@jit
def has_page(recssd: RecSsd, die: int, ppn: int) -> bool:
    """Whether the die's page buffer holds this page, which is then its most recent."""
    pages, count = recssd.buffer + 8 * die * max(recssd.buffer_pages, 1), recssd.buffer_pages
    place = 0
    while place < count and get_i64(pages, place) != ppn + 1:
        place += 1
    if place == count:
        return False
    _to_front(pages, place, ppn)
    return True


@jit
def add_page(recssd: RecSsd, die: int, ppn: int) -> None:
    """A page has arrived: the one used longest ago goes."""
    if recssd.buffer_pages > 0 and not has_page(recssd, die, ppn):
        _to_front(recssd.buffer + 8 * die * recssd.buffer_pages, recssd.buffer_pages - 1, ppn)


@jit
def _to_front(pages: int, place: int, ppn: int) -> None:
    while place > 0:
        put_i64(pages, place, get_i64(pages, place - 1))
        place -= 1
    put_i64(pages, 0, ppn + 1)


@jit
def has_row(recssd: RecSsd, table: int, row: int, row_bytes: int, ppn: int) -> bool:
    """Whether the row cache holds this row as it lies on flash page ``ppn``."""
    mask = recssd.cache_entries - 1
    if mask < 0 or ppn < 0:
        return False
    key = row << 5 | table
    for piece in range((row_bytes + ENTRY_BYTES - 1) // ENTRY_BYTES):
        entry = cache_at(recssd.cache, (key + piece) & mask)
        if entry.key != key + 1 or entry.ppn != ppn + 1:
            return False
    return True


@jit
def add_row(recssd: RecSsd, table: int, row: int, row_bytes: int, ppn: int) -> None:
    """A row was read: it takes its places, whoever had them."""
    mask = recssd.cache_entries - 1
    if mask < 0 or ppn < 0:
        return
    key = row << 5 | table
    for piece in range((row_bytes + ENTRY_BYTES - 1) // ENTRY_BYTES):
        entry = cache_at(recssd.cache, (key + piece) & mask)
        entry.key = key + 1
        entry.ppn = ppn + 1
