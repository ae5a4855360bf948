"""The three stages of a session, and when each of them is done: RM-SSD's pipeline of mini-batches.

The units of a session are its own: one that takes the sums as they come (their part of a decomposed first top layer),
one for the bottom layers, one for the top layers. Each takes mini-batches in the order in which they were sent, and
their times are the mapping's (``mlp.mapping``):

    embedding' = max(sums there + tail[n], max(batch there, unit free) + embedding[n])
    bottom'    = max(dense inputs there, unit free) + bottom[n]
    out        = max(embedding', bottom', top unit free) + top[n]

All of it is reckoned once the sums are there: what is computed, and when, has no influence on it.
"""

from __future__ import annotations

from emucsd_firmware.session.state import (
    FREE,
    NEVER,
    NOTHING,
    READY,
    Batch,
    Session,
    Sessions,
    batch_at,
    mini_at,
    session_at,
)
from emucsd_wire.rm import MAX_SESSIONS, RM_REGISTERS
from emucsd_wire.words import get_i64, jit, jit_inline, jit_unit, store_i64

_ACCEPTED, _READY, _FAILED = (RM_REGISTERS.offset(name) // 8 for name in ("accepted", "ready", "failed"))


@jit
def _reckon(session: Session, batch: Batch) -> bool:
    """The times of a batch's mini-batches, in order, as far as their sums are there. :returns: whether all have them"""
    while batch.timed < batch.count:
        mini = mini_at(batch.minis, batch.timed)
        if mini.pending != 0:
            return False
        samples = min(session.minibatch, batch.samples - batch.timed * session.minibatch)
        embedding_ns, tail_ns = get_i64(session.embedding_times, samples), get_i64(session.tail_times, samples)
        bottom_ns, top_ns = get_i64(session.bottom_times, samples), get_i64(session.top_times, samples)
        begun = max(batch.arrived, session.embedding_free)
        session.embedding_free = max(mini.ready + tail_ns, begun + embedding_ns)
        session.bottom_free = max(batch.arrived, session.bottom_free) + bottom_ns
        start = max(session.embedding_free, session.bottom_free)
        session.stall += max(start - max(session.top_free, batch.arrived), 0)
        session.top_free = max(start, session.top_free) + top_ns
        session.embedding_busy += embedding_ns
        session.bottom_busy += bottom_ns
        session.top_busy += top_ns
        batch.finish = session.top_free
        batch.settled += samples
        batch.timed += 1
    return True


@jit
def advance(sessions: Sessions, session: Session) -> None:
    """Sums have come: see how far that brings the session's batches."""
    for index in range(session.count):
        batch = batch_at(sessions.batches, session.order[index])
        if not _reckon(session, batch):
            break
    note_work(sessions, session)
    set_wake(sessions)


@jit_inline
def complete(batch: Batch) -> bool:
    """Whether nothing is left to do for a batch but to wait for its time."""
    return batch.timed == batch.count and batch.topped == batch.samples


@jit_inline
def note_work(sessions: Sessions, session: Session) -> None:
    """There may be something to compute for a session."""
    sessions.work |= 1 << (session.id % MAX_SESSIONS)


@jit
def set_wake(sessions: Sessions) -> None:
    """When the next batch's time comes."""
    wake = NEVER
    for slot in range(MAX_SESSIONS):
        session = session_at(sessions.sessions, slot)
        if session.id != 0 and session.count != 0:
            batch = batch_at(sessions.batches, session.order[0])
            if complete(batch):
                wake = min(wake, batch.finish)
    sessions.wake = wake


@jit
def enter(sessions: Sessions, session: Session, batch: Batch) -> None:
    """A batch goes under way."""
    session.order[session.count] = batch.number
    session.count += 1
    session.accepted += 1
    store_i64(session.registers, _ACCEPTED, session.accepted)
    sessions.backlog += 1
    note_work(sessions, session)


@jit
def end(sessions: Sessions, session: Session, batch: Batch, now: int) -> None:
    """A batch goes no further. It keeps its place, so that batches end in order."""
    batch.timed = batch.count
    batch.settled = batch.bottomed = batch.topped = batch.samples
    batch.finish = max(batch.finish, now)
    if session.running != NOTHING and session.batch == batch.number:
        session.running = NOTHING
    advance(sessions, session)


@jit
def _leave(sessions: Sessions, session: Session, batch: Batch) -> None:
    """The oldest batch under way has come to its time."""
    session.count -= 1
    for index in range(session.count):
        session.order[index] = session.order[index + 1]
    batch.state = READY
    session.ended += 1
    if batch.status != 0:
        session.failed += 1
    elif batch.dropped == 0:
        session.inferred += batch.samples
    store_i64(session.registers, _FAILED, session.failed)
    store_i64(session.registers, _READY, session.ended)  # last: who sees it sees the other
    if batch.dropped != 0:
        batch.state = FREE
    elif batch.waiter >= 0:
        batch.next = -1
        if sessions.done < 0:
            sessions.done = batch.number
        else:
            batch_at(sessions.batches, sessions.done_tail).next = batch.number
        sessions.done_tail = batch.number


@jit_unit
def ripen(sessions: Sessions, now: int) -> None:
    """Batches whose time has come are ready. To be called when ``sessions.wake`` has come."""
    for slot in range(MAX_SESSIONS):
        session = session_at(sessions.sessions, slot)
        while session.id != 0 and session.count != 0:
            batch = batch_at(sessions.batches, session.order[0])
            if not complete(batch) or batch.finish > now:
                break
            _leave(sessions, session, batch)
    set_wake(sessions)


@jit
def pop_ready(sessions: Sessions) -> int:
    """The next batch that became ready while somebody waited for it, or -1."""
    number = sessions.done
    if number >= 0:
        sessions.done = batch_at(sessions.batches, number).next
    return number
