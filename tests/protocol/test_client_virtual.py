"""Virtual time through the whole of client and drive: exact, repeatable, and moved only by the host."""

from __future__ import annotations

import numpy as np
import pytest

from emucsd import Drive
from emucsd.passthrough import entry
from emucsd_wire.nvme import Io

SIZE = 64 << 20
READ_NS, PROGRAM_NS = 40_000, 200_000  # of the femu profile


def program(drive: Drive) -> list[list[int]]:
    """Some of everything; every time that the host saw."""
    space, clock, seen = drive.namespace(1), drive.clock, []
    blocks = 4096 // space.lba_bytes
    buffers = drive.alloc((64, 4096))
    buffers[:] = np.arange(64)[:, None]
    pages = np.random.default_rng(5).permutation(2000)
    for opcode, depth in ((Io.WRITE, 16), (Io.READ, 32), (Io.READ, 1)):
        outcome = space.submit(opcode, pages[:500] * blocks, buffers, blocks=blocks, depth=depth).check()
        assert outcome.latencies is not None
        seen.append(outcome.latencies.tolist())
        clock.think(12_345)
        seen.append([clock.now])
    opcodes = np.random.default_rng(6).choice([Io.READ, Io.WRITE], 500)
    arrivals = np.cumsum(np.random.default_rng(7).integers(0, 30_000, 500))
    outcome = space.submit(opcodes, pages[:500] * blocks, buffers, blocks=blocks, depth=64, arrivals=arrivals).check()
    assert outcome.latencies is not None
    return [*seen, outcome.latencies.tolist(), [clock.now]]


@pytest.fixture(scope="module")
def runs() -> list[list[list[int]]]:
    found = []
    for doorbells in ("mapped", "mapped", "trapped"):
        with Drive.start("femu", size=SIZE, clock="virtual", doorbells=doorbells) as drive:
            found.append(program(drive))
    return found


def test_repeats_bit_for_bit(runs: list[list[list[int]]]) -> None:
    """The same program on fresh drives sees the same times, to the nanosecond."""
    assert runs[1] == runs[0]


def test_doorbells_do_not_matter(runs: list[list[list[int]]]) -> None:
    """Mapped doorbells and messages give the same times."""
    assert runs[2] == runs[0]


def test_modelled_latency() -> None:
    """A lone read takes the flash's read time, and time stands still while the host does nothing."""
    with Drive.start("femu", size=SIZE, clock="virtual") as drive:
        space = drive.namespace(1)
        blocks = 4096 // space.lba_bytes
        buffer = drive.alloc((1, 4096))
        space.submit(Io.WRITE, [0], buffer, blocks=blocks).check()
        drive.clock.think(10_000_000)
        before = drive.clock.now
        outcome = space.submit(Io.READ, [0], buffer, blocks=blocks).check()
        assert outcome.latencies is not None
        assert outcome.latencies.tolist() == [READ_NS]
        assert drive.clock.now == before + READ_NS
        space.flush()
        assert drive.admin.smart().host_reads == 1
        assert drive.clock.now == before + READ_NS


def test_thinking_overlaps() -> None:
    """What the drive finishes while the host thinks costs the host no more time."""
    with Drive.start("femu", size=SIZE, clock="virtual") as started:
        space = started.namespace(1)
        blocks = 4096 // space.lba_bytes
        buffer = started.alloc((1, 4096))
        space.submit(Io.WRITE, [0], buffer, blocks=blocks).check()
        started.clock.think(10_000_000)
        before, queue = started.clock.now, started.queue
        token = queue.submit_one(entry(Io.READ, 1, cdw12=blocks - 1), buffer[0])
        started.clock.think(1_000_000)
        completion = queue.wait(token).check("READ")
        assert started.clock.now == before + 1_000_000
        assert completion.latency == READ_NS


def test_null_profile_takes_no_time() -> None:
    """With no delay anywhere virtual time does not move."""
    with Drive.start("null", size=SIZE, clock="virtual") as drive:
        space = drive.namespace(1)
        space.write(0, bytes(1 << 20))
        space.submit(Io.READ, np.arange(100), drive.alloc((32, space.lba_bytes)), depth=32).check()
        assert drive.clock.now == 0
