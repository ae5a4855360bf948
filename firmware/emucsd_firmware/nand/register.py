"""Beyond the paper: reads of class LOOKUP that find their page in a die's register, or on its way into it.

A die's register keeps the page that the array read last. With ``page_register`` a vector read of that page, when it is
the next that the die takes, costs no array time, only its transfer; and a vector read that arrives while another of
its page and job waits is taken along by that one, whose transfer becomes longer. Reads of other classes fill the
register but never profit, programs and erases void it. A flash with cache read, multi-plane, suspend or command times
has no use of it: what the register holds is then another question.
"""

from __future__ import annotations

from emucsd_firmware.nand.state import LOOKUP, MEMO, Die, Nand, Op, op_at, queue_at
from emucsd_wire.words import get_u32, jit, jit_inline, put_u32

_SPREAD = 0x9E3779B1  # odd, and its bits are mixed: pages of a table row by row go to different places


@jit_inline
def _memo(ppn: int) -> int:
    return ((ppn * _SPREAD) >> 20) & (MEMO - 1)


@jit
def taken_along(nand: Nand, now: int, ppn: int, nbytes: int, job: int) -> bool:
    """Add a vector read that arrives now to one that waits for the same page, for the same job, if there is one.

    Only to one that arrived less than an array's time ago, so that no transfer can be over before it is asked for.
    """
    index = get_u32(nand.memo, _memo(ppn)) - 1
    if index < 0 or get_u32(nand.pages, index) != ppn + 1:
        return False
    op = op_at(nand.ops, index)
    if op.traffic != LOOKUP or op.job != job or now < op.arrival or now >= op.arrival + op.array_ns:
        return False
    op.bus_ns += (nbytes * nand.transfer_ns + 4095) >> 12
    queue_at(nand.queues, (ppn >> nand.die_shift) * 4 + LOOKUP).nbytes += nbytes
    nand.merged += 1
    return True


@jit_inline
def remember(nand: Nand, index: int, traffic: int, ppn: int) -> None:
    """A read waits for this page."""
    put_u32(nand.pages, index, ppn + 1)
    if traffic == LOOKUP:
        put_u32(nand.memo, _memo(ppn), index + 1)


@jit
def array_time(nand: Nand, die: Die, index: int, op: Op, time: int) -> int:
    """A die takes an operation. :returns: how long its array works: not at all where the page is in the register"""
    page = get_u32(nand.pages, index)
    put_u32(nand.pages, index, 0)
    if page != 0 and page == die.page and op.traffic == LOOKUP:
        nand.register_hits += 1
        return 0
    die.page = page
    return time
