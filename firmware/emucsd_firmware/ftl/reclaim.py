"""Emptying blocks: which one, moving what is still valid in it, erasing it. Always a bounded piece at a time.

Each die collects for itself. One free block of a die is never opened but for collecting (``RESERVE``), so a victim that
has any invalid page can always be emptied: the drive can't lock up while the host's pages fit.
"""

from __future__ import annotations

from emucsd_firmware.ftl.barrier import barrier
from emucsd_firmware.ftl.blocks import (
    add_pending,
    free_block,
    plane_place,
    retire,
    set_aside,
    written,
)
from emucsd_firmware.ftl.ecc import lost_mask, read_flash
from emucsd_firmware.ftl.mapping import entry_is, media_of, prefetch_page, publish, set_entry, touch_chunk
from emucsd_firmware.ftl.program import invalidate, program
from emucsd_firmware.ftl.state import (
    BAD,
    FAILED,
    FULL,
    GARBAGE,
    MUST,
    REFRESH,
    RESERVE,
    SLOT_MASK,
    STREAMS,
    WORN,
    Die,
    Ftl,
    die_at,
    header_at,
    oob_at,
    place_at,
    slot_at,
)
from emucsd_firmware.ftl.wear import WEAR_EVERY, coldest_block
from emucsd_firmware.nand.reliability import erase_fails
from emucsd_firmware.nand.state import BACKGROUND, ERASE, Nand
from emucsd_firmware.nand.timing import submit
from emucsd_firmware.policy import gc_score
from emucsd_wire.words import copy, get_i64, get_u8, get_u32, jit, jit_inline, jit_unit, put_u8, put_u32

SHARE = 0  # budget for collect(): what one host page owes
_AHEAD = 8  # pages whose map entries are asked for before they are looked at
_TRIES = 8  # programs that may fail in a row before a page is given up
_WORN_SHARE = 2


@jit
def find_kind(ftl: Ftl, number: int, kind: int) -> int:
    """The die's first block of a kind, or -1."""
    first = number << ftl.block_bits
    for block in range(first, first + ftl.blocks):
        if get_u8(ftl.kinds, block) == kind:
            return block
    return -1


@jit
def _best(ftl: Ftl, die: Die, number: int) -> int:
    """The full block with the policy's highest score that has something to gain, or -1.

    Looks at ``window`` blocks; in a die with more than that, at the next ones each time.
    """
    first = number << ftl.block_bits
    count = min(ftl.blocks, ftl.window)
    start = (die.choices * count) % ftl.blocks if ftl.blocks > count else 0
    chosen, best = -1, 0.0
    for step in range(count):
        offset = start + step
        block = first + (offset if offset < ftl.blocks else offset - ftl.blocks)
        if get_u8(ftl.kinds, block) != FULL:
            continue
        valid = get_u32(ftl.valid, block)
        if valid >= ftl.pages:
            continue
        age = max(ftl.host_programs - get_i64(ftl.stamps, block), 0)
        score = gc_score(valid, ftl.pages, age, get_u32(ftl.erases, block))
        if chosen < 0 or score > best:
            chosen, best = block, score
    return chosen


@jit
def choose(ftl: Ftl, die: Die, number: int) -> int:
    """Choose the die's next victim. :returns: its block, or -1: nothing is worth moving"""
    die.choices += 1
    die.reason = MUST
    if die.pending > 0:
        for kind in (FAILED, REFRESH):
            block = find_kind(ftl, number, kind)
            if block >= 0:
                return block
    die.reason = WORN
    if die.choices % WEAR_EVERY == 0:
        block = coldest_block(ftl, number)
        if block >= 0:
            return block
    die.reason = GARBAGE
    return _best(ftl, die, number)


@jit
def moving_place(ftl: Ftl, number: int, now: int) -> int:
    """The place for a page that is moved out of this die's victim, or -1: there is no room anywhere.

    In the same die while that has any; planes by turns while free blocks are plenty, so that programs can be grouped.
    """
    if ftl.disk_full != 0:
        return -1
    die = die_at(ftl.die_table, number)
    planes = 1 << ftl.plane_bits
    first = number << ftl.plane_bits
    die.turn = (die.turn + 1) & (planes - 1)
    index = plane_place(ftl, first + die.turn, ftl.gc_stream, RESERVE + planes, now)
    if index >= 0:
        return index
    for reserve in (1 << 40, 0):  # first without opening a block, then with
        for plane in range(first, first + planes):
            index = plane_place(ftl, plane, ftl.gc_stream, reserve, now)
            if index >= 0:
                return index
    for plane in range(ftl.planes):
        index = plane_place(ftl, plane, ftl.gc_stream, RESERVE, now)
        if index >= 0:
            return index
    return any_place(ftl)


@jit
def any_place(ftl: Ftl) -> int:
    """The last resort: whatever stream's open block has a page left; -1: none has."""
    for index in range(ftl.planes * STREAMS):
        place = place_at(ftl.places, index)
        if place.next < place.end:
            return index
    return -1


