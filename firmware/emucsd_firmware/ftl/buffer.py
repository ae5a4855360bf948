"""The DRAM write buffer: pages that the host was told are written and that a power failure loses unless it flushes.

A slot is DIRTY from its commit until its page is programmed, then CLEAN while the program runs (reads still find it
here), then SPARE. The map points to the slot all that time; ``Slot.old`` is the entry of the version on flash, which
stays valid until the slot's own takes its place, so that a crash loses nothing that was flushed.

The bytes go to flash when destaging begins; *time* is another matter: a page occupies the buffer until its program has
ended in the NAND model. While more pages than the buffer holds do so, their commands wait (first come, first served).
Programs are known by *flights*: numbered jobs, in a ring.
"""

from __future__ import annotations

from emucsd_firmware.ftl.ecc import lost_mask, read_flash
from emucsd_firmware.ftl.mapping import (
    count_mapped,
    entry_of,
    image_of,
    media_of,
    publish,
    set_entry,
    touch_chunk,
)
from emucsd_firmware.ftl.place import room, stream_for
from emucsd_firmware.ftl.program import invalidate, program
from emucsd_firmware.ftl.state import (
    BUFFERED_BIT,
    CLEAN,
    DIRTY,
    HELD,
    NEVER,
    SLOT_MASK,
    SPARE,
    Ftl,
    oob_at,
    place_at,
    slot_at,
)
from emucsd_firmware.nand.jobs import close_job, end_job, open_job
from emucsd_firmware.nand.state import BACKGROUND, BLOCK, Nand, job_at
from emucsd_wire.nvme import Status
from emucsd_wire.words import copy, fill, get_i64, jit, jit_inline, jit_unit, put_i64

_CAPACITY = int(Status.CAPACITY_EXCEEDED)
_WRITE_FAULT = int(Status.WRITE_FAULT)
_TRIES = 8  # programs that may fail in a row before the write does


# ---- lists of slots: circular, each with a head past the last slot ----


@jit_inline
def _spares(ftl: Ftl) -> int:
    return ftl.buffer_pages


@jit_inline
def _dirties(ftl: Ftl) -> int:
    return ftl.buffer_pages + 1


@jit_inline
def _cleans(ftl: Ftl) -> int:
    return ftl.buffer_pages + 2


LIST_HEADS = 3


@jit_inline
def _unlink(ftl: Ftl, slot: int) -> None:
    record = slot_at(ftl.slots, slot)
    slot_at(ftl.slots, record.previous).next = record.next
    slot_at(ftl.slots, record.next).previous = record.previous


@jit_inline
def _append(ftl: Ftl, head: int, slot: int) -> None:
    """Put a slot at the end of a list."""
    record = slot_at(ftl.slots, slot)
    last = slot_at(ftl.slots, head).previous
    record.previous = last
    record.next = head
    slot_at(ftl.slots, last).next = slot
    slot_at(ftl.slots, head).previous = slot


@jit_inline
def _first(ftl: Ftl, head: int) -> int:
    """The list's oldest slot, -1 if it is empty."""
    slot = slot_at(ftl.slots, head).next
    return slot if slot != head else -1


@jit
def empty_buffer(ftl: Ftl) -> None:
    """Make every slot spare: after power came back there is nothing in it."""
    for head in range(ftl.buffer_pages, ftl.buffer_pages + LIST_HEADS):
        slot_at(ftl.slots, head).previous = head
        slot_at(ftl.slots, head).next = head
    for slot in range(ftl.buffer_pages):
        slot_at(ftl.slots, slot).state = SPARE
        _append(ftl, _spares(ftl), slot)


# ---- jobs that wait ----


@jit_inline
def _hold(nand: Nand, job: int) -> None:
    """The job can't end until ``_let_go``."""
    job_at(nand.jobs, job).pending += 1


@jit
def _let_go(nand: Nand, job: int, when: int) -> None:
    """A held job may end, not before ``when``; if nothing else is pending it goes to the done list."""
    record = job_at(nand.jobs, job)
    record.finish = max(record.finish, when)
    record.pending -= 1
    if record.pending == 0:
        end_job(nand, job)


