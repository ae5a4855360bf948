"""What a session computes: bottom layers as soon as a batch is there, interaction and top layers once its sums are.

Samples are computed in groups, whatever the mini-batches are: that changes no bit of an output (``mlp.gemm``) and no
modelled time (``pipeline``), only how well the processor's caches are used. ``infer`` does one bounded slice of one
session, so that nothing else waits long for the data plane.
"""

from __future__ import annotations

from emucsd_firmware.mlp.engine import forward_step, program_at, start_run
from emucsd_firmware.session.pipeline import complete, set_wake
from emucsd_firmware.session.state import BOTTOM, NOTHING, TOP, Batch, Session, Sessions, batch_at, session_at
from emucsd_wire.rm import MAX_SESSIONS
from emucsd_wire.words import jit, jit_unit


@jit
def _start(session: Session, batch: Batch, part: int, first: int, samples: int) -> None:
    run = session.run
    start_run(run)
    run.dense = batch.dense + 4 * first * session.dense if session.dense != 0 else 0
    run.x = batch.rows + first * session.stride
    run.out = batch.outputs + 4 * first * session.out
    run.samples = samples
    if part == TOP:
        run.stage = session.bottom_stages
    session.running = part
    session.batch = batch.number
    session.chunk = samples


@jit
def _choose(sessions: Sessions, session: Session) -> None:
    """Begin what is best done next: outputs before bottoms, older batches before younger ones."""
    for index in range(session.count):
        batch = batch_at(sessions.batches, session.order[index])
        there = min(batch.settled, batch.bottomed) - batch.topped
        if there >= session.group or (there > 0 and batch.settled == batch.samples):
            _start(session, batch, TOP, batch.topped, min(there, session.group))
            return
    for index in range(session.count):
        batch = batch_at(sessions.batches, session.order[index])
        if batch.bottomed < batch.samples:
            _start(session, batch, BOTTOM, batch.bottomed, min(session.group, batch.samples - batch.bottomed))
            return


@jit
def _go_on(sessions: Sessions, session: Session) -> None:
    """One slice of what a session has begun."""
    sessions.slices += 1
    program = session.bottom if session.running == BOTTOM else session.program
    if forward_step(program_at(program, 0), session.run) == 0:
        return
    batch = batch_at(sessions.batches, session.batch)
    if session.running == BOTTOM:
        batch.bottomed += session.chunk
    else:
        batch.topped += session.chunk
        if complete(batch):
            set_wake(sessions)
    session.running = NOTHING


@jit_unit
def infer(sessions: Sessions) -> int:
    """One slice of computation, of the sessions in turn. :returns: 0 when there was nothing to compute"""
    while sessions.work != 0:
        slot = sessions.turn
        sessions.turn = (slot + 1) % MAX_SESSIONS
        if (sessions.work >> slot) & 1 == 0:
            continue
        session = session_at(sessions.sessions, slot)
        if session.running == NOTHING:
            _choose(sessions, session)
        if session.running != NOTHING:
            _go_on(sessions, session)
            return 1
        sessions.work &= ~(1 << slot)
    return 0
