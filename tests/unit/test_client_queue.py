"""The client's queue pairs, with the drive's side played entry by entry in the client's own memory."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emucsd.buffers import SharedMemory
from emucsd.errors import (
    ConnectionLost,
    DriveTimeout,
    InvalidArgument,
    LbaOutOfRange,
    ProtocolError,
    QueueFull,
    UnrecoveredRead,
)
from emucsd.link import Link
from emucsd.outcome import Columns
from emucsd.passthrough import entry, run
from emucsd.queue import Queue
from emucsd.vfio import VfioUser
from emucsd_wire.nvme import DNR, PAGE, SQE, Io, Status
from tests.unit.client_peer import Peer

ENTRIES = 8
ASLEEP = 5  # of ClockWords


class Bench:
    """A client queue (id 1) and the peer that plays its drive."""

    def __init__(self, folder: Path, *, mapped: bool, entries: int = ENTRIES) -> None:
        self.peer = Peer(folder / "cntrl", mapped=mapped)
        self.link = Link(VfioUser(folder / "cntrl", timeout=5), SharedMemory(8 << 20))
        self.queue = Queue(self.link, 1, entries)
        self.queue.timeout = 10
        self.seen = 0  # entries fetched
        self.done = 0  # completions posted

    @property
    def tail(self) -> int:
        """The submission tail doorbell."""
        return int(self.peer.doorbells[2])

    @property
    def head(self) -> int:
        """The completion head doorbell."""
        return int(self.peer.doorbells[3])

    def complete(self, cid: int, status: int = 0, result: int = 0) -> None:
        """Post the next completion."""
        turn, place = divmod(self.done, self.queue.entries)
        self.peer.post(self.queue.cq_address, place, cid, phase=1 - turn % 2, status=status, result=result)
        self.done += 1

    def serve(self, count: int, answer: Callable[[int], int] = lambda lba: 0, *, backwards: int = 1) -> None:
        """Be a drive for ``count`` commands: fetch, answer with a status, ``backwards`` at a time in reverse order."""
        entries = self.queue.entries
        waiting: list[tuple[int, int]] = []
        while self.done < count:
            while self.seen % entries != self.tail:
                sqe = self.peer.entry(self.queue.sq_address, self.seen % entries)
                waiting.append((sqe.cid, sqe.cdw10))
                self.seen += 1
            time.sleep(0)  # let go of the GIL
            if len(waiting) >= min(backwards, count - self.done):
                for cid, lba in reversed(waiting):
                    self.complete(cid, answer(lba))
                waiting.clear()

    def close(self) -> None:
        self.queue.close()
        self.link.close()
        self.peer.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, mapped=True)
    yield made
    made.close()


@pytest.fixture
def trapped(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, mapped=False)
    yield made
    made.close()


def in_thread(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_entry_and_doorbell(bench: Bench) -> None:
    """A command lies in the ring as given, with our identifier, and the tail doorbell says so."""
    command = entry(Io.WRITE, 3, cdw10=0x11111111, cdw11=0x2222, cdw12=0x40000007, cdw13=5, cdw14=6, cdw15=7, cdw2=9)
    token = bench.queue.submit_one(command)
    assert bench.tail == 1
    assert bench.peer.entry(bench.queue.sq_address, 0) == command._replace(cid=token)


@pytest.mark.parametrize(
    ("offset", "size", "pages"),
    [(0, 512, 0), (0, PAGE, 0), (512, PAGE, 1), (0, 2 * PAGE, 1), (4, 2 * PAGE, 2), (0, 256 * PAGE, 255)],
)
def test_prps(bench: Bench, offset: int, size: int, pages: int) -> None:
    """Data are described by PRP1, PRP2, and a list in a page of the command's own where two do not do (Base 4.1.1)."""
    buffer = bench.link.memory.array(offset + size)[offset:]
    token = bench.queue.submit_one(entry(Io.READ, 1), buffer)
    sqe = bench.peer.entry(bench.queue.sq_address, 0)
    start = buffer.ctypes.data
    expected = [(start & -PAGE) + PAGE * (index + 1) for index in range(pages)]
    assert sqe.prp1 == start
    if pages == 0:
        assert sqe.prp2 == 0
    elif pages == 1:
        assert sqe.prp2 == expected[0]
    else:
        assert sqe.prp2 % PAGE == 0
        assert bench.peer.memory(sqe.prp2, 8 * pages).view("<u8").tolist() == expected
    bench.complete(token)


