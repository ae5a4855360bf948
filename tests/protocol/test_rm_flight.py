"""Sessions that end, fail or share the drive while their batches are in flight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from emucsd_firmware.drive import Drive
from emucsd_firmware.lookup.state import FREE as NOT_TAKEN
from emucsd_firmware.mlp.graph import Graph
from emucsd_firmware.nvme.commands import SLOTS
from emucsd_firmware.session.state import FREE
from emucsd_wire import rm
from emucsd_wire.nvme import PAGE, Admin, Io, Status
from tests.protocol.io_host import open_drive
from tests.protocol.rm_host import OUT_AT, RmHost, Shape, batch_of, cat, same

FLASH: dict[str, Any] = {"geometry.channels": 2, "geometry.blocks": 64}


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RmHost]:
    """On flash that takes time, virtual clock."""
    with open_drive(tmp_path_factory.mktemp("drive"), "rmssd", **FLASH) as drive:
        yield RmHost(drive)


class Opened:
    """A session with batches for it."""

    def __init__(self, host: RmHost, **values: Any) -> None:
        self.host, self.shape = host, Shape(cat(), **values)
        self.tables = host.tables(self.shape.graph)
        self.number = host.open(self.shape, self.tables)
        self.batches = [batch_of(self.tables, 5, np.full((2, 40), 4), seed) for seed in range(4)]

    def send(self, tag: int) -> None:
        assert self.host.send(self.number, self.batches[tag].pack(), tag).status == 0

    def ask(self, tag: int) -> int:
        return self.host.ask(self.number, 8 * 40, tag)

    def works(self) -> bool:
        return same(self.host.infer(self.number, self.shape, self.batches[0], 99), self.answer(0))

    def answer(self, tag: int) -> np.ndarray[Any, Any]:
        return self.shape.answer(self.tables, self.batches[tag])


def settle(drive: Drive) -> None:
    """Let everything end, and see that nothing is left over."""
    for _ in range(100_000):
        if not drive.step():
            break
    lookup = drive.lookup
    assert (lookup.requests["state"] == NOT_TAKEN).all()
    record = drive.sessions_memory.record
    assert (record["flying"], record["backlog"]) == (0, 0)
    slots = [slot for port in (0, 1) for slot in drive.sessions.of_port(port)]
    assert (drive.tables.records["active"].sum() == 0) == (not slots)
    assert int(drive.state[0]["commands"]["free_count"]) == SLOTS


def run(host: RmHost, batches: int, opened: Opened) -> None:
    """Step until so many batches have ended."""
    while host.registers(opened.number).ready < batches:
        host.drive.step()


def parked(host: RmHost, opened: Opened) -> None:
    """Step until an RM_READ waits."""
    slot = opened.number % rm.MAX_SESSIONS * rm.MAX_DEPTH
    while (host.drive.sessions_memory.batches["waiter"][slot : slot + rm.MAX_DEPTH] < 0).all():
        host.drive.step()
    assert host.reap_io() == []


# -- dropped and closed


def test_drop(host: RmHost) -> None:
    """A batch that is dropped under way frees its tag and, in its turn, its place; those around it are unharmed."""
    opened = Opened(host, depth=3)
    for tag in range(3):
        opened.send(tag)
    assert host.receive(opened.number, 0, 1).status == 0
    assert host.receive(opened.number, 0, 1).status == Status.RM_NO_BATCH
    run(host, 3, opened)
    for tag in (0, 2):
        assert host.receive(opened.number, 8 * 40, tag).status == 0
        assert same(host.outputs(40, 2), opened.answer(tag))
    opened.send(3)
    run(host, 4, opened)
    assert host.receive(opened.number, 0, 3).status == 0  # an ended one
    assert opened.works()
    info = host.info(opened.number)
    assert (info.accepted, info.ready, info.failed, info.in_flight, info.inferred) == (5, 5, 0, 0, 160)
    assert host.close_session(opened.number).status == 0
    settle(host.drive)


def test_one_reader(host: RmHost) -> None:
    """While an RM_READ waits, a second one and a drop are refused."""
    opened = Opened(host)
    opened.send(0)
    first = opened.ask(0)
    second = host.ask(opened.number, 8 * 40, 0, OUT_AT + PAGE)
    third = host.ask(opened.number, 0, 0)
    done = {d.cid: d.status for d in host.wait_io(3)}
    assert done == {first: 0, second: Status.RM_BUSY, third: Status.RM_BUSY}
    assert same(host.outputs(40, 2), opened.answer(0))


def test_close_in_flight(host: RmHost) -> None:
    """A session closed in flight drops its batches; an RM_READ that waits learns of it. The drive serves on."""
    opened, other = Opened(host), Opened(host)
    for tag in range(3):
        opened.send(tag)
        other.send(tag)
    waiting = opened.ask(1)
    parked(host, opened)
    assert host.close_session(opened.number).status == 0
    (done,) = host.wait_io(1)
    assert (done.cid, done.status) == (waiting, Status.RM_NO_SESSION)
    assert host.send(opened.number, opened.batches[0].pack()).status == Status.RM_NO_SESSION
    for tag in range(3):
        assert host.receive(other.number, 8 * 40, tag).status == 0
        assert same(host.outputs(40, 2), other.answer(tag))
    again = host.open(opened.shape, opened.tables)
    assert again % rm.MAX_SESSIONS == opened.number % rm.MAX_SESSIONS
    assert same(host.infer(again, opened.shape, opened.batches[3]), opened.answer(3))
    for number in (again, other.number):
        assert host.close_session(number).status == 0
    settle(host.drive)


@pytest.mark.parametrize("rounds", [0, 1, 3, 10, 40])
def test_reset_in_flight(host: RmHost, rounds: int) -> None:
    """A controller reset at any moment closes the port's sessions and loses nothing of the drive's own."""
    opened = Opened(host)
    other = RmHost(host.drive, 1)
    for tag in range(2):
        opened.send(tag)
    opened.ask(0)
    host.drive.step(rounds)
    host.disable()
    assert host.registers(opened.number) == rm.RmRegisters(0, 0, 0, 0, 0, 0, 0, bytes(24))
    settle(host.drive)
    host.enable()
    host.create_queues(64)
    assert host.drive.sessions.of_port(0) == []
    again = Opened(host)
    assert again.works()
    assert other.drive.stats()["sessions"]["sessions"][0]["id"] == again.number


def test_a_deleted_queue(host: RmHost) -> None:
    """An RM_READ whose queue is deleted ends in silence; its batch can still be read."""
    opened = Opened(host)
    opened.send(0)
    opened.ask(0)
    parked(host, opened)
    host.ok(Admin.DELETE_SQ, cdw10=1)
    host.ok(Admin.DELETE_CQ, cdw10=1)
    host.poke(OUT_AT, b"\xa5" * 320)
    run(host, 1, opened)
    assert host.peek(OUT_AT, 320) == b"\xa5" * 320
    host.create_queues(64)
    assert host.receive(opened.number, 8 * 40).status == 0
    assert same(host.outputs(40, 2), opened.answer(0))
    assert host.close_session(opened.number).status == 0
    settle(host.drive)


def test_a_lost_namespace(host: RmHost) -> None:
    """Formatting the tables' namespace closes the session; who waits for a batch gets Invalid Namespace."""
    opened = Opened(host)
    opened.send(0)
    waiting = opened.ask(0)
    parked(host, opened)
    host.ok(Admin.FORMAT_NVM, 1)
    (done,) = host.wait_io(1)
    assert (done.cid, done.status) == (waiting, Status.INVALID_NAMESPACE)
    assert host.receive(opened.number, 320).status == Status.RM_NO_SESSION
    settle(host.drive)
    host.next_lba = 0
    assert Opened(host).works()


