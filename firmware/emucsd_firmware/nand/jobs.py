"""Jobs: what somebody waits for, made of any number of flash operations, and the list of those that ended.

``open_job``, any number of submissions, ``close_job``; then either that said when it ended, or ``pop_done`` will.
The list is in order of (finish, job), whatever order the channels ended them in.
"""

from __future__ import annotations

from emucsd_firmware.nand.state import LOOKUP, READ, Channel, Job, Nand, job_at, op_at
from emucsd_wire.words import jit, jit_inline, jit_unit


@jit_inline
def open_job(nand: Nand, job: int) -> None:
    """Begin a job. It can't end before ``close_job``, however fast its operations are."""
    record = job_at(nand.jobs, job)
    record.pending = 1
    record.finish = 0
    record.soonest = 0
    record.error = 0


@jit_inline
def close_job(nand: Nand, job: int, now: int) -> int:
    """All operations are submitted. :returns: the time of its end when nothing is pending, else -1: see pop_done."""
    record = job_at(nand.jobs, job)
    record.pending -= 1
    if record.finish < now:
        record.finish = now
    if record.pending == 0:
        return record.finish
    _closed(nand, job, record)
    return -1


@jit
def _closed(nand: Nand, number: int, job: Job) -> None:
    """Put a job into the list of closed ones, by ``soonest``. Later ones mostly end later: the search starts there."""
    nand.closed += 1
    jobs, soonest = nand.jobs, job.soonest
    before, after = -1, nand.closed_first
    if soonest > 0:
        before, after = nand.closed_last, -1
        while before >= 0 and job_at(jobs, before).soonest > soonest:
            before, after = job_at(jobs, before).before, before
    job.before, job.next = before, after
    if before < 0:
        nand.closed_first = number
    else:
        job_at(jobs, before).next = number
    if after < 0:
        nand.closed_last = number
    else:
        job_at(jobs, after).before = number


@jit_inline
def _no_longer_closed(nand: Nand, job: Job) -> None:
    nand.closed -= 1
    before, after = job.before, job.next
    if before < 0:
        nand.closed_first = after
    else:
        job_at(nand.jobs, before).next = after
    if after < 0:
        nand.closed_last = before
    else:
        job_at(nand.jobs, after).before = before


@jit_inline
def soonest_end(nand: Nand) -> int:
    """A time before which no closed job ends by flash operations. There are closed jobs."""
    return job_at(nand.jobs, nand.closed_first).soonest


@jit_inline
def job_finish(nand: Nand, job: int) -> int:
    """When a job that ended did so."""
    return job_at(nand.jobs, job).finish


@jit_inline
def pop_done(nand: Nand) -> int:
    """The job that ended first among those that nobody has popped, or -1."""
    number = nand.done_first
    if number < 0:
        return -1
    after = job_at(nand.jobs, number).next
    nand.done_first = after
    if after < 0:
        nand.done_last = -1
    else:
        job_at(nand.jobs, after).before = -1
    if nand.done_hint == number:
        nand.done_hint = -1
    return number


@jit_inline
def _later(nand: Nand, number: int, job: int, finish: int) -> bool:
    other = job_at(nand.jobs, number)
    return other.finish > finish or (other.finish == finish and number > job)


@jit_unit
def end_job(nand: Nand, number: int) -> None:
    """Put a job into the done list. Channels end jobs in ascending order each: the search starts at the last one."""
    job = job_at(nand.jobs, number)
    finish = job.finish
    _no_longer_closed(nand, job)
    before = nand.done_hint if nand.done_hint >= 0 else nand.done_last
    while before >= 0 and _later(nand, before, number, finish):
        before = job_at(nand.jobs, before).before
    after = job_at(nand.jobs, before).next if before >= 0 else nand.done_first
    while after >= 0 and not _later(nand, after, number, finish):
        before, after = after, job_at(nand.jobs, after).next
    job.before, job.next = before, after
    if before < 0:
        nand.done_first = number
    else:
        job_at(nand.jobs, before).next = number
    if after < 0:
        nand.done_last = number
    else:
        job_at(nand.jobs, after).before = number
    nand.done_hint = number


@jit_inline
def end_operation(nand: Nand, channel: Channel, index: int, now: int) -> None:
    """An operation has ended: back to the pool with it, and perhaps its job with it."""
    op = op_at(nand.ops, index)
    if op.kind != READ or op.traffic != LOOKUP:
        channel.others -= 1
        channel.alone = 0
    number = op.job
    op.next = nand.free
    nand.free = index
    nand.room += 1
    if number >= 0:
        job = job_at(nand.jobs, number)
        pending = job.pending - 1
        job.pending = pending
        if now > job.finish:
            job.finish = now
        if pending == 0:
            end_job(nand, number)


@jit
def abandon_job(nand: Nand, number: int) -> None:
    """Nobody waits for it any more (its queue was deleted, the controller reset): the number may be used again.

    Its operations go on in the flash. Walks the pool; not for the fast path.
    """
    job = job_at(nand.jobs, number)
    place = nand.done_first
    while place >= 0 and place != number:
        place = job_at(nand.jobs, place).next
    if place >= 0:
        before, after = job.before, job.next
        if before < 0:
            nand.done_first = after
        else:
            job_at(nand.jobs, before).next = after
        if after < 0:
            nand.done_last = before
        else:
            job_at(nand.jobs, after).before = before
        if nand.done_hint == number:
            nand.done_hint = -1
    elif job.pending > 0:
        _no_longer_closed(nand, job)
        for index in range(nand.pool):
            if op_at(nand.ops, index).job == number:
                op_at(nand.ops, index).job = -1
    job.pending = 0