@jit
def _wait_for_room(ftl: Ftl, nand: Nand, job: int) -> None:
    """One page of a job waits until the buffer holds fewer."""
    ftl.waiting += 1
    ftl.buffer_waits += 1
    if ftl.wait_tail == job + 1:
        put_i64(ftl.waits, 2 * job, get_i64(ftl.waits, 2 * job) + 1)
        return
    _hold(nand, job)
    put_i64(ftl.waits, 2 * job, 1)
    put_i64(ftl.waits, 2 * job + 1, 0)
    if ftl.wait_head == 0:
        ftl.wait_head = job + 1
    else:
        put_i64(ftl.waits, 2 * (ftl.wait_tail - 1) + 1, job + 1)
    ftl.wait_tail = job + 1


@jit
def admit(ftl: Ftl, nand: Nand, when: int) -> None:
    """Let waiting pages in, as far as the buffer has room at this time."""
    while ftl.waiting > 0 and ftl.occupied - ftl.waiting < ftl.buffer_pages:
        job = ftl.wait_head - 1
        ftl.waiting -= 1
        ftl.dram_free = max(when, ftl.dram_free) + ftl.buffer_write_ns
        left = get_i64(ftl.waits, 2 * job) - 1
        put_i64(ftl.waits, 2 * job, left)
        if left > 0:
            continue
        ftl.wait_head = get_i64(ftl.waits, 2 * job + 1)
        if ftl.wait_head == 0:
            ftl.wait_tail = 0
        _let_go(nand, job, ftl.dram_free)


@jit
def wait_for_flights(ftl: Ftl, nand: Nand, job: int) -> None:
    """The job (of a Flush) ends no sooner than every program that is under way now."""
    if ftl.flight_done == ftl.flight_next:
        return
    _hold(nand, job)
    put_i64(ftl.waits, 2 * job, ftl.flight_next)
    put_i64(ftl.waits, 2 * job + 1, 0)
    if ftl.flush_head == 0:
        ftl.flush_head = job + 1
    else:
        put_i64(ftl.waits, 2 * (ftl.flush_tail - 1) + 1, job + 1)
    ftl.flush_tail = job + 1


# ---- flights ----


@jit_inline
def flight_job(ftl: Ftl, number: int) -> int:
    """The NAND job of a flight."""
    return ftl.first_job + ftl.dies + (number & ftl.flight_mask)


@jit
def landed(ftl: Ftl, nand: Nand, index: int, when: int) -> None:
    """A program from the buffer ended: its slot is spare, and what waited for it goes on."""
    cell = get_i64(ftl.flights, index)
    put_i64(ftl.flights, index, -1)
    ftl.occupied -= 1
    if cell > 0:
        _release_clean(ftl, cell - 1)
    while ftl.flight_done < ftl.flight_next and get_i64(ftl.flights, ftl.flight_done & ftl.flight_mask) == -1:
        ftl.flight_done += 1
    admit(ftl, nand, when)
    while ftl.flush_head != 0 and get_i64(ftl.waits, 2 * (ftl.flush_head - 1)) <= ftl.flight_done:
        job = ftl.flush_head - 1
        ftl.flush_head = get_i64(ftl.waits, 2 * job + 1)
        _let_go(nand, job, when)


@jit
def _release_clean(ftl: Ftl, slot: int) -> None:
    """Take a CLEAN slot out of the map: its page is read from flash from now on."""
    record = slot_at(ftl.slots, slot)
    set_entry(ftl, record.lpn, record.old)
    _unlink(ftl, slot)
    _spare(ftl, slot)


@jit
def _detach(ftl: Ftl, slot: int) -> None:
    """As ``_release_clean``, while its program still runs: the flight goes on without it."""
    put_i64(ftl.flights, slot_at(ftl.slots, slot).flight & ftl.flight_mask, 0)
    _release_clean(ftl, slot)


@jit
def _spare(ftl: Ftl, slot: int) -> None:
    record = slot_at(ftl.slots, slot)
    record.state = SPARE
    if record.bad != 0:
        ftl.marked_pages -= 1
        record.bad = 0
    _append(ftl, _spares(ftl), slot)


# ---- writing ----


@jit_unit
def program_host(ftl: Ftl, nand: Nand, now: int, job: int, index: int, lpn: int, bad: int, stream: int) -> int:
    """Program the image that lies at a place; where a program fails, again in another block. :returns: ppn or -1"""
    image = media_of(ftl, place_at(ftl.places, index).next)
    for _ in range(_TRIES):
        ppn = program(ftl, nand, now, job, BLOCK, index, lpn, bad, ftl.host_programs)
        if ppn >= 0:
            ftl.host_programs += 1
            return ppn
        index = room(ftl, nand, now, job, stream)
        if index < 0:
            return -1
        copy(media_of(ftl, place_at(ftl.places, index).next), image, ftl.page_bytes)
    return -1