@jit
def _move(ftl: Ftl, nand: Nand, now: int, job: int, number: int, ppn: int, lpn: int, kind: int) -> int:
    """Move one valid page of the victim. :returns: 0, or -1: there is no place for it"""
    record = oob_at(ftl.oob, ppn)
    bad = record.bad
    if read_flash(ftl, nand, now, BACKGROUND, ppn, ftl.page_bytes, job) < 0:
        bad = lost_mask(ftl)  # what the page held is lost: its blocks say so when they are read
    stamp = get_i64(ftl.stamps, ppn >> ftl.page_bits)
    target = -1
    for _ in range(_TRIES):
        index = moving_place(ftl, number, now)
        if index < 0:
            return -1
        copy(media_of(ftl, place_at(ftl.places, index).next), media_of(ftl, ppn), ftl.page_bytes)
        target = program(ftl, nand, now, job, BACKGROUND, index, lpn, bad, stamp)
        if target >= 0:
            break
    if target < 0:
        return -1
    if kind == 1:
        set_entry(ftl, lpn, target + 1)
    else:
        slot_at(ftl.slots, _slot_of(ftl, lpn)).old = target + 1
        touch_chunk(ftl, lpn)
    invalidate(ftl, ppn)
    publish(ftl)
    return 0


@jit_inline
def _slot_of(ftl: Ftl, lpn: int) -> int:
    return get_u32(ftl.map, lpn) & SLOT_MASK


@jit
def _begin(ftl: Ftl, die: Die, number: int) -> int:
    """Choose a victim if the die has none. :returns: 1, or 0: there is none to choose"""
    if die.victim >= 0:
        return 1
    victim = choose(ftl, die, number)
    if victim < 0:
        return 0
    die.victim = victim
    die.cursor = victim << ftl.page_bits
    die.end = die.cursor + written(ftl, victim)
    return 1


@jit_inline
def _share(ftl: Ftl, die: Die) -> int:
    """Pages to move for one host page, so that the victim is empty before the host has used up what it will give."""
    valid = get_u32(ftl.valid, die.victim)
    gain = ftl.pages - valid
    return valid // gain + 1 if gain > 0 else _WORN_SHARE


@jit_unit
def collect(ftl: Ftl, nand: Nand, now: int, job: int, number: int, budget: int) -> int:
    """Move up to ``budget`` pages (SHARE: what one host page owes) out of the die's victim; erase it once it is empty.

    :returns: pages moved, or -1: the die has nothing to collect, or there is no room to move anything to
    """
    die = die_at(ftl.die_table, number)
    if _begin(ftl, die, number) == 0:
        return -1
    if budget == SHARE:
        budget = _share(ftl, die)
    victim = die.victim
    end = die.end
    ppn = die.cursor
    moved = 0
    while ppn < end and get_u32(ftl.valid, victim) != 0:
        if ppn + _AHEAD < end:
            prefetch_page(ftl, oob_at(ftl.oob, ppn + _AHEAD).lpn)
        lpn = oob_at(ftl.oob, ppn).lpn
        kind = entry_is(ftl, lpn, ppn) if 0 <= lpn < ftl.lpn_end else 0
        if kind != 0:
            if moved >= budget:
                die.cursor = ppn
                return moved
            if _move(ftl, nand, now, job, number, ppn, lpn, kind) < 0:
                die.cursor = ppn
                return -1
            moved += 1
            if die.reason == GARBAGE:
                ftl.gc_moves += 1
            elif die.reason == WORN:
                ftl.wear_moves += 1
            else:
                ftl.refresh_moves += 1
        ppn += 1
    _finish(ftl, nand, now, job, die, victim)
    return moved


@jit
def _finish(ftl: Ftl, nand: Nand, now: int, job: int, die: Die, victim: int) -> None:
    """The victim is empty: erase it, or give it up."""
    die.victim = -1
    kind = get_u8(ftl.kinds, victim)
    if kind == FAILED or kind == REFRESH:
        add_pending(ftl, die, -1)
    if get_u32(ftl.valid, victim) != 0:
        ftl.faults += 1
        put_u8(ftl.kinds, victim, BAD)  # its count is wrong: never touch it again, its data may be needed
        return
    erase(ftl, nand, now, job, victim, 1 if kind == FAILED else 0)


@jit
def erase(ftl: Ftl, nand: Nand, now: int, job: int, block: int, failed: int) -> None:
    """Erase an empty block and free it; one that had failed or fails now is bad from now on."""
    erases = get_u32(ftl.erases, block)
    submit(nand, now, ERASE, BACKGROUND, block << ftl.page_bits, 0, job, 0)
    ftl.flash_erases += 1
    if failed == 0 and ftl.unreliable != 0 and erase_fails(nand.reliability, block, erases) != 0:
        ftl.erase_failures += 1
        failed = 1
    put_u32(ftl.erases, block, erases + 1)
    header_at(ftl.headers, block).erases = erases + 1
    if ftl.machine_durable != 0:
        set_aside(ftl, block, failed)
        if ftl.limbo_count >= ftl.limbo_limit:
            barrier(ftl)
    elif failed != 0:
        retire(ftl, block)
    else:
        free_block(ftl, block)


@jit_inline
def relieve(ftl: Ftl, nand: Nand, now: int, job: int, number: int) -> None:
    """Before a page is put into a die that is short of free blocks: pay its share of the collecting."""
    die = die_at(ftl.die_table, number)
    if die.collecting != 0 or die.pending != 0:
        collect(ftl, nand, now, job, number, SHARE)
