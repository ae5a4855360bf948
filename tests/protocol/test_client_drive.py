"""The direct client against a real drive process: every call of the library, on the wire."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd import Completion, Drive, Namespace
from emucsd.direct import Direct
from emucsd.errors import (
    CompareFailure,
    ControlError,
    DriveBusy,
    DriveDied,
    DriveNotFound,
    InvalidArgument,
    InvalidCommand,
    InvalidNamespace,
    LbaOutOfRange,
    NvmeError,
    StartFailed,
    UnrecoveredRead,
)
from emucsd.passthrough import entry
from emucsd_wire.features import Feature
from emucsd_wire.identify import Cns
from emucsd_wire.nvme import Admin, Io, Status

SIZE = 64 << 20
ASLEEP = 5  # ClockWords


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("null", size=SIZE, queues=4, memory=64 << 20) as started:
        yield started


@pytest.fixture
def space(drive: Drive) -> Namespace:
    return drive.namespace(1)


def noise(size: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


# -- bring-up ----------------------------------------------------------------------------------------------------------


def test_identifies(drive: Drive, space: Namespace) -> None:
    """Bring-up finds an I/O controller with one namespace of the size asked for."""
    assert drive.identity.cntrltype == 1
    assert drive.identity.sqes == 0x66
    assert drive.max_transfer == 1 << 20
    assert [each.nsid for each in drive.namespaces] == [1]
    assert space.size == SIZE
    assert len(drive.queues) == 4


def test_most_queues() -> None:
    """64 queue pairs of 1024 entries can be had, and each of them works."""
    with Drive.start("null", size=SIZE, queues=64, depth=1023) as started:
        space = started.namespace(1)
        buffers = started.alloc((1023, space.lba_bytes))
        for queue in started.queues:
            assert queue.entries == 1024
            space.submit(Io.READ, np.arange(1023), buffers, depth=1023, queue=queue).check()


def test_too_many_queues(drive: Drive) -> None:
    """More queues than the drive has are refused by name."""
    with pytest.raises(InvalidArgument, match="65 queue pairs"):
        Drive.open(drive.folder, port=1, queues=65)


def test_one_client_a_port(drive: Drive) -> None:
    """A second client of a port is told that it is busy; the other port takes one, and sees the same data."""
    with pytest.raises(DriveBusy, match="serves another client"):
        Drive.open(drive.folder)
    drive.namespace(1).write(0, noise(4096, 8))
    with Drive.open(drive.folder, port=1) as other:
        assert (other.namespace(1).read(0, 4096 // other.namespace(1).lba_bytes) == noise(4096, 8)).all()


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 7, 8, 16, 17, 2048, 2049, 8192])
@pytest.mark.parametrize("shared", [True, False])
def test_reads_what_was_written(drive: Drive, space: Namespace, blocks: int, shared: bool) -> None:
    """Any number of blocks at any place comes back, in place or staged, in one command or many."""
    size = blocks * space.lba_bytes
    data = noise(size, blocks)
    if shared:
        source, target = drive.alloc(size + 64)[64:], drive.alloc(size + 12)[12:]
        source[:] = data
        assert drive.holds(source)
        space.write(5, source)
        assert space.read(5, blocks, target) is target
        assert (target == data).all()
    else:
        space.write(5, data.tobytes())
        assert (space.read(5, blocks) == data).all()
        assert (space.read(5, blocks, np.empty((blocks, space.lba_bytes), np.uint8)).reshape(-1) == data).all()


def test_typed_arrays(space: Namespace) -> None:
    """Arrays of any dtype go in and out by their bytes."""
    table = np.arange(4096, dtype=np.float32).reshape(64, 64)
    space.write(100, table)
    back = np.empty_like(table)
    space.read(100, table.nbytes // space.lba_bytes, back)
    assert (back == table).all()


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "zero", "trim", "copy", "read"]), st.integers(0, 63), st.integers(1, 40)),
        min_size=1,
        max_size=25,
    )
)
def test_like_a_plain_array(drive: Drive, steps: list[tuple[str, int, int]]) -> None:
    """Any sequence of commands leaves the drive equal to an array that was treated alike."""
    space = drive.namespace(1)
    base, unit = 4096, space.lba_bytes
    space.write_zeroes(base, 256)
    model = np.zeros((256, unit), np.uint8)
    for number, (step, at, blocks) in enumerate(steps):
        if step == "write":
            model[at : at + blocks] = noise(blocks * unit, number).reshape(-1, unit)
            space.write(base + at, model[at : at + blocks], fua=number % 2 == 0)
        elif step == "zero":
            model[at : at + blocks] = 0
            space.write_zeroes(base + at, blocks, deallocate=number % 2 == 0)
        elif step == "trim":
            # a drive may keep what shares a page with other data: whole pages are what reads as zeros
            low, high = -(-at // 8) * 8, (at + blocks) // 8 * 8
            if high > low:
                model[low:high] = 0
                space.deallocate(base + low, high - low)
        elif step == "copy":
            model[128 + at : 128 + at + blocks] = model[at : at + blocks].copy()
            space.copy(base + at, base + 128 + at, blocks)
        else:
            assert (space.read(base + at, blocks) == model[at : at + blocks].reshape(-1)).all()
    assert (space.read(base, 256) == model.reshape(-1)).all()


def test_compare(space: Namespace) -> None:
    """Compare is silent about equal data and typed about other data."""
    data = noise(4096)
    space.write(0, data)
    space.compare(0, data)
    data[77] ^= 1
    with pytest.raises(CompareFailure, match=r"COMPARE nsid 1 lba 0 blocks \d+: COMPARE_FAILURE \(SCT 0x2, SC 0x85\)"):
        space.compare(0, data)


def test_flush_and_verify(space: Namespace) -> None:
    """Flush and Verify of good data succeed."""
    space.write(0, noise(space.lba_bytes * 64))
    space.flush()
    space.verify(0, 64)


def test_uncorrectable(space: Namespace) -> None:
    """Blocks marked uncorrectable fail reads and verifies until they are written again."""
    space.write(24, noise(8 * space.lba_bytes))
    space.write_uncorrectable(25, 2)
    for attempt in (lambda: space.read(24, 8), lambda: space.verify(24, 8)):
        with pytest.raises(UnrecoveredRead, match="UNRECOVERED_READ"):
            attempt()
    space.read(27, 5)
    space.write(25, bytes(2 * space.lba_bytes))
    space.read(24, 8)


def test_out_of_range(space: Namespace) -> None:
    """Blocks past the end are refused with the status, and the text says where the end is told."""
    with pytest.raises(LbaOutOfRange, match=r"namespace\.blocks") as caught:
        space.read(space.blocks - 1, 2)
    assert (caught.value.status, caught.value.sct, caught.value.sc) == (0x80, 0, 0x80)
    assert caught.value.name == "LBA_OUT_OF_RANGE"
    space.read(space.blocks - 1, 1)


def test_bad_arguments(drive: Drive, space: Namespace) -> None:
    """What cannot be meant is refused before it is sent."""
    with pytest.raises(InvalidArgument, match="no whole number of blocks"):
        space.write(0, b"short")
    with pytest.raises(InvalidArgument, match="out has 10 bytes"):
        space.read(0, 1, np.empty(10, np.uint8))
    with pytest.raises(InvalidArgument, match="at least one block"):
        space.read(0, 0)
    with pytest.raises(InvalidArgument, match=r"use drive\.alloc"):
        space.submit(Io.READ, [0], np.empty(space.lba_bytes, np.uint8))
    with pytest.raises(InvalidArgument, match="fit in one transfer"):
        space.submit(Io.READ, [0], drive.alloc(4096), blocks=5000)
    with pytest.raises(InvalidArgument, match="port 2"):
        Drive.open(drive.folder, port=2)
    with pytest.raises(InvalidNamespace):
        drive.namespace(7)


# -- batches and pipelines ---------------------------------------------------------------------------------------------


def test_batch(drive: Drive, space: Namespace) -> None:
    """A mixed batch: data land where they should, and each bad command has its own status."""
    count, unit = 600, space.lba_bytes
    data = drive.alloc((count, unit))
    data[:] = noise(count * unit).reshape(count, unit)
    order = np.random.default_rng(3).permutation(count)
    space.submit(Io.WRITE, 1000 + np.arange(count), data, depth=64).check()
    back = drive.alloc((count, unit))
    lbas = 1000 + order
    lbas[::100] = space.blocks
    outcome = space.submit(Io.READ, lbas, back, depth=50)
    assert outcome.failed == 6
    assert set(np.flatnonzero(outcome.statuses)) == set(range(0, count, 100))
    assert set(outcome.statuses.tolist()) == {0, Status.LBA_OUT_OF_RANGE}
    good = outcome.statuses == 0
    assert (back[good] == data[order[good]]).all()
    assert outcome.latencies is not None
    assert (outcome.latencies > 0).all()
    with pytest.raises(LbaOutOfRange, match="command 0 of the batch"):
        outcome.check()


def test_mixed_opcodes(drive: Drive, space: Namespace) -> None:
    """One batch may mix reads and writes."""
    unit = space.lba_bytes
    opcodes = np.array([Io.WRITE, Io.READ] * 20)
    buffers = drive.alloc((40, unit))
    buffers[0::2] = np.arange(20)[:, None]
    space.submit(opcodes, np.repeat(np.arange(20), 2), buffers, depth=1).check()
    assert (buffers[1::2] == buffers[0::2]).all()


def test_pipeline(drive: Drive, space: Namespace) -> None:
    """Single commands in flight are told apart by their tokens."""
    space.write(0, np.repeat(np.arange(10, dtype=np.uint8), space.lba_bytes))
    buffers = drive.alloc((10, space.lba_bytes))
    queue = drive.queue
    tokens = {queue.submit_one(entry(Io.READ, 1, cdw10=lba), buffers[lba]): lba for lba in range(10)}
    done: list[Completion] = []
    while len(done) < 10:
        done += queue.poll(want=1)
    assert {c.token for c in done} == set(tokens)
    assert buffers[:, 0].tolist() == list(range(10))


def test_threads(drive: Drive, space: Namespace) -> None:
    """Several threads drive a queue each, at once, without seeing each other's data."""
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            unit, at = space.lba_bytes, 20_000 + 1000 * number
            mine = drive.alloc((200, unit))
            mine[:] = number
            for turn in range(5):
                mine[0] = turn
                space.submit(Io.WRITE, at + np.arange(200), mine, depth=8).check()
                back = space.read(at, 200).reshape(200, unit)
                assert (back == mine).all()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []


