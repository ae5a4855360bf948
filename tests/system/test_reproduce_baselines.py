"""Every baseline on a real drive in virtual time: right answers, and time that is accounted for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from emucsd import Drive
from emucsd.baselines import (
    Baseline,
    Dram,
    EmbMmio,
    EmbPageSum,
    EmbVectorSum,
    RecSsd,
    RmSsd,
    RmSsdNaive,
    SsdM,
    SsdS,
    load_costs,
)
from emucsd.baselines.pagecache import page_lbas
from emucsd.rm import Model
from emucsd.rm.weights import Weights
from emucsd.table import Rows
from emucsd.traces import Recorded, make_locality, sums_in_order
from emucsd_wire.nvme import Io

MODEL = Model.rmc1(rows=3000)
WEIGHTS = MODEL.random_weights(1)
HOST = (Dram, SsdS, SsdM, EmbMmio, EmbPageSum, EmbVectorSum)


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=32 << 20, clock="virtual", memory=96 << 20) as started:
        for table in MODEL.create_tables(started, 1):
            table.close()
        yield started


@pytest.fixture(scope="module")
def rows() -> list[Rows]:
    return [MODEL.random_table(number, 1) for number in range(len(MODEL.tables))]


@pytest.fixture(scope="module")
def log() -> Recorded:
    made = make_locality(0.3, 24, tables=len(MODEL.tables), rows=3000, lookups=80)
    dense = np.random.default_rng(1).random((24, MODEL.dense), np.float32)
    return Recorded(made.name, made.lookups, dense)


def prepared(kind: type[Baseline], drive: Drive, log: Recorded, weights: Weights = WEIGHTS) -> Baseline:
    baseline = kind()
    baseline.prepare(drive, MODEL, weights, log.part(0, 16))
    return baseline


@pytest.mark.parametrize("kind", [*HOST, RecSsd, RmSsdNaive, RmSsd], ids=lambda kind: str(kind.name))
def test_answers_are_right_and_time_is_accounted_for(
    kind: type[Baseline], drive: Drive, log: Recorded, rows: list[Rows]
) -> None:
    """Sums equal NumPy's bit for bit (RecSSD's: within rounding), outputs within 1e-5; all time is accounted for."""
    baseline = prepared(kind, drive, log)
    began = drive.clock.now
    for batch in log.part(16, 24).batches(4):
        right = np.concatenate([sums_in_order(r, bags) for r, bags in zip(rows, batch.bags, strict=True)], axis=1)
        sums = baseline.sls(batch)
        assert np.allclose(sums, right, rtol=1e-5, atol=1e-5)
        assert not kind.ordered or np.array_equal(sums.view(np.uint32), right.view(np.uint32))
        assert batch.dense is not None
        reference = MODEL.reference(WEIGHTS, rows, batch.dense, batch.sparse)
        assert np.allclose(baseline.infer(batch), reference, rtol=1e-5, atol=1e-6)
    waited = drive.clock.now - began - sum(baseline.spent.values())
    assert (waited == 0) == (kind is Dram)
    assert waited >= 0
    baseline.close()


def test_pages_one_by_one(drive: Drive, log: Recorded) -> None:
    """EMB-MMIO waits for the drive exactly as long as its pages take when they are read at queue depth 1."""
    baseline = prepared(EmbMmio, drive, log)
    batch = next(log.part(16, 24).batches(2))
    began = drive.clock.now
    baseline.sls(batch)
    waited = drive.clock.now - began - sum(baseline.spent.values())
    pages = [
        page_lbas(table)[bags.indices * 128 // 4096] for table, bags in zip(baseline.tables, batch.bags, strict=True)
    ]
    lbas = np.concatenate(pages)
    space = drive.namespace(1)
    began = drive.clock.now
    window = drive.alloc((16, 4096))
    space.submit(Io.READ, lbas, window, blocks=4096 // space.lba_bytes, depth=1).check()
    assert waited == drive.clock.now - began
    baseline.close()


def test_page_cache_is_lru(drive: Drive, log: Recorded) -> None:
    """SSD-S misses what an LRU cache of a quarter of the tables misses, and pays the kernel and the drive for it."""
    baseline = prepared(SsdS, drive, log)
    assert isinstance(baseline, SsdS)
    pages_a_table = -(-3000 * 128 // 4096)
    assert baseline.cache.capacity == 8 * pages_a_table // 4
    used: list[int] = []  # the newest last
    missed = 0
    for sample in range(24):
        for number, some in enumerate(log.part(sample, sample + 1).lookups):
            for page in (number * pages_a_table + some.bags.indices * 128 // 4096).tolist():
                missed += sample >= 16 and page not in used
                used = [*(p for p in used if p != page), page][-baseline.cache.capacity :]
    began = drive.clock.now
    for batch in log.part(16, 24).batches(4):
        baseline.sls(batch)
    assert baseline.misses == missed
    costs = load_costs()
    assert baseline.spent["misses"] == pytest.approx(missed * costs.miss, abs=2)
    assert baseline.spent["hits"] == pytest.approx(8 * 640 * costs.vector_read, abs=2)
    assert drive.clock.now - began - sum(baseline.spent.values()) == missed * baseline.page_ns
    baseline.close()


def test_grains_and_caches_order_the_baselines(drive: Drive, log: Recorded) -> None:
    """Memory beats vectors, vectors beat pages, pages beat files, and files gain by a larger page cache."""
    times = {}
    for kind in HOST:
        baseline = prepared(kind, drive, log)
        began = drive.clock.now
        for batch in log.part(16, 24).batches(4):
            baseline.sls(batch)
        times[kind.name] = drive.clock.now - began
        baseline.close()
    order = ["DRAM", "EMB-VectorSum", "EMB-PageSum", "SSD-M", "SSD-S", "EMB-MMIO"]
    assert sorted(times, key=lambda name: times[name]) == order