def test_completion(bench: Bench) -> None:
    """Status, dwords 0 and 1, and times of a completion reach whoever waits for its token."""
    token = bench.queue.submit_one(entry(Io.READ, 1))
    bench.complete(token, Status.LBA_OUT_OF_RANGE | DNR, 0x5_0000_0004)
    got = bench.queue.wait(token)
    assert (got.token, got.status, got.result) == (token, Status.LBA_OUT_OF_RANGE | DNR, 0x5_0000_0004)
    assert 0 < got.latency < 60e9
    with pytest.raises(LbaOutOfRange, match=r"what I did: LBA_OUT_OF_RANGE \(SCT 0x0, SC 0x80, dw0 0x4\)") as caught:
        got.check("what I did")
    assert caught.value.dnr
    assert bench.queue.outstanding == 0


def test_poll_takes_what_is_there(bench: Bench) -> None:
    """poll() without a wish never waits, and brings completions in any order."""
    tokens = [bench.queue.submit_one(entry(Io.READ, 1), ring=False) for _ in range(3)]
    assert bench.tail == 0
    bench.queue.flush()
    assert bench.tail == 3
    assert bench.queue.poll() == []
    bench.complete(tokens[2])
    bench.complete(tokens[0])
    assert {c.token for c in bench.queue.poll()} == {tokens[0], tokens[2]}
    bench.complete(tokens[1])
    assert [c.token for c in bench.queue.poll(want=1)] == [tokens[1]]
    assert bench.queue.poll(want=5) == []


def test_queue_full(bench: Bench) -> None:
    """With entries - 1 commands out the next is refused by name; one completion makes room for one."""
    tokens = [bench.queue.submit_one(entry(Io.READ, 1)) for _ in range(ENTRIES - 1)]
    with pytest.raises(QueueFull, match="all 7 command identifiers"):
        bench.queue.submit_one(entry(Io.READ, 1))
    bench.complete(tokens[3])
    bench.queue.wait(tokens[3])
    assert bench.queue.submit_one(entry(Io.READ, 1)) == tokens[3]


def test_wraps(bench: Bench) -> None:
    """Rings wrap with the phase turning over, many times round."""
    for index in range(5 * ENTRIES):
        token = bench.queue.submit_one(entry(Io.READ, 1, cdw10=index))
        assert bench.peer.entry(bench.queue.sq_address, index % ENTRIES).cdw10 == index
        bench.complete(token, result=index)
        assert bench.queue.wait(token).result == index
    assert bench.head == (5 * ENTRIES - 1) % ENTRIES  # rung with the next submission, not by itself


@pytest.mark.parametrize(("depth", "burst"), [(1, 1), (3, 1), (7, 2), (7, 7), (100, None)])
def test_batch(bench: Bench, depth: int, burst: int | None) -> None:
    """A batch of any depth and burst runs whole, each status at its command's place, whatever the order."""
    count = 100
    drive = in_thread(
        lambda: bench.serve(
            count, lambda lba: Status.UNRECOVERED_READ if lba % 10 == 3 else 0, backwards=min(depth, ENTRIES - 1)
        )
    )
    columns = Columns(entry(Io.READ, 1), lbas=np.arange(count), submitted=True, results=True)
    outcome = bench.queue.submit(columns, depth=depth, burst=burst)
    drive.join(10)
    assert outcome.statuses.tolist() == [Status.UNRECOVERED_READ if i % 10 == 3 else 0 for i in range(count)]
    assert (outcome.failed, outcome.first_failed) == (10, 3)
    assert outcome.latencies is not None
    assert (outcome.latencies > 0).all()
    with pytest.raises(
        UnrecoveredRead, match=r"opcode 0x02 nsid 1 lba 3 blocks 1 \(command 3 of the batch\)"
    ) as caught:
        outcome.check()
    assert caught.value.index == 3


