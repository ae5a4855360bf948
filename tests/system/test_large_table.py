"""A table of 100 GB whose rows are generated: made at once, looked up at random, in little memory."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emucsd import Drive
from emucsd.rowtypes import generated, generated_rows
from emucsd.table import Table

GIB = 1 << 30
DIM, SEED = 32, 7
ROWS = 100 * 10**9 // (4 * DIM)
BAGS, EACH, BATCHES = 64, 80, 40


def resident(pid: int) -> int:
    """Bytes of a process in memory; pages of files that it maps count as well."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=110 * GIB, clock="virtual", memory=64 << 20) as started:
        yield started


@pytest.fixture(scope="module")
def table(drive: Drive) -> Iterator[Table]:
    begun = time.monotonic()
    with Table.create(drive, "large", generated(SEED, ROWS, DIM)) as made:
        assert time.monotonic() - begun < 30
        yield made


def test_lookups_at_random(drive: Drive, table: Table) -> None:
    """Random bags over all of it equal NumPy's sums of the generated rows bit for bit; the drive stays under 4 GB."""
    assert len(table) * table.dim * 4 >= 100 * 10**9 - 4 * DIM
    rng = np.random.default_rng(1)
    for number in range(BATCHES):
        ids = rng.integers(0, ROWS, (BAGS, EACH))
        if number == 0:
            ids[0, :2] = 0, ROWS - 1
        sums = table.lookup(ids)
        if number % 10 == 0:
            rows = generated_rows(SEED, ids.reshape(-1), DIM).reshape(BAGS, EACH, DIM)
            wanted = np.zeros((BAGS, DIM), np.float32)
            for place in range(EACH):
                wanted += rows[:, place]
            assert np.array_equal(sums.view(np.uint32), wanted.view(np.uint32))
    assert drive.process is not None
    assert resident(drive.process.pid) < 4 * 10**9


def test_it_takes_flash_time(drive: Drive, table: Table) -> None:
    """Rows that are nowhere stored cost the flash's time all the same, at the places where they would lie."""
    ids = np.random.default_rng(2).integers(0, ROWS, (1, 640))
    before, start = drive.control.stats()["nand"]["classes"]["lookup"]["reads"], drive.clock.now
    table.lookup(ids)
    assert drive.control.stats()["nand"]["classes"]["lookup"]["reads"] - before == 640
    assert drive.clock.now - start > 640 * 14_000 / drive_dies(drive)


def drive_dies(drive: Drive) -> int:
    """Dies that work side by side."""
    return len(drive.control.stats()["nand"]["dies"])


def test_it_is_there_again(drive: Drive, table: Table) -> None:
    """The stored description is all there is of it: opened anew it has the same rows."""
    with Table.open(drive, "large") as again:
        ids = np.array([[5, ROWS // 2, ROWS - 1]])
        assert np.array_equal(again.lookup(ids), table.lookup(ids))
        assert (len(again), again.dim) == (ROWS, DIM)