def test_an_unreadable_row(host: RmHost) -> None:
    """A row that can't be read fails its batch with its id's position; earlier and later batches answer."""
    opened = Opened(host)
    bags = opened.batches[1].bags
    bad_row = int(bags[1].indices[100])
    for batch in (opened.batches[0], opened.batches[2]):
        for some in batch.bags[1:]:
            some.indices[some.indices // 8 == bad_row // 8] = (bad_row + 8) % 48
    bags[1].indices[:100][bags[1].indices[:100] // 8 == bad_row // 8] = (bad_row + 8) % 48
    lba = 4 + bad_row // 8  # table 0 is 50 rows of 32 bytes: 4 blocks; a row of table 1 has 64 bytes
    assert host.io(Io.WRITE_UNCORRECTABLE, lba=lba).status == 0
    for tag in range(3):
        opened.send(tag)
    done = host.receive(opened.number, 320, 1)
    assert (done.status, done.dw0) == (Status.UNRECOVERED_READ, 160 + 100)
    for tag in (0, 2):
        assert host.receive(opened.number, 320, tag).status == 0
        assert same(host.outputs(40, 2), opened.answer(tag))
    assert host.registers(opened.number)[4:7] == (3, 3, 1)
    assert host.close_session(opened.number).status == 0
    settle(host.drive)


# -- beside other work


@pytest.fixture
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RmHost]:
    """By the wall clock, on flash without delays: all that takes time is computation."""
    with open_drive(tmp_path_factory.mktemp("real"), "null", clock="real", capacity_bytes=32 << 20) as drive:
        yield RmHost(drive)


def heavy() -> Graph:
    """Some 12 million multiply-adds for 64 samples: a dozen slices."""
    return cat(dense=256, bottom=(512, 128))


def test_block_io_beside_a_long_batch(real: RmHost) -> None:
    """A round computes one slice at most, so a read that comes meanwhile waits for one and no more."""
    shape = Shape(heavy(), samples=256)
    tables = real.tables(shape.graph)
    number = real.open(shape, tables)
    batch = batch_of(tables, 256, np.full((2, 256), 2), 1)
    record = real.drive.sessions_memory.record
    rows = tables[0].rows.tobytes()[:512]
    before, slices = int(record["slices"]), []
    assert real.send(number, batch.pack()).status == 0
    waiting = real.ask(number, 8 * 256)
    reads = 0
    while True:
        start = int(record["slices"])
        real.poke(OUT_AT + 8 * PAGE, bytes(512))
        cid = real.submit_io(real.sqe(Io.READ, 1, prp1=OUT_AT + 8 * PAGE))
        real.drive.step()
        done = real.reap_io()
        assert [d.status for d in done if d.cid == cid] == [0]
        assert real.peek(OUT_AT + 8 * PAGE, 512) == rows
        reads += 1
        slices.append(int(record["slices"]) - start)
        if waiting in [d.cid for d in done]:
            break
    assert max(slices) <= 1
    assert int(record["slices"]) - before > 20
    assert reads > 20
    assert same(real.outputs(256, 2), shape.answer(tables, batch))


def test_computation_waits_for_its_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the wall clock an answer waits for both: the modelled time and the computed outputs."""
    folder = tmp_path_factory.mktemp("slow")
    with open_drive(folder, "rmssd", clock="real", **FLASH, **{"nand.read_ns": 3_000_000}) as drive:
        host = RmHost(drive)
        opened = Opened(host)
        opened.send(0)
        start = drive.clock_now()
        assert host.receive(opened.number, 320).status == 0
        slot = opened.number % rm.MAX_SESSIONS * rm.MAX_DEPTH
        finish = int(drive.sessions_memory.batches[slot]["finish"])
        assert drive.clock_now() >= finish > start
        assert same(host.outputs(40, 2), opened.answer(0))
        assert drive.sessions_memory.batches[slot]["state"] == FREE


def test_lookups_beside_sessions(host: RmHost) -> None:
    """Both ports have sessions at once; each sees its own alone."""
    opened = Opened(host)
    other = RmHost(host.drive, 1)
    other.next_lba = 1000
    theirs = Opened(other)
    for tag in range(2):
        opened.send(tag)
        theirs.send(tag)
    for tag in range(2):
        assert other.receive(theirs.number, 320, tag).status == 0
        assert same(other.outputs(40, 2), theirs.answer(tag))
        assert host.receive(opened.number, 320, tag).status == 0
        assert same(host.outputs(40, 2), opened.answer(tag))
    assert host.registers(theirs.number).session == 0
    assert other.registers(theirs.number).session == theirs.number
