"""The demo and the lookup benchmark, small, on real drive processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emucsd import Drive
from emucsd.baselines.pagecache import PAGE, HostLookup
from emucsd.bench.lookup import KEYS, run_lookup_bench
from emucsd.demo import DemoFailed, _check, run_demo
from emucsd.errors import InvalidArgument
from emucsd.table import Table
from emucsd.traces import AMAZON_FILE, Bags, bags_of, sums_in_order
from emucsd.volume import UNIT


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=16 << 20, clock="virtual", memory=64 << 20) as started:
        yield started


def test_demo(tmp_path: Path) -> None:
    """All ways give NumPy's sums, the drive's cross the link with less, and time is the same in another run."""
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    log = [
        f"{user + 1} {item + 1}"
        for user, item in zip(rng.integers(0, 60, 900), rng.integers(0, 2000, 900), strict=True)
    ]
    (data / AMAZON_FILE).write_text("\n".join(log))
    small = {"data": data, "most_rows": 500, "samples": 40, "batch": 16}
    told: list[float] = []
    first = run_demo(tmp_path / "out", tell=lambda _, done: told.append(done), **small)  # type: ignore[arg-type]
    again = run_demo(**small)  # type: ignore[arg-type]
    assert told == sorted(told)
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["workloads"] == first["workloads"]
    assert again["workloads"] == first["workloads"]
    for workload in first["workloads"]:
        ways = {way["name"]: way for way in workload["ways"]}
        assert list(ways) == ["host", "host-async", "page", "vector"]
        assert "numpy" in workload["equal_to"]
        assert ways["host"]["link_bytes"] == ways["host"]["flash_bytes"] == PAGE * ways["host"]["flash_reads"]
        assert ways["page"]["flash_reads"] == ways["vector"]["flash_reads"] == workload["vectors"]
        assert ways["vector"]["link_bytes"] < ways["host"]["link_bytes"]
        assert ways["vector"]["virtual_ns"] < ways["page"]["virtual_ns"]
        assert ways["host-async"]["virtual_ns"] < ways["host"]["virtual_ns"]


def test_demo_shows_no_wrong_sums() -> None:
    """A difference in one bit is an error, never a result."""
    right = np.ones((3, 2), np.float32)
    wrong = right.copy()
    wrong[1, 1] = np.nextafter(np.float32(1), np.float32(2))
    _check("vector", [right], [right.copy()])
    with pytest.raises(DemoFailed, match="bag 1 of table 0"):
        _check("vector", [wrong], [right])


def test_bench() -> None:
    """The benchmark gives its keys, and equal sums."""
    found = run_lookup_bench(seconds=0.05, rows=20_000, dim=8)
    assert tuple(found) == KEYS
    assert found["bit_equal"]
    assert found["vectors_per_s"] > 0
    assert found["environment"]["lookup"]["rows"] == 20_000
    with pytest.raises(InvalidArgument):
        run_lookup_bench(seconds=0)


@pytest.mark.parametrize("depth", [1, 8])
def test_host_cache(drive: Drive, depth: int) -> None:
    """The host's LRU cache never changes a sum, reads each page once while it is kept, and evicts the oldest."""
    rows = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    with Table.create(drive, f"cached-{depth}", rows, extent_bytes=UNIT) as table:
        host = HostLookup(drive, [table], share=0.1, depth=depth)
        assert host.capacity == 25
        rng = np.random.default_rng(1)
        host.warm([(0, bags_of(np.array([40]), rng.integers(0, 400, 40)))])
        for _ in range(30):
            bags = bags_of(np.array([5, 0, 30]), rng.integers(0, 4000, 35))
            assert np.array_equal(host.lookup([(0, bags)])[0], sums_in_order(rows, bags))
            kept = host.page_in[host.page_in >= 0]
            assert sorted(np.flatnonzero(host.frame_of >= 0)) == sorted(kept)
        host.lookup([(0, one(range(25)))])
        before = host.misses
        host.lookup([(0, one(range(1, 25)))])
        assert host.misses == before
        host.lookup([(0, one([30]))])
        host.lookup([(0, one(range(1, 25)))])
        assert host.misses == before + 1
        host.lookup([(0, one([0]))])
        assert host.misses == before + 2
    Table.drop(drive, f"cached-{depth}")


def one(pages: range | list[int]) -> Bags:
    """A bag with a row of each of these pages."""
    return bags_of(np.array([len(pages)]), np.array(pages) * 16)


def test_host_rows_cross_pages(drive: Drive) -> None:
    """Rows that do not divide a page are none of the baseline's."""
    with Table.create(drive, "odd", (4, 3)) as table, pytest.raises(InvalidArgument, match="must divide"):
        HostLookup(drive, [table])
    Table.drop(drive, "odd")