def test_sleeping_drive_wakes(drive: Drive, space: Namespace) -> None:
    """A drive that went to sleep answers the next command: the doorbell is repeated as a message."""
    deadline = time.monotonic() + 10
    attachment = drive._attachment
    assert isinstance(attachment, Direct)
    while attachment.link.read_word(ASLEEP) != 1:
        assert time.monotonic() < deadline, "the drive never slept"
    wakes = drive.queue.counters["wakes"]
    space.read(0, 1)
    assert drive.queue.counters["wakes"] == wakes + 1


# -- admin -------------------------------------------------------------------------------------------------------------


def test_passthrough(drive: Drive) -> None:
    """Any command goes through, with data either way, checked or not."""
    answer = drive.passthrough("admin", Admin.IDENTIFY, length=4096, cdw10=Cns.CONTROLLER)
    assert answer.data[77] == drive.identity.mdts
    data = noise(drive.namespace(1).lba_bytes)
    drive.passthrough("io", Io.WRITE, 1, data=data, cdw10=40)
    assert (drive.passthrough("io", Io.READ, 1, length=len(data), cdw10=40).data == data).all()
    with pytest.raises(InvalidCommand, match=r"admin opcode 0xff nsid 0x0: INVALID_OPCODE .*log page 5"):
        drive.passthrough("admin", 0xFF)
    assert drive.passthrough("admin", 0xFF, check=False).status & 0x7FF == Status.INVALID_OPCODE
    with pytest.raises(InvalidArgument, match="one way"):
        drive.passthrough("admin", 0xC2, data=b"1234", length=4)


