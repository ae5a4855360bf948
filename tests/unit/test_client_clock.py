"""The host's side of virtual time, with the drive's side of the grant protocol played by the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from emucsd.buffers import SharedMemory
from emucsd.clock import RealClock
from emucsd.errors import DriveTimeout, InvalidArgument
from emucsd.link import Link
from emucsd.outcome import Columns
from emucsd.passthrough import entry
from emucsd.queue import Queue
from emucsd.vfio import VfioUser
from emucsd.virtual import VirtualClock
from emucsd_wire.nvme import Io
from tests.unit.client_peer import Peer

MODE, HOST_NOW, WAIT, GRANTED, DRIVE_NOW, ASLEEP, ATTACHED = range(7)
ENTRIES = 16
LATENCY = 1000


class Simulated:
    """A drive on a virtual clock: command ``n`` takes LATENCY x (1 + n mod 3) ns of its time."""

    def __init__(self, folder: Path, queues: int, *, mapped: bool) -> None:
        self.peer = Peer(folder / "cntrl", mapped=mapped)
        self.peer.words[MODE] = 1
        self.link = Link(VfioUser(folder / "cntrl", timeout=5), SharedMemory(8 << 20))
        self.queues = [Queue(self.link, qid, ENTRIES) for qid in range(1, queues + 1)]
        for queue in self.queues:
            queue.timeout = 10
        self.now = 0
        self.due: list[tuple[int, int, int, int]] = []  # time, order, queue, cid
        self.seen = [0] * queues
        self.done = [0] * queues
        self.order = 0
        self.grants = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        words = self.peer.words
        while not self._stop.is_set():
            if words[WAIT] != words[GRANTED]:
                self.grants += 1
                self._fetch()
                self._go(int(words[HOST_NOW]))
                words[DRIVE_NOW] = self.now
                words[GRANTED] = words[WAIT]
            else:
                time.sleep(0)  # let go of the GIL

    def _fetch(self) -> None:
        for number, queue in enumerate(self.queues):
            while self.seen[number] % ENTRIES != self.peer.doorbells[2 * queue.qid]:
                cid = self.peer.entry(queue.sq_address, self.seen[number] % ENTRIES).cid
                self.due.append((self.now + LATENCY * (1 + self.order % 3), self.order, number, cid))
                self.seen[number] += 1
                self.order += 1
        self.due.sort()

    def _go(self, host_now: int) -> None:
        """To the next moment with completions, but not past what the host is thinking to."""
        until = host_now if host_now > self.now else self.due[0][0] if self.due else self.now
        self.now = min(until, self.due[0][0]) if self.due else until
        while self.due and self.due[0][0] <= self.now:
            _, _, number, cid = self.due.pop(0)
            turn, place = divmod(self.done[number], ENTRIES)
            self.peer.post(self.queues[number].cq_address, place, cid, phase=1 - turn % 2)
            self.done[number] += 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        for queue in self.queues:
            queue.close()
        self.link.close()
        self.peer.close()


Make = Callable[..., Simulated]


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[Make]:
    made: list[Simulated] = []

    def make(queues: int = 1, *, mapped: bool = True) -> Simulated:
        (tmp_path / str(len(made))).mkdir()
        made.append(Simulated(tmp_path / str(len(made)), queues, mapped=mapped))
        return made[-1]

    yield make
    for one in made:
        one.close()


def run_mix(drive: Simulated) -> list[list[int]]:
    """Batches, thinking and single commands: every time that the client saw."""
    queue, seen = drive.queues[0], []
    outcome = queue.submit(Columns(entry(Io.READ, 1), lbas=np.arange(40), submitted=True), depth=5)
    assert outcome.latencies is not None
    assert outcome.submitted is not None
    seen += [outcome.latencies.tolist(), outcome.submitted.tolist()]
    drive.link.clock.think(12345)
    tokens = [queue.submit_one(entry(Io.READ, 1)) for _ in range(4)]
    seen.append([queue.wait(token).finished for token in reversed(tokens)])
    paced = queue.submit(Columns(entry(Io.READ, 1), arrivals=np.arange(20) * 700, submitted=True), depth=8)
    assert paced.latencies is not None
    assert paced.submitted is not None
    seen += [paced.latencies.tolist(), paced.submitted.tolist(), [drive.link.clock.now]]
    return seen


def test_attaches(simulated: Make) -> None:
    """The client finds the virtual clock in the drive's words, says that it follows, and starts at the drive's time."""
    drive = simulated()
    assert isinstance(drive.link.clock, VirtualClock)
    assert drive.peer.words[ATTACHED] == 1
    assert drive.link.clock.now == 0


def test_real_clock(tmp_path: Path) -> None:
    """A drive on the wall clock gives a clock that goes by itself; thinking takes time."""
    peer = Peer(tmp_path / "cntrl")
    link = Link(VfioUser(tmp_path / "cntrl"), SharedMemory(1 << 16))
    assert isinstance(link.clock, RealClock)
    before = link.clock.now
    link.clock.think(100_000)
    assert link.clock.now >= before + 100_000
    with pytest.raises(InvalidArgument):
        link.clock.think(-1)
    link.close()
    peer.close()


def test_latencies_are_exact(simulated: Make) -> None:
    """Each command's latency is the drive's modelled one, to the nanosecond."""
    outcome = simulated().queues[0].submit(Columns(entry(Io.READ, 1), lbas=np.arange(30)), depth=1)
    assert outcome.latencies is not None
    assert outcome.latencies.tolist() == [LATENCY * (1 + n % 3) for n in range(30)]


def test_repeats_exactly(simulated: Make) -> None:
    """The same program gives the same times in every run, mapped or by messages."""
    first, *others = [run_mix(simulated(mapped=mapped)) for mapped in (True, True, False)]
    assert others == [first, first]


def test_thinking(simulated: Make) -> None:
    """think() moves time by what was said, and completions on the way are seen when they came."""
    drive = simulated()
    queue, clock = drive.queues[0], drive.link.clock
    token = queue.submit_one(entry(Io.READ, 1))
    clock.think(50_000)
    assert clock.now == 50_000
    assert queue.wait(token).finished == LATENCY
    assert clock.now == 50_000
    with pytest.raises(InvalidArgument):
        clock.think(-1)


def test_open_loop(simulated: Make) -> None:
    """With arrivals every command is submitted exactly when it arrives, while there is room."""
    arrivals = np.arange(50) * 900
    outcome = simulated().queues[0].submit(Columns(entry(Io.READ, 1), arrivals=arrivals, submitted=True), depth=15)
    assert outcome.submitted is not None
    assert outcome.submitted.tolist() == arrivals.tolist()
    assert outcome.latencies is not None
    assert outcome.latencies.tolist() == [LATENCY * (1 + n % 3) for n in range(50)]


def test_polling_does_not_move_time(simulated: Make) -> None:
    """poll() without a wish sees only what grants have brought: it cannot depend on how fast the drive is."""
    drive = simulated()
    queue = drive.queues[0]
    queue.submit_one(entry(Io.READ, 1))
    for _ in range(100):
        assert queue.poll() == []
    assert drive.grants == 0
    assert len(queue.poll(want=1)) == 1
    assert drive.grants == 1


def test_two_queues(simulated: Make) -> None:
    """Waiting on one queue takes the other's completions at their own times."""
    drive = simulated(queues=2)
    first, second = drive.queues
    tokens = [queue.submit_one(entry(Io.READ, 1)) for queue in (second, first, second)]
    # in queue order: first's takes 1000, second's 2000 and 3000
    assert second.wait(tokens[2]).finished == 3 * LATENCY
    assert first.wait(tokens[1]).finished == LATENCY
    assert second.wait(tokens[0]).finished == 2 * LATENCY
    assert drive.grants == 3


def test_nothing_to_wait_for(simulated: Make) -> None:
    """A drive that grants time and never completes gives DriveTimeout."""
    drive = simulated()
    queue = drive.queues[0]
    queue.timeout = 0.05
    token = queue.submit_one(entry(Io.READ, 1))
    drive.seen[0] = 1  # the command is lost
    with pytest.raises(DriveTimeout):
        queue.wait(token)
