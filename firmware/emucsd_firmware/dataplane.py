"""The data plane: one compiled loop that polls queues, runs commands, advances modelled time and posts completions.

It returns to Python only for what is rare: the control thread asks (``CALLED``), or commands wait for the disk
(``SYNC``).
A round is: take over doorbells, let fetched commands act, run what is due, retry what had no room, raise interrupts.
"""

from __future__ import annotations

from typing import Any

from numba import types

from emucsd_firmware.clock import NEVER, REAL, due, pop, push
from emucsd_firmware.ftl.buffer import destage_all
from emucsd_firmware.ftl.gc import background, on_job
from emucsd_firmware.ftl.mapping import prefetch_page, read_page
from emucsd_firmware.ftl.trim import deallocate
from emucsd_firmware.ftl.write import set_write_cache
from emucsd_firmware.grants import (
    all_wait,
    answered,
    attached_ports,
    declared_time,
    publish,
)
from emucsd_firmware.lookup.requests import job_done, pump
from emucsd_firmware.nand.timing import (
    advance,
    advance_until_done,
    close_job,
    job_finish,
    next_event,
    open_job,
    pop_done,
    room,
)
from emucsd_firmware.nvme.commands import (
    COMPLETE,
    EXECUTE,
    SLOTS,
    command_at,
    complete,
    front_end,
    load,
    respond,
    sqe_at,
    take,
)
from emucsd_firmware.nvme.dispatch import execute, incoming_bytes, peek_lpn, touched_bytes
from emucsd_firmware.nvme.interrupts import raise_interrupts
from emucsd_firmware.nvme.lookups import PARKED, next_answered
from emucsd_firmware.nvme.queues import PortState, arm, read_tail, refresh_tail, sq_at
from emucsd_firmware.nvme.sessions import collect, next_inferred
from emucsd_firmware.nvme.tunnels import expire
from emucsd_firmware.recssd.pages import page_done
from emucsd_firmware.recssd.pages import pump as pump_recssd
from emucsd_firmware.session.inference import infer
from emucsd_firmware.session.pipeline import ripen
from emucsd_firmware.sleep import idle_due, lingers, next_command, next_due, sleep, step_aside
from emucsd_firmware.state import FIRST_FTL_JOB, FIRST_RECSSD_JOB, DriveState, drive_at, port_of
from emucsd_wire.words import (
    get_i64,
    jit,
    jit_inline,
    jit_unit,
    load_i64,
    monotonic,
    prefetch,
    put_i64,
    relax,
    signal,
    wait,
    yield_core,
)

CALLED, SYNC = 1, 2  # why ``run`` returned

PREFETCH_LINES = 64  # of 64 bytes: a 4 KiB page
ROOM = 8192  # flash operations that a burst may need (32 commands of 256 pages): with less left nothing is fetched
BURST = 32  # entries taken from one queue before the next has its turn
SPINS = 4096  # idle rounds before the first sleep: some 100 us
YIELD_EVERY = 64
CLOCK_EVERY = 255  # a drive without delays reads the clock once in so many (+ 1) rounds
NAP_NS = 20_000
RETRY_NS = 1_000_000


@jit_unit
def act(drive: DriveState, slot: int) -> None:
    """Run a command at the drive's present time; it completes now, when its job ends, or when its lookup does."""
    command = command_at(drive.commands.slots, slot)
    port = port_of(drive, command.port)
    sq = sq_at(port.sqs, command.sqid)
    if sq.generation != command.generation:
        complete(drive.clock, drive.commands, port, slot)  # its queue is gone: nothing of it may take effect
        return
    open_job(drive.nand, slot)
    status = execute(drive, port, slot, command, sqe_at(drive.commands.sqes, slot))
    finish = close_job(drive.nand, slot, drive.clock.now)
    if status == PARKED:
        return
    command.status = status
    if finish >= 0:
        answer(drive, slot, finish)


@jit
def _prefetch_data(drive: DriveState, port: PortState, slot: int) -> None:
    """Ask for the flash page of the command after this one: its lines come while this one's are being copied."""
    lpn = peek_lpn(drive, port, sqe_at(drive.commands.sqes, slot))
    if lpn < 0:
        return
    address = read_page(drive.ftl, lpn)
    if address != 0:
        for line in range(PREFETCH_LINES):
            prefetch(address + 64 * line)