@jit_unit
def destage(ftl: Ftl, nand: Nand, now: int, slot: int, job: int) -> int:
    """Program a DIRTY slot's page, under a flight of its own (``job`` -1) or a command's job (FUA).

    :returns: 0, or a status: there is no room, the slot stays dirty
    """
    record = slot_at(ftl.slots, slot)
    number = -1
    if job < 0 and ftl.flight_next - ftl.flight_done <= ftl.flight_mask:
        number = ftl.flight_next
        job = flight_job(ftl, number)
        open_job(nand, job)
    stream = stream_for(ftl, record.old)
    index = room(ftl, nand, now, job, stream)
    ppn = -1
    if index >= 0:
        copy(media_of(ftl, place_at(ftl.places, index).next), image_of(ftl, slot), ftl.page_bytes)
        ppn = program_host(ftl, nand, now, job, index, record.lpn, record.bad, stream)
    finish = now
    if number >= 0:
        finish = close_job(nand, job, now)
        if finish < 0 or ppn >= 0:
            ftl.flight_next = number + 1
    if ppn < 0:
        if number >= 0 and finish < 0:
            put_i64(ftl.flights, number & ftl.flight_mask, 0)  # its collecting goes on; the count is set right below
            ftl.occupied += 1
        return out_of_room(ftl)
    if record.old != 0:
        invalidate(ftl, record.old - 1)
    record.old = ppn + 1
    touch_chunk(ftl, record.lpn)
    publish(ftl)
    ftl.dirty_count -= 1
    _unlink(ftl, slot)
    if number >= 0 and finish < 0:
        record.state = CLEAN
        record.flight = number
        put_i64(ftl.flights, number & ftl.flight_mask, slot + 1)
        _append(ftl, _cleans(ftl), slot)
        return 0
    if number >= 0:
        put_i64(ftl.flights, number & ftl.flight_mask, -1)
        if ftl.flight_done == number:
            ftl.flight_done = number + 1
    ftl.occupied -= 1
    set_entry(ftl, record.lpn, record.old)
    _spare(ftl, slot)
    return 0


@jit
def out_of_room(ftl: Ftl) -> int:
    """No place for a page: which status says so."""
    broken = ftl.read_only | ftl.disk_full != 0 or ftl.spare_blocks <= 0
    return _WRITE_FAULT if broken else _CAPACITY


@jit_unit
def _take(ftl: Ftl, nand: Nand, now: int) -> int:
    """A slot for a new page: spare, or one whose page is on flash already. :returns: slot, or -status"""
    if ftl.held_slot >= 0:
        return ftl.held_slot  # prepared before and never committed
    if _first(ftl, _spares(ftl)) < 0:
        if _first(ftl, _cleans(ftl)) < 0:
            status = destage(ftl, nand, now, _first(ftl, _dirties(ftl)), -1)
            if status != 0:
                return -status
        if _first(ftl, _spares(ftl)) < 0:
            _detach(ftl, _first(ftl, _cleans(ftl)))
    slot = _first(ftl, _spares(ftl))
    _unlink(ftl, slot)
    record = slot_at(ftl.slots, slot)
    record.state = HELD
    ftl.held_slot = slot
    return slot


@jit
def prepare_buffered(ftl: Ftl, nand: Nand, now: int, lpn: int, whole: int) -> int:
    """A page image in the buffer, with the old content unless ``whole``. :returns: its address, or -status"""
    entry = entry_of(ftl, lpn)
    if entry & BUFFERED_BIT != 0 and slot_at(ftl.slots, entry & SLOT_MASK).state == DIRTY:
        slot = entry & SLOT_MASK
        ftl.image_slot = slot
        ftl.image_bad = 0 if whole != 0 else slot_at(ftl.slots, slot).bad
        return image_of(ftl, slot)
    slot = _take(ftl, nand, now)
    if slot < 0:
        return slot
    image = image_of(ftl, slot)
    ftl.image_slot = slot
    ftl.image_bad = 0
    if whole == 0:
        fill_image(ftl, nand, now, -1, BACKGROUND, lpn, image)
    return image


