"""The FTL's figures, for people: counters since the drive was made, wear, spare, what write amplification came to."""

from __future__ import annotations

from typing import Any

import numpy as np

from emucsd_firmware.ftl.state import BAD, FREE, FULL, OPEN, REFRESH
from emucsd_firmware.ftl.tables import Tables

# counters that outlive the process, in the order in which the superblock has them: add at the end only
PERSISTENT = (
    *("host_pages", "host_partial", "host_programs", "gc_moves", "wear_moves", "refresh_moves", "flash_erases"),
    *("flash_reads", "trims", "trimmed_pages", "buffer_merges", "buffer_waits", "read_retries", "uncorrectable"),
    *("program_failures", "erase_failures", "refreshes", "barriers", "faults"),
)


def counters(record: Any) -> bytes:
    """The persistent counters as the superblock keeps them."""
    return np.array([int(record[name]) for name in PERSISTENT], "<i8").tobytes()


def restore(record: Any, data: bytes) -> None:
    """Set the persistent counters from a superblock's bytes."""
    for name, value in zip(PERSISTENT, np.frombuffer(data, "<i8"), strict=False):
        record[name] = int(value)


def snapshot(record: Any, tables: Tables) -> dict[str, Any]:
    """All figures as plain values. While the data plane runs each is right, but they may be a moment apart."""
    names = [*PERSISTENT, "retired_blocks", "mapped", "capacity_pages", "marked_pages", "read_only", "disk_full"]
    figures: dict[str, Any] = {name: int(record[name]) for name in names}
    figures["corrected_bits"] = round(float(record["corrected_bits"]))
    moved = figures["gc_moves"] + figures["wear_moves"] + figures["refresh_moves"]
    programs = figures["host_programs"]
    figures["flash_programs"] = programs + moved
    figures["write_amplification"] = (programs + moved) / figures["host_pages"] if figures["host_pages"] else 0.0
    figures["buffered_pages"] = int(record["dirty_count"])
    figures["write_cache"] = bool(record["write_cache"])
    figures["gc_low_blocks"], figures["gc_high_blocks"] = int(record["gc_low"]), int(record["gc_high"])
    total = max(int(record["spare_total"]), 1)
    figures["spare_blocks"] = int(record["spare_blocks"])
    figures["spare_percent"] = max(0, min(100, 100 * int(record["spare_blocks"]) // total))
    kinds = tables.kinds
    exists = kinds <= REFRESH
    wear = tables.erases[exists & (kinds != BAD)]
    figures["wear"] = {
        "min": int(wear.min()) if len(wear) else 0,
        "mean": float(wear.mean()) if len(wear) else 0.0,
        "max": int(wear.max(initial=0)),
    }
    named = {"free": FREE, "open": OPEN, "full": FULL, "bad": BAD}
    figures["blocks"] = {name: int(np.count_nonzero(kinds == kind)) for name, kind in named.items()}
    return figures