@jit_unit
def fetch(drive: DriveState, port: PortState, qid: int) -> int:
    """Take up to BURST entries of a queue; those that cost no time on the way act at once. :returns: how many"""
    waiting = refresh_tail(port, qid)
    if waiting == 0 or room(drive.nand) < ROOM:
        return 0
    count = min(waiting, BURST, drive.commands.free_count)
    now = drive.clock.now
    top = drive.commands.free_count
    for _ in range(count):
        slot = take(drive.commands)
        load(drive.commands, port, qid, slot, now)
        lpn = peek_lpn(drive, port, sqe_at(drive.commands.sqes, slot))
        if lpn >= 0:
            prefetch_page(drive.ftl, lpn)
    if port.shadow != 0:
        arm(port, qid, 0)
    # slots were taken from the top of the stack downwards, and the stack still holds their numbers in that order;
    # completing one pushes it back over them, so they are copied out before anything acts
    for index in range(count):
        put_i64(drive.batch, index, get_i64(drive.commands.free, top - 1 - index))
    free = port.bypass != 0 or drive.costs.free != 0
    for index in range(count):
        slot = get_i64(drive.batch, index)
        if free:
            if index + 1 < count:
                _prefetch_data(drive, port, get_i64(drive.batch, index + 1))
            act(drive, slot)
            continue
        sqe = sqe_at(drive.commands.sqes, slot)
        pages = (touched_bytes(drive, port, sqe) + drive.ftl.page_bytes - 1) >> drive.ftl.page_shift
        arrival = front_end(drive.costs, port, now, pages, incoming_bytes(drive, port, sqe))
        push(drive.clock, arrival, 2 * slot + EXECUTE)
    return count


@jit_unit
def fetch_all(drive: DriveState) -> int:
    """One turn over every live queue of both ports. :returns: commands fetched"""
    fetched = 0
    for number in range(2):
        port = port_of(drive, number)
        if port.enabled == 0:
            continue
        tail = read_tail(port, 0)
        if tail != port.admin_seen:
            port.admin_seen = tail
            signal(port.admin_fd)
        for index in range(port.live_count):
            fetched += fetch(drive, port, port.live_sqs[index])
    return fetched


@jit_unit
def reap(drive: DriveState) -> None:
    """Jobs that ended: commands answer, and lookups hand their sums to the commands that wait for them."""
    while True:
        job = pop_done(drive.nand)
        if job < 0:
            break
        when = job_finish(drive.nand, job)
        if job < SLOTS:
            answer(drive, job, when)
        elif job < FIRST_RECSSD_JOB:
            job_done(drive.lookup, job, when)
        elif job < FIRST_FTL_JOB:
            page_done(drive.recssd, drive.ftl, drive.nand, job, when)
        else:
            on_job(drive.ftl, drive.nand, job, when)
    collect(drive)
    while True:
        slot = next_answered(drive)
        if slot < 0:
            slot = next_inferred(drive)
        if slot < 0:
            return
        answer(drive, slot, command_at(drive.commands.slots, slot).ready)


@jit_inline
def answer(drive: DriveState, slot: int, when: int) -> None:
    command = command_at(drive.commands.slots, slot)
    respond(drive.clock, drive.costs, drive.commands, port_of(drive, command.port), slot, when)


@jit_unit
def run_until(drive: DriveState, until: int, before0: int, before1: int) -> int:
    """Run every event with time <= ``until``, in order of time. :returns: how many moments had events

    At one moment flash comes first, then the translator, then sessions, then commands and completions.

    :param before0: completions of port 0 so far, with ``before1`` for port 1: end with the moment that adds to those of
        a host that follows the grant protocol. -1: run on
    """
    moments = 0
    clock = drive.clock
    while True:
        if before0 >= 0 and answered(drive, before0, before1):
            until = min(until, clock.now)
        if drive.sessions.work != 0 and clock.mode != REAL:
            infer(drive.sessions)  # it takes no modelled time
            continue
        others = min(next_command(drive), idle_due(drive))
        flash = next_event(drive.nand)
        when = min(others, flash)
        if when > until or when == NEVER:
            return moments
        moments += 1
        clock.now = max(clock.now, when)
        if flash <= others:
            # by the wall clock flash may run ahead to the next other event; virtual time stops when a job has ended
            if clock.mode == REAL:
                advance(drive.nand, min(others, until))
            else:
                reached = advance_until_done(drive.nand, min(others, until))
                if reached != NEVER:
                    clock.now = max(clock.now, reached)
            reap(drive)
        elif drive.lookup.wake <= others:
            pump(drive.lookup, drive.ftl, drive.nand, when)
            reap(drive)
        elif drive.sessions.wake <= others:
            ripen(drive.sessions, when)
            reap(drive)
        elif drive.recssd.wake <= others:
            pump_recssd(drive.recssd, drive.ftl, drive.nand, when)
            reap(drive)
        elif due(clock) <= others:
            _run_token(drive, pop(clock))
        elif background(drive.ftl, drive.nand, when) == 0:
            drive.idle_after = when + RETRY_NS


@jit
def _run_token(drive: DriveState, token: int) -> None:
    slot = token >> 1
    if token & 1 == EXECUTE:
        act(drive, slot)
    else:
        port = port_of(drive, command_at(drive.commands.slots, slot).port)
        complete(drive.clock, drive.commands, port, slot)


