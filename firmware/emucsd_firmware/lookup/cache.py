"""The hot cache: rows whose bytes the drive's DRAM is taken to hold, so that looking them up costs no flash read.

Set-associative over (table, row), LRU within a set; ``policy.admit`` decides what enters. Only tags are kept: a row's
bytes are at hand anyway. What makes a tag right is the flash page that they were read from: a row that a write, an
update, a swap or garbage collection has moved is no hit, and is read anew. A row that another request which has not
ended has asked for is still on its way and no hit either; the request's own rows are: it ends with them anyway.
"""

from __future__ import annotations

from emucsd_firmware.lookup.state import READING, Hot, Lookup, Place, Request, Table, place_at, request_at
from emucsd_firmware.policy import admit
from emucsd_wire.vendor import MAX_TABLES
from emucsd_wire.words import get_u32, jit, jit_inline, prefetch, put_u32

_MOST_TOUCHES = 255
_MULTIPLIER = 0x9E3779B97F4A7C1  # odd, and small enough for a product that wraps to stay a signed number
_LOW = 0xFFFF_FFFF


@jit_inline
def _hash(key: int) -> int:
    """32 bits of a key, all of which depend on all of its low 32 and most of its others."""
    mixed = key * _MULTIPLIER
    mixed ^= mixed >> 29
    mixed *= _MULTIPLIER
    return (mixed >> 31) & _LOW


@jit_inline
def _set_of(hot: Hot, hashed: int) -> int:
    """Address of the places where a key may be."""
    return hot.places + ((hashed * hot.sets) >> 32) * hot.ways * _PLACE


_PLACE = Place.dtype.itemsize


@jit_inline
def prefetch_set(hot: Hot, slot: int, row: int) -> None:
    """Ask for the places of a row, some hundred ns before ``seek`` looks at them."""
    prefetch(_set_of(hot, _hash(row * MAX_TABLES + slot + 1)))


@jit
def _renew(places: int, ways: int, way: int) -> None:
    """This place was used last; those used since its own last use are one older."""
    age = place_at(places, way).age
    for other in range(ways):
        place = place_at(places, other)
        if place.age < age:
            place.age += 1
    place_at(places, way).age = 0


@jit
def _touches(hot: Hot, hashed: int) -> int:
    """Count a row that is not in the cache. :returns: how often it was, lately"""
    cell = hashed & hot.seen_mask
    mark = (hashed * _MULTIPLIER >> 20) & 0xFFFFFF
    word = get_u32(hot.seen, cell)
    count = min((word & 0xFF) + 1, _MOST_TOUCHES) if word >> 8 == mark else 1
    put_u32(hot.seen, cell, (mark << 8) | count)
    return count


@jit
def seek(lookup: Lookup, request: Request, table: Table, row: int, ppn: int, forced: int) -> int:
    """Look for a row that lies on flash page ``ppn``; one that is missing may enter, as of this request.

    :param forced: 1: enters without asking the policy
    :returns: 1: a hit; 0: it is to be read from flash
    """
    hot = lookup.hot
    key = row * MAX_TABLES + request.table + 1
    hashed = _hash(key)
    places, ways = _set_of(hot, hashed), hot.ways
    way, oldest = -1, 0
    for index in range(ways):
        place = place_at(places, index)
        if place.key == key:
            way = index
        if place.age == ways - 1:
            oldest = index
    if way >= 0:
        place = place_at(places, way)
        _renew(places, ways, way)
        if place.ppn == ppn and not _on_its_way(lookup, place, request):
            table.hits += 1
            hot.hits += 1
            request.hits += 1
            return 1
        table.misses += 1
        hot.misses += 1
        if place.ppn != ppn:
            _enter(place, key, ppn, request)
        return 0
    table.misses += 1
    hot.misses += 1
    last = place_at(places, oldest)
    empty = 1 if last.key == 0 else 0
    if forced != 0 or admit(_touches(hot, hashed), empty, ways):
        table.admitted += 1
        hot.admitted += 1
        if empty == 0:
            table.evicted += 1
            hot.evicted += 1
        _enter(last, key, ppn, request)
        _renew(places, ways, oldest)
    return 0


@jit_inline
def _on_its_way(lookup: Lookup, place: Place, request: Request) -> bool:
    """Whether another request still waits for it. One that itself has asked for a row ends no sooner than it comes."""
    filler = request_at(lookup.requests, place.filler)
    other = place.filler != request.number
    return other and filler.state == READING and (filler.serial & 0x7FFF_FFFF) == place.serial


@jit_inline
def _enter(place: Place, key: int, ppn: int, request: Request) -> None:
    place.key = key
    place.ppn = ppn
    place.serial = request.serial & 0x7FFF_FFFF
    place.filler = request.number