def test_batch_columns(bench: Bench) -> None:
    """Opcode, LBA, blocks and data of each command come from its columns; the template gives the rest."""
    data = bench.link.memory.array((4, PAGE))
    blocks = np.array([1, 2, 3, 65536])
    columns = Columns(
        entry(Io.READ, 5, cdw12=1 << 30, cdw13=77),
        opcodes=[Io.READ, Io.WRITE, Io.READ, Io.COMPARE],
        lbas=np.array([1, 2, 1 << 40, 4]),
        blocks=blocks,
        addresses=data.ctypes.data + np.arange(4) * PAGE,
        sizes=PAGE,
    )
    drive = in_thread(lambda: bench.serve(4, backwards=4))
    bench.queue.submit(columns, depth=4).check()
    drive.join(10)
    entries = [bench.peer.entry(bench.queue.sq_address, i) for i in range(4)]
    assert [e.opcode for e in entries] == [Io.READ, Io.WRITE, Io.READ, Io.COMPARE]
    assert [e.cdw10 | e.cdw11 << 32 for e in entries] == [1, 2, 1 << 40, 4]
    assert [e.cdw12 for e in entries] == [1 << 30 | int(b) - 1 for b in blocks]
    assert [e.prp1 for e in entries] == [row.ctypes.data for row in data]
    assert {(e.nsid, e.cdw13) for e in entries} == {(5, 77)}


def test_batch_of_entries(bench: Bench) -> None:
    """A batch may be whole entries, one a command: any command can be batched."""
    table = np.frombuffer(b"".join(SQE.pack(entry(0x81, 1, cdw15=index)) for index in range(20)), SQE.dtype)
    drive = in_thread(lambda: bench.serve(20))
    assert bench.queue.submit(Columns(table), depth=2).failed == 0
    drive.join(10)
    assert bench.peer.entry(bench.queue.sq_address, 19 % ENTRIES).cdw15 == 19


