"""When interrupts are raised: aggregation as the host asked (features 08h and 09h), and one at a time for a guest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_firmware.drive import Drive
from emucsd_firmware.nvme.interrupts import GATHER_NS, UNSEEN_NS
from emucsd_firmware.profile import load
from emucsd_wire.features import Feature
from emucsd_wire.nvme import PAGE, SQE, Admin, Io, Register
from tests.unit.nvme_host import DATA_AT, MIB, Host

ENTRIES = 16
IO_SQ, IO_CQ, SHADOW, EVENTIDX = (DATA_AT + MIB + n * PAGE for n in range(4))
VECTOR = 1
PROFILE = load("null", capacity_bytes=32 * MIB)


class InterruptedHost(Host):
    """A host whose I/O queue pair 1 raises vector 1. Doorbells are messages, or shadow doorbells after ``share``."""

    def __init__(self, drive: Drive) -> None:
        drive.ports[0].trapped = True
        super().__init__(drive.ports[0])
        self.drive = drive
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        self.shared = False
        self.io_tail = 0
        self.enable()
        self.poke(IO_SQ, bytes(4 * PAGE))
        drive.ports[0].set_vector(VECTOR, self.eventfd)
        self.ok(Admin.CREATE_CQ, cdw10=ENTRIES - 1 << 16 | 1, cdw11=VECTOR << 16 | 3, prp1=IO_CQ)
        self.ok(Admin.CREATE_SQ, cdw10=ENTRIES - 1 << 16 | 1, cdw11=1 << 16 | 1, prp1=IO_SQ)

    def share(self) -> InterruptedHost:
        """Shadow doorbells from here on."""
        self.ok(Admin.DOORBELL_BUFFER_CONFIG, prp1=SHADOW, prp2=EVENTIDX)
        self.shared = True
        return self

    def ring(self, index: int, value: int) -> None:
        if self.shared:
            self.poke(SHADOW + 4 * index, value.to_bytes(4, "little"))
        else:
            self.write(Register.DOORBELLS + 4 * index, value)

    def flush(self, count: int = 1) -> int:
        """So many Flush commands, completed. :returns: how often the vector was raised for them"""
        for _ in range(count):
            self.poke(IO_SQ + SQE.size * self.io_tail, SQE.pack(self.sqe(Io.FLUSH, 1)))
            self.io_tail = (self.io_tail + 1) % ENTRIES
        self.ring(2, self.io_tail)
        return self.look()

    def look(self) -> int:
        """:returns: how often the vector was raised since the last look"""
        self.drive.step(4)
        try:
            return os.eventfd_read(self.eventfd)
        except BlockingIOError:
            return 0

    def seen(self, head: int) -> int:
        """Ring the head doorbell. :returns: how often the vector was raised then"""
        self.ring(3, head)
        return self.look()

    def wait(self, seconds: float) -> int:
        """Look until the vector is raised. :returns: how often"""
        end = time.monotonic() + seconds
        while not (raised := self.look()):
            assert time.monotonic() < end, "the vector was never raised"
        return raised


@pytest.fixture
def host(folder: Path) -> Iterator[InterruptedHost]:
    with Drive.open(folder / "store", PROFILE, clock="real") as drive:
        made = InterruptedHost(drive)
        yield made
        os.close(made.eventfd)


def test_one_each_by_default(host: InterruptedHost) -> None:
    """Without coalescing every completion raises its vector, those of one moment once."""
    assert [host.flush() for _ in range(3)] == [1, 1, 1]
    assert host.flush(5) == 1
    assert host.look() == 0


def test_aggregation_threshold(host: InterruptedHost) -> None:
    """Four completions are told of by one interrupt when the host asked for that."""
    host.set_feature(Feature.INTERRUPT_COALESCING, 0xFF03)  # 25.5 ms
    assert [host.flush() for _ in range(4)] == [0, 0, 0, 1]


def test_aggregation_time(host: InterruptedHost) -> None:
    """A completion that stays alone is told of when the aggregation time has passed."""
    host.set_feature(Feature.INTERRUPT_COALESCING, 0x3207)
    begun = time.monotonic()
    assert host.flush() == 0
    assert host.wait(5) == 1
    assert time.monotonic() - begun >= 0.005


def test_a_vector_is_left_out(host: InterruptedHost) -> None:
    """Coalescing Disable of a vector (09h) holds for the queues that use it, and can be taken back."""
    host.set_feature(Feature.INTERRUPT_COALESCING, 0xFF07)
    host.set_feature(Feature.INTERRUPT_VECTOR, 1 << 16 | VECTOR)
    assert host.flush() == 1
    host.set_feature(Feature.INTERRUPT_VECTOR, VECTOR)
    assert host.flush() == 0


def test_a_reset_ends_coalescing(host: InterruptedHost) -> None:
    """What was not saved is gone after a controller reset."""
    host.set_feature(Feature.INTERRUPT_COALESCING, 0xFF07)
    assert int(host.drive.ports[0].queues.record["coalesce_ns"]) == 25_500_000
    host.disable()
    host.enable()
    assert int(host.drive.ports[0].queues.record["coalesce_ns"]) == 0


def test_a_guest_is_interrupted_once(host: InterruptedHost) -> None:
    """With shadow doorbells there is no second interrupt before the head has moved, and none for what was seen."""
    host.share()
    begun = time.monotonic_ns()
    assert host.flush() == 1
    raised = host.flush()
    assert raised == 0 or time.monotonic_ns() - begun > UNSEEN_NS
    assert host.seen(2) == 0
    assert (host.flush() or host.wait(5)) == 1
    raised = host.flush()
    if not raised:
        assert (host.seen(3) or host.wait(5)) == 1


def test_a_slow_guest_is_told_of_some_together(host: InterruptedHost) -> None:
    """A guest that is slow to look and had four commands under way hears of four at once, of fewer a little later."""
    host.share()
    cq = host.drive.ports[0].queues.cqs[1]
    cq["look_ns"], cq["depth"] = 1_000_000, 4
    begun = time.monotonic_ns()
    raised = host.flush()
    assert raised == 0 or time.monotonic_ns() - begun > GATHER_NS
    assert host.flush(3) == 1 - raised
    assert host.seen(4) == 0
    assert (host.flush() or host.wait(5)) == 1
    assert int(cq["depth"]) < 4


def test_a_guest_that_does_not_look(host: InterruptedHost) -> None:
    """A host that was interrupted and leaves its head where it is gets another one after a while."""
    host.share()
    assert host.flush() == 1
    host.flush()
    assert host.wait(5) == 1
