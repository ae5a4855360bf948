"""The watch: content that is known by its fingerprints is noticed when it passes through the tunnel.

A window is 64 consecutive bytes, and its hash a gear hash: ``hash = (hash << 1) + GEAR[byte]`` in 64 bits, which after
64 bytes depends on these alone. The windows whose hash has its 8 highest bits clear, one in 256 wherever the content
itself puts them, are the ones that count. So the same content gives the same ones at any place of a file or of a
packet, and only a window in 256 needs a look into the table. Where there is so much content that its windows would not
fit the table, more bits must be clear.

The hash says where in the table to look, and a digest of the window's bytes what to look for: the two are independent,
so that a chance hit takes 60 equal bits however full the table is. A place of it has a digest, and above it the number
of times that it was seen: what is in the content more than REPEATS times (headers of files, say) tells nothing apart
and is not looked for. Nor are windows that are plain (``is_plain``).

A window lies in one packet, and in one flash page: with an MTU of 32000 that misses one window in 500 of what passes.
"""

from __future__ import annotations

from emucsd_firmware.tunnel.ring import frame_size, place, straight
from emucsd_firmware.tunnel.state import Tunnel, Watch, Way
from emucsd_wire.tunnel import FRAME_HEADER
from emucsd_wire.words import copy, fill, get_i64, get_u8, get_u32, jit, jit_inline, jit_unit, put_i64, put_u8

WINDOW = 64  # bytes: what a 64-bit gear hash depends on
SEED = 0x5354414E4E4953  # of GEAR
SAMPLE_BITS = 8  # highest bits of the hash that are clear in a window that counts
REPEATS = 4
DIGEST_BITS = 60  # of a place; the times that it was seen are above
_PUBLIC = 7  # as a number of times: found where everybody may read
_DIGEST = (1 << DIGEST_BITS) - 1
_MIX = -7046029254386353131  # 2**64 / golden ratio, odd, as a signed number
_START = 0x243F6A8885A308D  # pi, without its first digits
PLAIN = 20  # different bytes that a window must have, and different steps from byte to byte
_STEPS = WINDOW + 256  # where in the working memory they are marked
WORKING = _STEPS + 256
_WORTH_HALVING = 8 * WINDOW
_MOST_LOOKS = 4  # as a power of two: one in so many bytes


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


