"""What sessions ask of the lookup engine: a request for each mini-batch and table, as many at a time as there is room.

Its sums land in place: in the rows that the MLP engine reads.
"""

from __future__ import annotations

from emucsd_firmware.lookup.queue import abandon, enqueue, give, take
from emucsd_firmware.lookup.state import FREE as NOT_TAKEN
from emucsd_firmware.lookup.state import Lookup, request_at
from emucsd_firmware.session.pipeline import advance, end
from emucsd_firmware.session.state import FLYING, Batch, Session, Sessions, batch_at, mini_at, session_at
from emucsd_wire.rm import MAX_DEPTH, MAX_SAMPLES, MAX_SESSION_TABLES, MAX_SESSIONS
from emucsd_wire.words import get_i64, get_u32, jit, jit_unit, put_i64

OWNERS = MAX_SAMPLES * MAX_SESSION_TABLES  # that a batch may have: its number times this is its first one's


@jit
def _send(session: Session, lookup: Lookup, batch: Batch, number: int, now: int) -> None:
    """Fill and queue request ``number`` for the batch's next mini-batch and table."""
    request, table = request_at(lookup.requests, number), batch.table
    first = batch.mini * session.minibatch
    request.table = session.slots[table]
    request.grain = session.grain
    request.bags = min(session.minibatch, batch.samples - first)
    request.offsets = batch.offsets + 4 * (table * batch.samples + first)
    request.first = get_u32(request.offsets, 0)
    request.ids = get_u32(request.offsets, request.bags)
    request.id_bytes = batch.id_bytes
    request.indices = batch.ids
    request.weights = batch.weights
    request.mean = session.means[table]
    request.result = batch.rows + first * session.stride + session.columns[table]
    request.stride = session.stride
    request.owner = batch.number * OWNERS + batch.mini * MAX_SESSION_TABLES + table
    enqueue(lookup, now, number)


@jit
def _feed_from(sessions: Sessions, lookup: Lookup, session: Session, now: int) -> int:
    """Send out what is left of one mini-batch. :returns: requests sent"""
    for index in range(session.count):
        batch = batch_at(sessions.batches, session.order[index])
        if batch.mini == batch.count:
            continue
        sent = 0
        while batch.table < session.tables and sessions.flying < FLYING:
            number = take(lookup)
            if number < 0:
                return sent
            _send(session, lookup, batch, number, now)
            sessions.flying += 1
            batch.table += 1
            sent += 1
        if batch.table == session.tables:
            batch.table = 0
            batch.mini += 1
            if batch.mini == batch.count:
                sessions.backlog -= 1
        return sent
    return 0


@jit_unit
def feed(sessions: Sessions, lookup: Lookup, now: int) -> None:
    """Send out requests while there is room, a mini-batch of each session in turn."""
    refused = 0
    while sessions.backlog != 0 and sessions.flying < FLYING and refused < MAX_SESSIONS:
        session = session_at(sessions.sessions, sessions.feeding)
        sessions.feeding = (sessions.feeding + 1) % MAX_SESSIONS
        if session.id != 0 and _feed_from(sessions, lookup, session, now) != 0:
            refused = 0
        else:
            refused += 1


@jit_unit
def settle(sessions: Sessions, lookup: Lookup, number: int) -> None:
    """A request of a session has come out of ``lookup.queue.pop_settled``: its sums are in their rows."""
    request = request_at(lookup.requests, number)
    owner, ready, version = request.owner, request.ready, request.version
    status, position = request.status, request.position
    give(lookup, number)
    sessions.flying -= 1
    batch = batch_at(sessions.batches, owner // OWNERS)
    session = session_at(sessions.sessions, batch.number // MAX_DEPTH)
    if status != 0:
        batch.status = status
        batch.position = position
        stop(sessions, lookup, session, batch, ready)
        return
    table = owner % MAX_SESSION_TABLES
    seen = get_i64(batch.versions, table)
    if seen < 0:
        put_i64(batch.versions, table, version)
    elif seen != version:
        batch.changed = 1
    mini = mini_at(batch.minis, owner % OWNERS // MAX_SESSION_TABLES)
    mini.pending -= 1
    mini.ready = max(mini.ready, ready)
    if mini.pending == 0:
        advance(sessions, session)


@jit
def stop(sessions: Sessions, lookup: Lookup, session: Session, batch: Batch, now: int) -> None:
    """Nothing more is to be done for a batch: it has failed, or nobody wants it. It still leaves in its turn."""
    low = batch.number * OWNERS
    for number in range(lookup.request_count):
        request = request_at(lookup.requests, number)
        if low <= request.owner < low + OWNERS and request.state != NOT_TAKEN and request.abandoned == 0:
            abandon(lookup, number)
            sessions.flying -= 1
    if batch.mini != batch.count:
        batch.mini = batch.count
        sessions.backlog -= 1
    end(sessions, session, batch, now)
