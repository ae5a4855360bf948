"""How many commands a second: random 4 KiB reads and writes, wall clock and virtual clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.bench.environment import own_cores
from emucsd.drive import Drive
from emucsd.errors import EmucsdError
from emucsd.namespace import Namespace
from emucsd_wire.nvme import Io

BLOCK = 4096
QUEUE_DEPTH = 32
READ_BYTES = 1 << 30
WRITE_BYTES = 4 << 30  # as the profile has it: in a small drive open blocks would eat the spare ones
VIRTUAL_BYTES = 256 << 20
_TURNS = 2  # times the whole drive is overwritten at random before writes are measured
_ROUND = 100_000
_STREAM = 256 << 10  # a command's bytes when a drive is filled

Tell = Callable[[str], None]


def fill(drive: Drive, space: Namespace, size: int) -> dict[str, Any]:
    """Write the first ``size`` bytes in order, so that reads find mapped pages. :returns: what was done"""
    began = time.perf_counter()
    chunk = min(_STREAM, space.max_blocks * space.lba_bytes)
    buffers = drive.alloc((QUEUE_DEPTH, chunk))
    buffers[:] = np.random.default_rng(1).integers(0, 256, buffers.shape, np.uint8)
    blocks = chunk // space.lba_bytes
    starts = np.arange(size // chunk, dtype=np.int64) * blocks
    space.submit(Io.WRITE, starts, buffers, blocks=blocks, depth=QUEUE_DEPTH, latencies=False).check()
    space.flush()
    return {"filled_bytes": size, "seconds": round(time.perf_counter() - began, 3)}


@contextmanager
def started(
    profile: str, folder: Path, size: int | None = None, clock: str = "real"
) -> Iterator[tuple[Drive, Namespace]]:
    """A drive in ``folder``, on a core of its own where there are two."""
    with Drive.start(profile, size=size, store=folder, clock=clock) as drive:
        assert drive.process is not None
        with own_cores(drive.process.pid):
            yield drive, drive.namespace(1)


def places(size: int, count: int, lba_bytes: int, seed: int) -> NDArray[np.int64]:
    """Random LBAs of 4 KiB blocks in the first ``size`` bytes."""
    return np.random.default_rng(seed).integers(0, size // BLOCK, count) * (BLOCK // lba_bytes)


def measure(
    drive: Drive, space: Namespace, opcode: Io, size: int, depth: int, seconds: float, burst: int | None = None
) -> float:
    """Commands a wall second, over at least ``seconds``, after a tenth of that to warm up."""
    buffers = drive.alloc((max(depth, 2), BLOCK))
    lbas = places(size, _ROUND, space.lba_bytes, 2)
    blocks = BLOCK // space.lba_bytes

    def round_(count: int) -> int:
        some = lbas[:count]
        outcome = space.submit(opcode, some, buffers, blocks=blocks, depth=depth, burst=burst, latencies=False)
        return outcome.check().elapsed_ns

    warm, count = time.perf_counter() + seconds / 10, 1000
    while time.perf_counter() < warm:
        count = min(_ROUND, max(int(1e8 * count / max(round_(count), 1)), 1000))  # rounds of about 0.1 s
    done, elapsed = 0, 0
    while elapsed < seconds * 1e9:
        elapsed += round_(count)
        done += count
    return done * 1e9 / elapsed


def read_rates(folder: Path, seconds: float, tell: Tell) -> dict[str, Any]:
    """``null`` profile, wall clock, over 1 GiB that has been written."""
    tell("filling 1 GiB")
    with started("null", folder, READ_BYTES) as (drive, space):
        filled = fill(drive, space, READ_BYTES)
        tell(f"random reads, queue depth {QUEUE_DEPTH}")
        deep = measure(drive, space, Io.READ, READ_BYTES, QUEUE_DEPTH, seconds)
        tell("random reads, queue depth 1")
        single = measure(drive, space, Io.READ, READ_BYTES, 1, seconds)
        return {"read_qd32_iops": round(deep), "read_qd1_iops": round(single), "preconditioning": {"read": filled}}


def write_rate(folder: Path, seconds: float, tell: Tell) -> dict[str, Any]:
    """``null`` profile, wall clock: a full drive, overwritten at random until garbage collection is steady."""
    tell("filling 4 GiB")
    with started("null", folder, WRITE_BYTES) as (drive, space):
        filled = fill(drive, space, space.size // _STREAM * _STREAM)
        buffers = drive.alloc((QUEUE_DEPTH, BLOCK))
        pages, blocks = space.size // BLOCK, BLOCK // space.lba_bytes
        for turn in range(_TURNS):
            tell(f"overwriting it at random, {turn + 1} of {_TURNS} times")
            lbas = places(space.size, pages, space.lba_bytes, 10 + turn)
            space.submit(Io.WRITE, lbas, buffers, blocks=blocks, depth=QUEUE_DEPTH, latencies=False).check()
        before = collection(drive)
        tell(f"random writes, queue depth {QUEUE_DEPTH}")
        rate = measure(drive, space, Io.WRITE, space.size, QUEUE_DEPTH, seconds)
        told = {**filled, "random_overwrites": _TURNS * pages, "before": before, "after": collection(drive)}
        return {"write_gc_iops": round(rate), "preconditioning": {"write": told}}


def virtual_rate(folder: Path, seconds: float, tell: Tell) -> dict[str, Any]:
    """``femu`` profile, virtual clock: random reads simulated in a wall second."""
    tell("filling 256 MiB")
    with started("femu", folder, clock="virtual") as (drive, space):
        filled = fill(drive, space, VIRTUAL_BYTES)
        tell("random reads in virtual time")
        first, began = drive.clock.now, time.perf_counter()
        rate = measure(drive, space, Io.READ, VIRTUAL_BYTES, QUEUE_DEPTH, seconds)
        passed, wall = (drive.clock.now - first) / 1e9, time.perf_counter() - began
        told = {**filled, "virtual_seconds_a_wall_second": round(passed / wall, 3)}
        return {"virtual_commands_per_s": round(rate), "preconditioning": {"virtual": told}}


def collection(drive: Drive) -> dict[str, Any]:
    """What the drive tells of its garbage collection."""
    try:
        stats = drive.control.stats()
    except EmucsdError as problem:
        return {"unknown": str(problem)}
    ftl = stats.get("ftl", {})
    return (
        {name: value for name, value in ftl.items() if isinstance(value, int | float)} if isinstance(ftl, dict) else {}
    )