@jit
def digest_of(watch: Watch, window: int) -> int:
    """60 bits of a window's bytes."""
    copy(watch.window, window, WINDOW)  # where words are aligned
    mixed = _START
    for word in range(WINDOW // 8):
        mixed = (mixed ^ get_i64(watch.window, word)) * _MIX
        mixed ^= mixed >> 29
    return mixed & _DIGEST


@jit
def is_plain(watch: Watch) -> bool:
    """Whether the window that ``digest_of`` was asked for last is of few bytes, or of few steps between them.

    Such are tar headers, zeros, numbers as text and JPEG's standard Huffman tables: different files have the same.
    """
    base = watch.window
    fill(base + WINDOW, 0, WORKING - WINDOW)
    bytes_seen, steps_seen, before = 0, 0, 0
    for index in range(WINDOW):
        byte = get_u8(base, index)
        step = (byte - before) & 255
        bytes_seen += 1 - get_u8(base + WINDOW, byte)
        put_u8(base + WINDOW, byte, 1)
        steps_seen += 1 - get_u8(base + _STEPS, step)
        put_u8(base + _STEPS, step, 1)
        before = byte
    return bytes_seen < PLAIN or steps_seen < PLAIN


@jit
def place_of(watch: Watch, rolled: int, digest: int) -> int:
    """Where a window is in the table, or the free place where it would be. The table is never full."""
    at = ((rolled * _MIX) >> 32) & watch.mask
    while True:
        entry = get_i64(watch.table, at)
        if entry == 0 or entry & _DIGEST == digest:
            return at
        at = (at + 1) & watch.mask


@jit_inline
def _looked_for(entry: int) -> bool:
    return entry != 0 and entry >> DIGEST_BITS <= REPEATS


@jit
def looked_for(watch: Watch, rolled: int, digest: int) -> int:
    """1 for a window that is a hit."""
    return 1 if _looked_for(get_i64(watch.table, place_of(watch, rolled, digest))) else 0


@jit_inline
def _roll(gears: int, rolled: int, address: int, index: int) -> int:
    return (rolled << 1) + get_i64(gears, get_u8(address, index))


@jit
def _warm(gears: int, address: int, count: int) -> int:
    """The hash of the bytes before a first window's last one."""
    rolled = 0
    for index in range(min(WINDOW - 1, count)):
        rolled = _roll(gears, rolled, address, index)
    return rolled


@jit_unit
def hits_in(watch: Watch, address: int, count: int) -> int:
    """How many windows of ``count`` bytes are known. Of bytes made so that every window counts, most are not looked up.

    A hash waits for the one before it. So both halves are rolled over at once, in the time of one.
    """
    gears, clear = watch.gear, watch.clear
    rolled, at, found, left = _warm(gears, address, count), WINDOW - 1, 0, count >> _MOST_LOOKS
    half = (count - at) >> 1 if count >= _WORTH_HALVING else 0
    if half != 0:
        second = address + half
        other = _warm(gears, second, count)
        for index in range(at, at + half):
            rolled = _roll(gears, rolled, address, index)
            other = _roll(gears, other, second, index)
            if rolled & clear == 0 and left > 0:
                found += looked_for(watch, rolled, digest_of(watch, address + index - (WINDOW - 1)))
                left -= 1
            if other & clear == 0 and left > 0:
                found += looked_for(watch, other, digest_of(watch, second + index - (WINDOW - 1)))
                left -= 1
        rolled = other
    for index in range(at + 2 * half, count):
        rolled = _roll(gears, rolled, address, index)
        if rolled & clear == 0 and left > 0:
            found += looked_for(watch, rolled, digest_of(watch, address + index - (WINDOW - 1)))
            left -= 1
    return found


@jit_unit
def look_through(tunnel: Tunnel, way: Way, count: int) -> None:
    """Look for known content in the ``count`` bytes behind the tail, which have been checked."""
    at = way.tail
    end = at + count
    while at < end:
        length = get_u32(place(way, at), 0)
        packet = place(way, at + FRAME_HEADER)
        first = straight(way, at + FRAME_HEADER)
        if first < length:  # it goes on at the ring's beginning
            copy(tunnel.scratch, packet, first)
            copy(tunnel.scratch + first, way.data, length - first)
            packet = tunnel.scratch
        found = hits_in(tunnel.watch, packet, length)
        way.watched_bytes += length
        if found != 0:
            way.hits += found
            way.hit_bytes += length
        at += frame_size(length)


# ---- for the control plane: a table that the relay does not have yet ----


@jit
def windows(watch: Watch, address: int, count: int, target: int) -> int:
    """Write hash and digest of the windows that are worth it, of ``count`` bytes, to int64[count, 2].

    :returns: how many
    """
    gears, clear = watch.gear, watch.clear
    rolled, found = _warm(gears, address, count), 0
    for index in range(WINDOW - 1, count):
        rolled = _roll(gears, rolled, address, index)
        if rolled & clear == 0:
            digest = digest_of(watch, address + index - (WINDOW - 1))
            if is_plain(watch):
                watch.plain += 1
                continue
            put_i64(target, 2 * found, rolled)
            put_i64(target, 2 * found + 1, digest)
            found += 1
    return found


@jit
def learn(watch: Watch, rolled: int, digest: int) -> None:
    """Count a window once more."""
    at = place_of(watch, rolled, digest)
    entry = get_i64(watch.table, at)
    if entry == 0:
        if watch.taken == watch.room:
            watch.left_out += 1
            return
        watch.taken += 1
    seen = entry >> DIGEST_BITS
    if seen > REPEATS:
        return
    if seen == REPEATS:
        watch.common += 1
    put_i64(watch.table, at, digest | (seen + 1) << DIGEST_BITS)


@jit
def disregard(watch: Watch, rolled: int, digest: int) -> None:
    """A window of what everybody may read is not looked for."""
    at = place_of(watch, rolled, digest)
    if _looked_for(get_i64(watch.table, at)):
        put_i64(watch.table, at, digest | _PUBLIC << DIGEST_BITS)
        watch.public += 1
