"""How fast a large drive opens, after a clean stop and after kill -9, and what memory it takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from emucsd.bench.environment import resident
from emucsd.bench.rates import BLOCK, QUEUE_DEPTH, Tell
from emucsd.drive import Drive
from emucsd_wire.nvme import Io

SIZE = 1 << 40
DIRTY = 1_000_000
NEED_BYTES = 10 << 30  # a flash page, its spare area and its share of the map for each dirty mapping


def opening(folder: Path, tell: Tell, *, size: int = SIZE, dirty: int = DIRTY) -> dict[str, Any]:
    """A sparse drive of ``size`` bytes, killed with ``dirty`` random pages written since its last checkpoint.

    Opening is timed from the start of the process until it serves, less what a fresh drive of 64 MiB takes: that is the
    interpreter and the compiled code, which are no matter of size. Resident memory is that of the drive once it has
    recovered: its tables. (Flash pages that were touched count as well while they are mapped; they are in the details.)
    """
    tell("starting a small drive, for comparison")
    base = _timed(folder / "small", 64 << 20)
    tell(f"making a drive of {size >> 30} GiB")
    with Drive.start("null", size=size, store=folder / "large") as drive:
        created = resident(_pid(drive))
    tell("opening it after a clean stop")
    clean = _timed(folder / "large", size)
    with Drive.start("null", size=size, store=folder / "large") as drive:
        tell(f"writing {dirty} random pages")
        written = _scatter(drive, dirty)
        used = resident(_pid(drive))
        assert drive.process is not None
        drive.process.kill()
    tell("opening it after kill -9")
    began = time.perf_counter()
    with Drive.start("null", size=size, store=folder / "large") as drive:
        crash = time.perf_counter() - began
        recovered = resident(_pid(drive))
        status = drive.control.status().get("drive", {})
    told = {
        "start_of_a_small_drive_s": round(base, 3),
        "dirty_mappings": dirty,
        "write_iops": round(written),
        "resident": {"created": created, "dirty": used, "recovered": recovered},
        "recovery": status.get("recovery", status.get("recovered")) if isinstance(status, dict) else None,
    }
    return {
        "open_clean_s": round(max(clean - base, 0.0), 3),
        "open_crash_s": round(max(crash - base, 0.0), 3),
        "resident_gb": round(recovered["VmRSS"] / 1e9, 3),
        "preconditioning": {"opening": told},
    }


def _pid(drive: Drive) -> int:
    assert drive.process is not None
    return drive.process.pid


def _timed(store: Path, size: int) -> float:
    """Seconds that an existing (or fresh) drive takes to serve, the best of two."""
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        with Drive.start("null", size=size, store=store):
            best = min(best, time.perf_counter() - began)
    return best


def _scatter(drive: Drive, count: int) -> float:
    """Write pages all over the namespace. :returns: writes a second"""
    space = drive.namespace(1)
    blocks = BLOCK // space.lba_bytes
    lbas = np.random.default_rng(4).integers(0, space.size // BLOCK, count) * blocks
    buffers = drive.alloc((QUEUE_DEPTH, BLOCK))
    return space.submit(Io.WRITE, lbas, buffers, blocks=blocks, depth=QUEUE_DEPTH, latencies=False).check().iops