def test_features(drive: Drive) -> None:
    """Features are read and set; one that does not exist is a typed error."""
    assert drive.admin.get_feature(Feature.NUMBER_OF_QUEUES).dw0 & 0xFFFF >= 3
    drive.admin.set_feature(Feature.ASYNC_EVENTS, 0x100)
    assert drive.admin.get_feature(Feature.ASYNC_EVENTS).dw0 == 0x100
    moment = drive.admin.get_feature(Feature.TIMESTAMP, length=8)
    assert len(moment.data) == 8
    with pytest.raises(NvmeError):
        drive.admin.get_feature(0x7E)


def test_logs(drive: Drive, space: Namespace) -> None:
    """SMART counts what was done; a long log comes in pieces."""
    before = drive.admin.smart()
    space.submit(Io.READ, np.arange(50), drive.alloc(space.lba_bytes), depth=5).check()
    after = drive.admin.smart()
    assert after.host_reads == before.host_reads + 50
    effects = drive.admin.log_page(0x05, 4096)
    assert effects[4 * Admin.IDENTIFY] & 1
    assert drive.admin.log_page(0x05, 1024, offset=1024) == effects[1024:2048]
    with pytest.raises(NvmeError, match="INVALID_LOG_PAGE"):
        drive.admin.log_page(0x7F, 64)


def test_async_event_times_out(drive: Drive) -> None:
    """A command that is never answered can be given up; the drive stays usable."""
    with pytest.raises(TimeoutError):
        drive.passthrough("admin", Admin.ASYNC_EVENT_REQUEST, timeout=0.05)
    assert drive.admin.active_namespaces() == [1]


