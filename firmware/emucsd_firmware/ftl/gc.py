"""The FTL's own work, apart from the host's writes: a slice at a time, and what happens when its operations end.

Who drives it: ``background`` whenever the drive is idle (or at every virtual moment), ``on_job`` for every ended NAND
job of the FTL's range (``first_job`` on).
"""

from __future__ import annotations

from emucsd_firmware.ftl.buffer import destage_due, destage_oldest, landed
from emucsd_firmware.ftl.reclaim import collect
from emucsd_firmware.ftl.state import Ftl, die_at
from emucsd_firmware.nand.jobs import close_job, open_job
from emucsd_firmware.nand.state import Nand
from emucsd_wire.words import jit, jit_unit

SLICE = 8  # pages that one slice moves


@jit_unit
def on_job(ftl: Ftl, nand: Nand, job: int, when: int) -> None:
    """A job of the FTL ended at ``when``: a die's background slice, or a program from the buffer.

    Commands that waited for it go to the NAND model's done list.
    """
    index = job - ftl.first_job
    if index < ftl.dies:
        die_at(ftl.die_table, index).busy = 0
    else:
        landed(ftl, nand, index - ftl.dies, when)


@jit_unit
def background(ftl: Ftl, nand: Nand, now: int) -> int:
    """One bounded slice: pages that have been dirty for long, then a die that collects and isn't at it already.

    :returns: 1 if it did something and should be called again, 0 if there is nothing to do until time goes on
    """
    if destage_due(ftl) <= now and destage_oldest(ftl, nand, now) == 0:
        return 1
    if ftl.collecting_dies == 0:
        return 0
    for _ in range(ftl.dies):
        number = ftl.background_die
        ftl.background_die = number + 1 if number + 1 < ftl.dies else 0
        die = die_at(ftl.die_table, number)
        if die.busy != 0 or (die.collecting == 0 and die.pending == 0):
            continue
        job = ftl.first_job + number
        open_job(nand, job)
        moved = collect(ftl, nand, now, job, number, SLICE)
        die.busy = 1 if close_job(nand, job, now) < 0 else 0
        if moved >= 0:
            return 1
    return 0


@jit
def next_background(ftl: Ftl) -> int:
    """The next time at which ``background`` has something to do that no NAND event announces; NEVER if none."""
    return destage_due(ftl)