@jit_unit
def fill_image(ftl: Ftl, nand: Nand, now: int, job: int, traffic: int, lpn: int, image: int) -> None:
    """Begin a partial write with the page's present content; reading it from flash is charged."""
    entry = entry_of(ftl, lpn)
    ftl.image_bad = 0
    if entry == 0:
        fill(image, 0, ftl.page_bytes)
        return
    ftl.host_partial += 1
    if entry & BUFFERED_BIT != 0:
        ftl.image_bad = slot_at(ftl.slots, entry & SLOT_MASK).bad
        copy(image, image_of(ftl, entry & SLOT_MASK), ftl.page_bytes)
        return
    ppn = entry - 1
    ftl.image_bad = oob_at(ftl.oob, ppn).bad
    if read_flash(ftl, nand, now, traffic, ppn, ftl.page_bytes, job) < 0:
        ftl.image_bad = lost_mask(ftl)
    copy(image, media_of(ftl, ppn), ftl.page_bytes)


@jit
def commit_buffered(ftl: Ftl, nand: Nand, now: int, job: int, lpn: int, fua: int) -> int:
    """Publish the prepared image. :returns: when the write may complete, -1: with its job, or -status"""
    slot = ftl.image_slot
    ftl.image_slot = -1
    record = slot_at(ftl.slots, slot)
    if ftl.image_bad != 0 and record.bad == 0:
        ftl.marked_pages += 1
    elif ftl.image_bad == 0 and record.bad != 0:
        ftl.marked_pages -= 1
    record.bad = ftl.image_bad
    late = 0
    if record.state == DIRTY:
        ftl.buffer_merges += 1
    else:
        _enter(ftl, now, slot, lpn)
        late = 1 if ftl.occupied > ftl.buffer_pages else 0
    if fua != 0:
        status = destage(ftl, nand, now, slot, job)
        return -1 if status == 0 else -status
    if late != 0:
        _wait_for_room(ftl, nand, job)
    else:
        ftl.dram_free = max(now, ftl.dram_free) + ftl.buffer_write_ns
    early = ftl.dram_free
    while ftl.dirty_count > ftl.dirty_high:
        if destage(ftl, nand, now, _first(ftl, _dirties(ftl)), -1) != 0:
            break
    admit(ftl, nand, now)
    return -1 if late != 0 else early


@jit
def _enter(ftl: Ftl, now: int, slot: int, lpn: int) -> None:
    """A held slot becomes this page's newest version."""
    entry = entry_of(ftl, lpn)
    if entry & BUFFERED_BIT != 0:
        _detach(ftl, entry & SLOT_MASK)
        entry = entry_of(ftl, lpn)
    elif entry == 0:
        count_mapped(ftl, lpn, 1)
    record = slot_at(ftl.slots, slot)
    ftl.held_slot = -1
    record.state = DIRTY
    record.lpn = lpn
    record.old = entry
    record.since = now
    _append(ftl, _dirties(ftl), slot)
    ftl.dirty_count += 1
    ftl.occupied += 1
    set_entry(ftl, lpn, BUFFERED_BIT | slot)


@jit
def discard(ftl: Ftl, slot: int) -> int:
    """Forget a buffered page. :returns: the map entry of its version on flash (0: none), which is now the caller's"""
    record = slot_at(ftl.slots, slot)
    old = record.old
    if record.state == CLEAN:
        put_i64(ftl.flights, record.flight & ftl.flight_mask, 0)
    else:
        ftl.dirty_count -= 1
        ftl.occupied -= 1
    _unlink(ftl, slot)
    _spare(ftl, slot)
    return old


@jit_unit
def destage_all(ftl: Ftl, nand: Nand, now: int) -> int:
    """Begin to program every dirty page. :returns: 0, or a status: there is no room"""
    while ftl.dirty_count > 0:
        status = destage(ftl, nand, now, _first(ftl, _dirties(ftl)), -1)
        if status != 0:
            return status
    return 0


@jit_inline
def destage_due(ftl: Ftl) -> int:
    """When the oldest dirty page should go to flash although nothing presses; NEVER when there is none."""
    if ftl.dirty_count == 0:
        return NEVER
    return slot_at(ftl.slots, _first(ftl, _dirties(ftl))).since + ftl.destage_ns


@jit
def destage_oldest(ftl: Ftl, nand: Nand, now: int) -> int:
    """Begin to program the page that has been dirty for longest. :returns: 0 or a status"""
    return destage(ftl, nand, now, _first(ftl, _dirties(ftl)), -1)