def test_one_doorbell_a_burst(bench: Bench) -> None:
    """Doorbells are rung once a burst, not once a command; both of the pair in one go."""

    def drive() -> None:
        while bench.done < 70:
            while (bench.tail - bench.seen) % ENTRIES < ENTRIES - 1:
                pass
            place, bench.seen, bench.done = bench.done, bench.seen + 7, bench.done + 7
            assert bench.head == place % ENTRIES
            for index in reversed(range(place, place + 7)):  # the first is posted last: a burst appears as one
                cid = bench.peer.entry(bench.queue.sq_address, index % ENTRIES).cid
                bench.peer.post(bench.queue.cq_address, index % ENTRIES, cid, phase=1 - index // ENTRIES % 2)

    thread = in_thread(drive)
    bench.queue.submit(Columns(entry(Io.READ, 1), lbas=np.arange(70)), depth=7, burst=7)
    thread.join(10)
    assert bench.queue.counters == {"commands": 70, "doorbells": 11, "wakes": 0}  # the last for the head alone


def test_paced_batch(bench: Bench) -> None:
    """With arrivals no command is submitted early, however idle the drive is."""
    arrivals = np.arange(20) * 200_000
    drive = in_thread(lambda: bench.serve(20))
    start = bench.link.clock.now
    outcome = bench.queue.submit(Columns(entry(Io.READ, 1), arrivals=arrivals, submitted=True), depth=4)
    drive.join(10)
    assert outcome.submitted is not None
    assert (outcome.submitted - start >= arrivals).all()


def test_sleeping_drive_is_woken(bench: Bench) -> None:
    """A doorbell that finds the drive asleep is repeated as a posted message; one that does not is not."""
    bench.queue.submit_one(entry(Io.READ, 1))
    bench.peer.words[ASLEEP] = 1
    bench.queue.submit_one(entry(Io.READ, 1))
    assert bench.peer.await_posted(1) == [(0x1008, b"\2\0\0\0")]
    assert bench.queue.counters["wakes"] == 1


def test_trapped_doorbells(trapped: Bench) -> None:
    """Without a mapped page every doorbell is a posted message, tails and heads."""
    token = trapped.queue.submit_one(entry(Io.READ, 1))
    assert trapped.peer.await_posted(1) == [(0x1008, b"\1\0\0\0")]
    trapped.complete(token)
    trapped.queue.wait(token)
    trapped.queue.submit_one(entry(Io.READ, 1))
    assert trapped.peer.await_posted(3)[1:] == [(0x100C, b"\1\0\0\0"), (0x1008, b"\2\0\0\0")]


def test_trapped_batch(trapped: Bench) -> None:
    """Batches run over messages too."""
    drive = in_thread(lambda: trapped.serve(50))
    assert trapped.queue.submit(Columns(entry(Io.READ, 1), lbas=np.arange(50)), depth=5).failed == 0
    drive.join(10)


@pytest.mark.parametrize("cid", [5, 6, 7, 0xFFFF])
def test_unknown_identifier(bench: Bench, cid: int) -> None:
    """A completion for a command that is not out is a bug of the drive, and says so."""
    token = bench.queue.submit_one(entry(Io.READ, 1))
    assert token not in (5, 6, 7)
    bench.complete(cid)
    with pytest.raises(ProtocolError, match="names no command that is out"):
        bench.queue.wait(token)


def test_silent_drive(bench: Bench) -> None:
    """A drive that does not answer gives DriveTimeout; its late answer frees the identifier and harms nobody."""
    data = bench.link.memory.array(PAGE)
    with pytest.raises(DriveTimeout, match=r"completed nothing for 0\.02 s with 1 commands out"):
        run(bench.queue, entry(Io.READ, 1), out=data, timeout=0.02)
    free = bench.link.memory.free_bytes
    del data
    assert bench.link.memory.free_bytes == free  # the drive may still write there
    bench.complete(0)
    token = bench.queue.submit_one(entry(Io.READ, 1))
    bench.complete(token)
    assert bench.queue.wait(token).token == token
    assert bench.queue.outstanding == 0


def test_silent_drive_in_a_batch(bench: Bench) -> None:
    """A batch that is not answered raises, and the queue then refuses batches until a reset."""
    bench.queue.timeout = 0.02
    with pytest.raises(DriveTimeout, match="with 4 commands out"):
        bench.queue.submit(Columns(entry(Io.READ, 1), lbas=np.arange(50)), depth=4)
    with pytest.raises(DriveTimeout, match="reset"):
        bench.queue.submit(Columns(entry(Io.READ, 1)))


def test_interrupted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a batch that waits, within a slice; what was out is waited for, and the queue goes on."""

    def interrupt_then_serve() -> None:
        while bench.tail != 4:
            time.sleep(0)
        signal.raise_signal(signal.SIGINT)
        interrupted.wait(10)
        for cid in range(4):
            bench.complete(cid)
        bench.seen = 4

    interrupted = threading.Event()
    stop = bench.queue._stop

    def noted(*arguments: Any) -> None:
        interrupted.set()
        stop(*arguments)

    monkeypatch.setattr(bench.queue, "_stop", noted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        drive = in_thread(interrupt_then_serve)
        with pytest.raises(KeyboardInterrupt):
            bench.queue.submit(Columns(entry(Io.READ, 1), lbas=np.arange(50)), depth=4)
        drive.join(10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert bench.queue.outstanding == 0
    drive = in_thread(lambda: bench.serve(14))
    assert bench.queue.submit(Columns(entry(Io.READ, 1), lbas=np.arange(10)), depth=4).failed == 0
    drive.join(10)


def test_hang_up_in_a_batch(bench: Bench) -> None:
    """A drive that hangs up ends a waiting batch within a slice, not at its timeout."""

    def serve_and_die() -> None:
        bench.serve(20)
        bench.peer.close()

    drive = in_thread(serve_and_die)
    with pytest.raises(ConnectionLost):
        bench.queue.submit(Columns(entry(Io.READ, 1), lbas=np.arange(50)), depth=4)
    drive.join(10)


def test_bad_arguments(bench: Bench) -> None:
    """What cannot be sent is refused before anything is."""
    with pytest.raises(InvalidArgument, match=r"drive\.alloc"):
        bench.queue.submit_one(entry(Io.READ, 1), np.zeros(PAGE, np.uint8))
    with pytest.raises(InvalidArgument, match="depth 0"):
        bench.queue.submit(Columns(entry(Io.READ, 1)), depth=0)
    with pytest.raises(InvalidArgument, match="different lengths"):
        Columns(entry(Io.READ, 1), lbas=[1, 2], blocks=[1, 2, 3])
    with pytest.raises(InvalidArgument, match="1 to 65536"):
        Columns(entry(Io.READ, 1), blocks=[0])
    with pytest.raises(InvalidArgument, match="go together"):
        Columns(entry(Io.READ, 1), sizes=[4096])
    with pytest.raises(InvalidArgument, match="whole numbers"):
        Columns(entry(Io.READ, 1), lbas=[0.5])
    with pytest.raises(InvalidArgument, match="32-bit"):
        entry(Io.READ, 1, cdw10=1 << 32)
    with pytest.raises(InvalidArgument, match="the dwords of a command"):
        entry(Io.READ, 1, cdw9=1)
    assert bench.tail == 0
