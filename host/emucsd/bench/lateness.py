"""How late completions are: the same paced reads in virtual time, which says what is modelled, and in real time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.bench.rates import BLOCK, VIRTUAL_BYTES, Tell, fill, places, started
from emucsd.drive import Drive
from emucsd.errors import EmucsdError
from emucsd_wire.nvme import Io

IOPS = 50_000
DEPTH = 64
_WARM = 1000  # commands before those that count


def lateness(folder: Path, seconds: float, tell: Tell) -> dict[str, Any]:
    """``femu`` profile, 50 K IOPS in even steps: seen completion time against modelled completion time, per command."""
    count = int(IOPS * seconds) + _WARM
    with started("femu", folder, clock="virtual") as (drive, space):
        tell("filling 256 MiB")
        filled = fill(drive, space, VIRTUAL_BYTES)
        tell("paced reads in virtual time")
        modelled = paced(drive, count)
    with started("femu", folder) as (drive, _):
        tell("paced reads by the wall clock")
        seen = paced(drive, count)
        own = drive_lateness(drive)
    late = np.abs(seen - modelled)[_WARM:] / 1000
    middle, tail = np.quantile(late, (0.5, 0.99)).tolist()
    told = {**filled, "modelled_p50_us": _p50(modelled), "seen_p50_us": _p50(seen), "drive": own}
    return {
        "lateness_p50_us": round(middle, 3),
        "lateness_p99_us": round(tail, 3),
        "preconditioning": {"lateness": told},
    }


def paced(drive: Drive, count: int) -> NDArray[np.int64]:
    """Latency of each read from its submission."""
    space = drive.namespace(1)
    buffers = drive.alloc((DEPTH, BLOCK))
    lbas = places(VIRTUAL_BYTES, count, space.lba_bytes, 3)
    arrivals = np.arange(count, dtype=np.int64) * (1_000_000_000 // IOPS)
    blocks = BLOCK // space.lba_bytes
    outcome = space.submit(Io.READ, lbas, buffers, blocks=blocks, depth=DEPTH, arrivals=arrivals).check()
    assert outcome.latencies is not None
    return outcome.latencies


def drive_lateness(drive: Drive) -> dict[str, Any]:
    """The drive's own figures: how long after its modelled time it posted a completion."""
    try:
        stats = drive.control.stats()
    except EmucsdError as problem:
        return {"unknown": str(problem)}
    own = stats.get("lateness_us", {})
    return {f"{name}_us" if name != "count" else name: value for name, value in dict(own).items()}


def _p50(latencies: NDArray[np.int64]) -> float:
    return round(float(np.median(latencies[_WARM:])) / 1000, 3)
