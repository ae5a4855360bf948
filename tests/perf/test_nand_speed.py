"""How fast the NAND engine simulates, by itself, as a series in artefacts/: asserts nothing about speed."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nand.state import Nand
from emucsd_firmware.nand.timing import (
    BLOCK,
    LOOKUP,
    NEVER,
    READ,
    advance,
    close_job,
    job_finish,
    next_event,
    open_job,
    pop_done,
    submit,
)
from emucsd_firmware.profile import load
from emucsd_wire.words import get_u32, jit

pytestmark = pytest.mark.perf
SERIES = Path(__file__).resolve().parents[2] / "artefacts" / "bench-nand.jsonl"
PLACES = 4096


@jit
def bags(nand: Nand, ppns: int, total: int) -> int:
    """Batches of 32 bags of 80 vectors of 128 bytes, each batch submitted at once and run to its end."""
    now, done = 0, 0
    while done < total:
        place = 0
        for bag in range(32):
            open_job(nand, bag)
            for _ in range(80):
                submit(nand, now, READ, LOOKUP, get_u32(ppns, place), 128, bag, 0)
                place += 1
            close_job(nand, bag, now)
        advance(nand, NEVER)
        job = pop_done(nand)
        while job >= 0:
            now = max(now, job_finish(nand, job))
            job = pop_done(nand)
        done += 2560
    return done


@jit
def pages(nand: Nand, ppns: int, total: int) -> int:
    """32 page reads outstanding: one more for each that ends, event by event."""
    now, begun, done, job = 0, 0, 0, 0
    while done < total:
        if begun < 32:
            job, begun = begun, begun + 1
        else:
            now = next_event(nand)
            advance(nand, now)
            job = pop_done(nand)
            done += 1 if job >= 0 else 0
        while job >= 0:
            open_job(nand, job)
            submit(nand, now, READ, BLOCK, get_u32(ppns, (begun + done) % PLACES), 4096, job, 0)
            close_job(nand, job, now)
            job = pop_done(nand) if begun == 32 else -1
            done += 1 if job >= 0 else 0
    advance(nand, NEVER)
    while pop_done(nand) >= 0:  # a job in the done list can't be opened again
        pass
    return done


def rate(run: Callable[[Any, int, int], int], profile_name: str, **overrides: Any) -> float:
    """Operations per second of this thread's own time: the best of five runs."""
    profile = load(profile_name, **overrides)
    model, geometry = NandModel(profile, jobs=64), profile.geometry
    random = np.random.default_rng(1)
    dies, blocks = (random.integers(0, end, PLACES) for end in (geometry.die_count, geometry.blocks_per_die))
    ppns = np.array([geometry.ppn(int(d), int(b), 0) for d, b in zip(dies, blocks, strict=True)], np.uint32)
    address, best = ppns.ctypes.data, float("inf")
    run(model.record, address, 1)
    for _ in range(5):
        begin = time.thread_time()
        done = run(model.record, address, 500_000)
        best = min(best, (time.thread_time() - begin) / done)
    return 1 / best


def test_nand_speed() -> None:
    """Vector and page reads a second, for the geometries of the built-in profiles."""
    wide = {"geometry.channels": 8, "geometry.dies": 8}
    found = {
        "environment": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "vectors_per_s_64_dies": rate(bags, "rmssd", **wide),
        "vectors_per_s_rmssd": rate(bags, "rmssd"),
        "vectors_per_s_newport": rate(bags, "newport"),
        "pages_per_s_rmssd": rate(pages, "rmssd"),
        "pages_per_s_femu": rate(pages, "femu"),
    }
    SERIES.parent.mkdir(exist_ok=True)
    with open(SERIES, "a") as series:
        series.write(json.dumps(found) + "\n")
    print(json.dumps(found, indent=2))