@jit_unit
def round_real(drive: DriveState) -> int:
    """One round by the wall clock. :returns: how much there was to do"""
    work = 0
    if drive.instant == 0 or next_due(drive) != NEVER or drive.rounds & CLOCK_EVERY == 0:
        now = monotonic()
        work = run_until(drive, now, -1, -1)
        drive.clock.now = max(now, drive.clock.now)
        if drive.tunnel.wake <= now:
            work += expire(drive)
    work += fetch_all(drive)
    if drive.sessions.work != 0:
        work += infer(drive.sessions)  # one slice: what is due and what comes goes before the next
    if work != 0 or drive.commands.held != 0 or drive.waiting != 0:
        raise_interrupts(drive)
    return work


@jit
def _grant(drive: DriveState, before0: int, before1: int) -> None:
    """Let time run until a host has a completion, a thinking one has thought, or nothing is left; then say so."""
    clock = drive.clock
    target = declared_time(drive)
    if not answered(drive, before0, before1):
        run_until(drive, target, before0, before1)
    if target != NEVER and not answered(drive, before0, before1):
        clock.now = max(clock.now, target)
    publish(drive, before0, before1, next_due(drive) == NEVER)


@jit_unit
def round_virtual(drive: DriveState) -> int:
    """One round by the virtual clock: nothing moves until every host waits; then queues in order, then events."""
    if attached_ports(drive) == 0:
        work = fetch_all(drive)
        if work == 0:
            when = next_due(drive)
            if when != NEVER:
                work = run_until(drive, when, -1, -1)
        raise_interrupts(drive)
        return work
    if not all_wait(drive):
        fetch_admin(drive)
        return 0
    before0, before1 = drive.port0.posted, drive.port1.posted
    while fetch_all(drive) != 0:
        pass
    background(drive.ftl, drive.nand, drive.clock.now)
    _grant(drive, before0, before1)
    raise_interrupts(drive)
    return 1


@jit
def fetch_admin(drive: DriveState) -> None:
    """Admin commands are the control plane's and take no modelled time: they need no grant."""
    for number in range(2):
        port = port_of(drive, number)
        if port.enabled != 0:
            tail = read_tail(port, 0)
            if tail != port.admin_seen:
                port.admin_seen = tail
                signal(port.admin_fd)


@jit
def run(address: int) -> int:
    """The data plane thread's whole life inside compiled code. :returns: CALLED or SYNC"""
    drive = drive_at(address, 0)
    idle = 0
    since = 0  # when it became idle
    while True:
        if load_i64(drive.control_word, 0) != 0:
            return CALLED
        if drive.commands.syncing != 0:
            return SYNC
        drive.rounds += 1
        work = round_real(drive) if drive.clock.mode == REAL else round_virtual(drive)
        if work != 0:
            idle = 0
            continue
        idle += 1
        relax()
        if drive.aside != 0:
            step_aside(drive)
        if idle % YIELD_EVERY != 0:
            continue
        if idle == YIELD_EVERY:
            since = monotonic()
        more = background(drive.ftl, drive.nand, drive.clock.now)
        if idle < SPINS:
            yield_core()
            continue
        if more != 0 and drive.clock.mode == REAL:
            continue
        if lingers(drive, since):
            wait(drive.kick_fd, NAP_NS)
            continue
        sleep(drive)


@jit
def step(address: int, rounds: int) -> int:
    """A bounded number of rounds for tests without a thread. :returns: how much was done"""
    drive = drive_at(address, 0)
    work = 0
    for _ in range(rounds):
        work += round_real(drive) if drive.clock.mode == REAL else round_virtual(drive)
    return work


@jit
def finish_sync(address: int) -> None:
    """The disk has everything: complete the commands that waited for it."""
    drive = drive_at(address, 0)
    while drive.commands.syncing != 0:
        slot = drive.commands.syncing - 1
        command = command_at(drive.commands.slots, slot)
        drive.commands.syncing = command.following
        command.durable = 0
        push(drive.clock, command.ready, 2 * slot + COMPLETE)


@jit
def wants_sync(address: int) -> int:
    """Whether commands wait for the disk."""
    return 1 if drive_at(address, 0).commands.syncing != 0 else 0


@jit
def destage(address: int) -> int:
    """Empty the write buffer, for the control plane. :returns: 0 or a status"""
    drive = drive_at(address, 0)
    return destage_all(drive.ftl, drive.nand, drive.clock.now)


@jit
def forget(address: int, lpn: int, count: int) -> int:
    """Drop logical pages, for the control plane (Format, Sanitize, namespaces that go). :returns: 0 or a status"""
    return deallocate(drive_at(address, 0).ftl, lpn, count)


@jit
def write_cache(address: int, on: int) -> int:
    """Turn the volatile write cache on or off, for the control plane. :returns: 0 or a status"""
    drive = drive_at(address, 0)
    return set_write_cache(drive.ftl, drive.nand, drive.clock.now, on)


def compile_all() -> None:
    """Compile every entry point, or load it from the cache: from then on nothing here waits for the compiler."""
    entries: list[tuple[Any, int]] = [(run, 1), (finish_sync, 1), (destage, 1), (forget, 3), (write_cache, 2)]
    for function, arguments in entries:
        function.compile((types.int64,) * arguments)
