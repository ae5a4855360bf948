"""Programming a flash page: its out-of-band record, the write pointer, a program that fails."""

from __future__ import annotations

from emucsd_firmware.ftl.blocks import add_valid, claim, close_block, set_word
from emucsd_firmware.ftl.checks import checksum, digest
from emucsd_firmware.ftl.mapping import media_of
from emucsd_firmware.ftl.state import FAILED, FULL, Ftl, Oob, header_at, oob_at, place_at
from emucsd_firmware.nand.reliability import program_fails
from emucsd_firmware.nand.state import PROGRAM, Nand
from emucsd_firmware.nand.timing import submit
from emucsd_wire.words import get_i64, get_u32, jit, jit_inline, put_i64


@jit_inline
def oob_check(record: Oob, ppn: int, opened: int) -> int:
    """Over a record, where it lies, and its block's present life: what an earlier life left never passes."""
    return digest(record.lpn, record.seq, ppn ^ record.data_check << 32, record.bad, opened)


@jit_inline
def oob_whole(ftl: Ftl, ppn: int) -> int:
    """1: the page's record belongs to its block's present life and, where it carries one, its data check holds."""
    record = oob_at(ftl.oob, ppn)
    if record.check != oob_check(record, ppn, header_at(ftl.headers, ppn >> ftl.page_bits).opened):
        return 0
    if record.data_check == 0:
        return 1
    return 1 if record.data_check == checksum(media_of(ftl, ppn), ftl.page_bytes) else 0


@jit
def program(ftl: Ftl, nand: Nand, now: int, job: int, traffic: int, index: int, lpn: int, bad: int, stamp: int) -> int:
    """Make the image at a place's next page that page's content. Data is there already; this is what vouches for it.

    :param index: of the place
    :param stamp: how new the data is, in host pages
    :returns: ppn, or -1: the program failed, the block was closed, and the image still lies where it was
    """
    place = place_at(ftl.places, index)
    ppn = place.next
    block = ppn >> ftl.page_bits
    header = header_at(ftl.headers, block)
    ftl.last_now = now
    submit(nand, now, PROGRAM, traffic, ppn, ftl.page_bytes, job, 0)
    if ftl.unreliable != 0 and program_fails(nand.reliability, ppn, get_u32(ftl.erases, block)) != 0:
        ftl.program_failures += 1
        close_block(ftl, place, block, FAILED)
        return -1
    seq = ftl.seq + 1
    ftl.seq = seq
    record = oob_at(ftl.oob, ppn)
    record.lpn = lpn
    record.seq = seq
    record.bad = bad
    record.data_check = checksum(media_of(ftl, ppn), ftl.page_bytes) if ftl.machine_durable != 0 else 0
    record.check = oob_check(record, ppn, header.opened)
    if bad != 0:
        ftl.marked_pages += 1
    if stamp > get_i64(ftl.stamps, block):
        put_i64(ftl.stamps, block, stamp)
    add_valid(ftl, block, 1)
    place.next = ppn + 1
    set_word(ftl, block, header.word + _ONE_PAGE)  # from here on the page exists
    if place.next == place.end:
        close_block(ftl, place, block, FULL)
    elif place.fresh != 0 and place.next & (ftl.claim_pages - 1) == 0:
        claim(ftl, place.next)
    return ppn


_ONE_PAGE = 1 << 16


@jit_inline
def invalidate(ftl: Ftl, ppn: int) -> None:
    """Nobody needs this flash page any more."""
    add_valid(ftl, ppn >> ftl.page_bits, -1)
    if ftl.marked_pages != 0 and oob_at(ftl.oob, ppn).bad != 0:
        ftl.marked_pages -= 1
