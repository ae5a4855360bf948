"""The watch: content that is known by its fingerprints is noticed when it passes through the tunnel.

A window is 64 consecutive bytes, and its hash a gear hash: ``hash = (hash << 1) + GEAR[byte]`` in 64 bits, which after
64 bytes depends on these alone. The windows whose hash has its 8 highest bits clear, one in 256 wherever the content
itself puts them, are the ones that count: their hash is their fingerprint. So the same content gives the same
fingerprints at any place of a file or of a packet, and only a window in 256 needs a look into the table. Where there is
so much content that its fingerprints would not fit the table, more bits must be clear.

The table has a fingerprint a place, the number of times that it was seen in the highest 8 bits: what is in the content
more than REPEATS times (zeros, headers of files, padding) tells nothing apart and is not looked for.

A window lies in one packet, and in one flash page: with an MTU of 32000 that misses one window in 500 of what passes.
"""

from __future__ import annotations

from emucsd_firmware.tunnel.ring import frame_size, place, straight
from emucsd_firmware.tunnel.state import Tunnel, Watch, Way
from emucsd_wire.tunnel import FRAME_HEADER
from emucsd_wire.words import get_i64, get_u8, get_u32, jit, jit_inline, jit_unit, put_i64

WINDOW = 64  # bytes: what a 64-bit gear hash depends on
SEED = 0x5354414E4E4953  # of GEAR
SAMPLE_BITS = 8  # highest bits that are clear in a fingerprint
REPEATS = 4
_SEEN = 64 - SAMPLE_BITS  # where a place's count begins
_PUBLIC = 127  # as a count: found where everybody may read
_HASH = (1 << _SEEN) - 1
_WORTH_HALVING = 8 * WINDOW
_MIX = -7046029254386353131  # 2**64 / golden ratio, odd, as a signed number


def gear() -> list[int]:
    """GEAR: 256 signed 64-bit numbers, by splitmix64 from SEED."""
    numbers, state = [], SEED
    for _ in range(256):
        state = (state + 0x9E3779B97F4A7C15) % (1 << 64)
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % (1 << 64)
        mixed ^= mixed >> 31
        numbers.append(mixed - (1 << 64) if mixed >> 63 else mixed)
    return numbers


@jit_inline
def _first_place(watch: Watch, mark: int) -> int:
    return ((mark * _MIX) >> 32) & watch.mask


@jit
def place_of(watch: Watch, mark: int) -> int:
    """Where a fingerprint is in the table, or the free place where it would be. The table is never full."""
    at = _first_place(watch, mark)
    while True:
        entry = get_i64(watch.table, at)
        if entry == 0 or entry & _HASH == mark:
            return at
        at = (at + 1) & watch.mask


@jit_inline
def _looked_for(entry: int) -> bool:
    return entry != 0 and entry >> _SEEN <= REPEATS


@jit_inline
def _roll(gears: int, rolled: int, address: int, index: int) -> int:
    return (rolled << 1) + get_i64(gears, get_u8(address, index))


@jit
def _look_up(watch: Watch, mark: int) -> None:
    if _looked_for(get_i64(watch.table, place_of(watch, mark))):
        watch.found += 1


@jit
def _roll_over(gears: int, rolled: int, address: int, start: int, end: int) -> int:
    """Roll on over bytes [start, end) without a look at what comes out."""
    for index in range(start, end):
        rolled = _roll(gears, rolled, address, index)
    return rolled


@jit
def _search(watch: Watch, address: int, count: int, rolled: int, warm: int) -> int:
    """Roll on from hash ``rolled`` over ``count`` bytes; windows end behind the first ``warm``. :returns: the hash

    A hash waits for the one before it. So both halves are rolled over at once, in the time of one.
    """
    gears, clear = watch.gear, watch.clear
    rolled = _roll_over(gears, rolled, address, 0, min(warm, count))
    half = (count - warm) >> 1 if count - warm >= _WORTH_HALVING else 0
    if half != 0:
        second = address + half
        other = _roll_over(gears, 0, second, warm - WINDOW + 1, warm)
        for index in range(warm, warm + half):
            rolled = _roll(gears, rolled, address, index)
            other = _roll(gears, other, second, index)
            if rolled & clear == 0:
                _look_up(watch, rolled)
            if other & clear == 0:
                _look_up(watch, other)
        rolled = other
    for index in range(warm + 2 * half, count):
        rolled = _roll(gears, rolled, address, index)
        if rolled & clear == 0:
            _look_up(watch, rolled)
    return rolled


@jit_unit
def look_through(tunnel: Tunnel, way: Way, count: int) -> None:
    """Look for known content in the ``count`` bytes behind the tail, which have been checked."""
    watch = tunnel.watch
    at = way.tail
    end = at + count
    while at < end:
        length = get_u32(place(way, at), 0)
        begin = at + FRAME_HEADER
        first = min(length, straight(way, begin))
        watch.found = 0
        rolled = _search(watch, place(way, begin), first, 0, WINDOW - 1)
        if first < length:
            _search(watch, way.data, length - first, rolled, max(0, WINDOW - 1 - first))
        way.watched_bytes += length
        if watch.found != 0:
            way.hits += watch.found
            way.hit_bytes += length
        at += frame_size(length)


# ---- for the control plane: a table that the relay does not have yet ----


@jit
def fingerprints(watch: Watch, address: int, count: int, target: int) -> int:
    """Write the fingerprints of ``count`` bytes to int64[count] at ``target``. :returns: how many"""
    gears, clear = watch.gear, watch.clear
    rolled, marks = _roll_over(gears, 0, address, 0, min(WINDOW - 1, count)), 0
    for index in range(WINDOW - 1, count):
        rolled = _roll(gears, rolled, address, index)
        if rolled & clear == 0:
            put_i64(target, marks, rolled)
            marks += 1
    return marks


@jit
def learn(watch: Watch, mark: int) -> None:
    """Count a fingerprint once more."""
    at = place_of(watch, mark)
    entry = get_i64(watch.table, at)
    if entry == 0:
        if watch.taken == watch.room:
            watch.left_out += 1
            return
        watch.taken += 1
    seen = entry >> _SEEN
    if seen > REPEATS:
        return
    if seen == REPEATS:
        watch.common += 1
    put_i64(watch.table, at, mark | (seen + 1) << _SEEN)


@jit
def disregard(watch: Watch, mark: int) -> None:
    """A fingerprint of what everybody may read is not looked for."""
    at = place_of(watch, mark)
    if _looked_for(get_i64(watch.table, at)):
        put_i64(watch.table, at, mark | _PUBLIC << _SEEN)
        watch.public += 1


@jit
def looked_for(watch: Watch, mark: int) -> int:
    """1 for a fingerprint that would be a hit."""
    return 1 if _looked_for(get_i64(watch.table, place_of(watch, mark))) else 0
