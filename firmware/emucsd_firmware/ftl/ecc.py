"""Reading flash: what it costs, and whether the ECC gets the bits right. Blocks read too often are due for refresh."""

from __future__ import annotations

from emucsd_firmware.ftl.blocks import mark_refresh
from emucsd_firmware.ftl.state import Ftl, header_at
from emucsd_firmware.nand.reliability import error_rate, read_outcome
from emucsd_firmware.nand.state import READ, Nand
from emucsd_firmware.nand.timing import submit
from emucsd_wire.words import get_u32, jit, jit_inline, put_u32

REFRESH_RETRIES = 2  # a read that took this many steps says that the block's data should move


@jit_inline
def lost_mask(ftl: Ftl) -> int:
    """A bad mask over every 512-byte block of a page."""
    blocks = ftl.page_bytes >> 9
    return -1 if blocks >= 64 else (1 << blocks) - 1


@jit_inline
def read_flash(ftl: Ftl, nand: Nand, now: int, traffic: int, ppn: int, nbytes: int, job: int) -> int:
    """Charge reading ``nbytes`` of a page to ``job``. :returns: retry steps that it took, or -1: uncorrectable"""
    ftl.flash_reads += 1
    if ftl.unreliable == 0:
        submit(nand, now, READ, traffic, ppn, nbytes, job, 0)
        return 0
    return _read_doubtful(ftl, nand, now, traffic, ppn, nbytes, job)


@jit
def _read_doubtful(ftl: Ftl, nand: Nand, now: int, traffic: int, ppn: int, nbytes: int, job: int) -> int:
    block = ppn >> ftl.page_bits
    reads = get_u32(ftl.reads, block)
    erases = get_u32(ftl.erases, block)
    age = ftl.age_base + now - header_at(ftl.headers, block).born
    put_u32(ftl.reads, block, reads + 1)
    retries = read_outcome(nand.reliability, ppn, erases, reads, age)
    submit(nand, now, READ, traffic, ppn, nbytes, job, retries if retries >= 0 else nand.max_retries)
    if retries < 0:
        ftl.uncorrectable += 1
        ftl.read_retries += nand.max_retries
    else:
        ftl.read_retries += retries
        ftl.corrected_bits += error_rate(nand.reliability, erases, reads, age) * 8.0 * ftl.page_bytes
    if retries < 0 or retries >= REFRESH_RETRIES or (ftl.disturb_limit > 0 and reads >= ftl.disturb_limit):
        mark_refresh(ftl, block)
    return retries