def test_namespaces_come_and_go() -> None:
    """Namespaces are formatted, deleted, created, attached and detached, and hold their data."""
    with Drive.start("null", size=SIZE) as started:
        admin = started.admin
        started.namespace(1).write(0, noise(4096))
        admin.format(1, 4096)
        space = started.namespace(1)
        assert (space.lba_bytes, space.size) == (4096, SIZE)
        assert not space.read(0, 1).any()
        admin.detach(1, 1, 2)
        assert started.namespaces == []
        admin.delete_namespace(1)
        one = started.create_namespace(1000, 4096)
        two = started.create_namespace(2000, 512)
        assert {(s.nsid, s.blocks, s.lba_bytes) for s in started.namespaces} == {
            (one.nsid, 1000, 4096),
            (two.nsid, 2000, 512),
        }
        one.write(0, np.full(4096, 1, np.uint8))
        two.write(0, np.full(512, 2, np.uint8))
        assert (one.read(0, 1)[0], two.read(0, 1)[0]) == (1, 2)
        with pytest.raises(InvalidArgument, match="this drive formats"):
            started.create_namespace(10, 1024)


def test_write_cache() -> None:
    """A drive with a DRAM buffer has a volatile write cache, which can be switched."""
    with Drive.start("null", size=SIZE, settings={"buffer.pages": 64}) as started:
        assert started.identity.vwc & 1
        assert started.admin.write_cache(False) is False
        assert started.admin.write_cache(True) is True
        started.namespace(1).write(0, noise(4096))
        started.namespace(1).flush()


def test_control(drive: Drive) -> None:
    """The control API answers, and refuses what it does not know by kind."""
    assert drive.process is not None
    assert drive.control.status()["pid"] == drive.process.pid
    assert drive.control.stats()
    with pytest.raises(ControlError) as caught:
        drive.control.call("dance")
    assert caught.value.kind == "RequestError"


# -- life --------------------------------------------------------------------------------------------------------------


def test_reset() -> None:
    """A controller reset takes the queues, not the data."""
    with Drive.start("null", size=SIZE, queues=2) as started:
        space = started.namespace(1)
        space.write(3, np.full(space.lba_bytes, 9, np.uint8))
        old = started.queue
        started.reset()
        assert started.queue is not old
        assert space.read(3, 1)[0] == 9


def test_store_is_kept(tmp_path: Path) -> None:
    """A drive with a store of its own has its data again after a stop, and flushed data after kill -9."""
    store = tmp_path / "store"
    with Drive.start("null", size=SIZE, store=store) as started:
        started.namespace(1).write(0, noise(8192))
    with Drive.start("null", size=SIZE, store=store) as started:
        space = started.namespace(1)
        assert (space.read(0, 8192 // space.lba_bytes) == noise(8192)).all()
        space.write(100, noise(8192, 5))
        space.flush()
        assert started.process is not None
        started.process.kill()
        with pytest.raises(DriveDied, match="ended by signal 9") as caught:
            space.read(0, 1)
        assert caught.value.exit_status == -9
    with Drive.start("null", size=SIZE, store=store) as started:
        assert (started.namespace(1).read(100, 8192 // space.lba_bytes) == noise(8192, 5)).all()


def test_dies_in_a_batch() -> None:
    """A drive killed in the middle of a batch is found out at once, and said so."""
    with Drive.start("null", size=SIZE) as started:
        space = started.namespace(1)
        buffers = started.alloc((8, space.lba_bytes))
        assert started.process is not None
        killer = threading.Timer(0.2, started.process.kill)
        killer.start()

        def load() -> None:
            while True:
                space.submit(Io.READ, np.arange(20_000) % 100, buffers, depth=8).check()

        with pytest.raises(DriveDied):
            load()
        killer.join()


def test_temporary_store_goes() -> None:
    """A drive without a store leaves nothing behind."""
    with Drive.start("null", size=SIZE) as started:
        assert started.process is not None
        store, runtime = started.process.store, started.process.runtime
        assert store.is_dir()
    assert not store.exists()
    assert not runtime.exists()


def test_cannot_start() -> None:
    """A drive that cannot start says why, with the command to repeat."""
    with pytest.raises(StartFailed, match=r"(?s)no-such-profile.*emucsd_femu serve"):
        Drive.start("no-such-profile")


def test_not_there(tmp_path: Path) -> None:
    """Opening a drive that nobody serves says how to start one."""
    with pytest.raises(DriveNotFound, match="emucsd up"):
        Drive.open(tmp_path)


def test_trapped_doorbells() -> None:
    """Everything works over messages alone, where the drive maps no doorbells."""
    with Drive.start("null", size=SIZE, doorbells="trapped") as started:
        space = started.namespace(1)
        space.write(0, noise(1 << 20))
        assert (space.read(0, (1 << 20) // space.lba_bytes) == noise(1 << 20)).all()
        space.submit(Io.READ, np.arange(500), started.alloc((16, space.lba_bytes)), depth=16).check()
