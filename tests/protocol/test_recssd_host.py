"""RecSSD from the host: a whole lookup with both caches, against NumPy, on a real drive process in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from emucsd import Drive
from emucsd.baselines.recssd import MOST_BAGS, RecSsd, RecSsdTables, Spend
from emucsd.errors import InvalidArgument, LookupRefused
from emucsd.rm import Model
from emucsd.traces import Recorded, make_locality
from emucsd_wire.recssd import MAX_PAIRS

Rows = NDArray[np.float32]
Batch = list[tuple[NDArray[np.int64], NDArray[np.int64]]]

SHAPES = [(4000, 32), (3000, 64), (2500, 32)]


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=64 << 20, clock="virtual", memory=128 << 20) as started:
        yield started


@pytest.fixture(scope="module")
def tables() -> list[Rows]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def spend_on(drive: Drive) -> Spend:
    """The host's work takes its time."""
    return lambda _, ns: drive.clock.think(round(ns))


@pytest.fixture(scope="module")
def recssd(drive: Drive, tables: list[Rows]) -> RecSsdTables:
    made = RecSsdTables(drive, SHAPES, spend=spend_on(drive))
    for number, rows in enumerate(tables):
        made.load(number, rows)
    return made


def batch(samples: int, each: int, seed: int = 0, most: int = 1 << 30) -> Batch:
    """Bags of ``each`` ids, and of none in between."""
    rng = np.random.default_rng(seed)
    found = []
    for rows, _ in SHAPES:
        lengths = np.where(np.arange(samples) % 7 == 3, 0, each)
        ids = rng.integers(0, min(rows, most), int(lengths.sum()))
        found.append((ids, np.concatenate([[0], np.cumsum(lengths)[:-1]])))
    return found


def wanted(tables: list[Rows], asked: Batch) -> list[Rows]:
    """Sums in FP64, then FP32."""
    out = []
    for rows, (ids, starts) in zip(tables, asked, strict=True):
        bounds = np.append(starts, len(ids))
        sums = [rows[ids[a:b]].astype(np.float64).sum(0) for a, b in pairwise(bounds)]
        out.append(np.array(sums, np.float32))
    return out


def near(found: list[Rows], reference: list[Rows]) -> bool:
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in zip(found, reference, strict=True))


@pytest.mark.parametrize(("samples", "each"), [(1, 80), (16, 20), (MOST_BAGS * 3 + 5, 4)])
def test_lookup(recssd: RecSsdTables, tables: list[Rows], samples: int, each: int) -> None:
    """Batches of any size equal NumPy's sums within FP32 rounding, and are the same bits when asked again."""
    asked = batch(samples, each)
    first = recssd.lookup(asked)
    assert near(first, wanted(tables, asked))
    again = recssd.lookup(asked)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_bag_longer_than_a_request(recssd: RecSsdTables, tables: list[Rows]) -> None:
    """A bag of more pairs than a request takes comes in pieces."""
    ids = np.random.default_rng(2).integers(0, 4000, MAX_PAIRS + 1000)
    empty = (np.empty(0, np.int64), np.zeros(1, np.int64))
    found = recssd.lookup([(ids, np.zeros(1, np.int64)), empty, empty])
    exact = tables[0][ids].astype(np.float64)
    assert np.abs(found[0][0] - exact.sum(0)).max() < 1e-5 * np.abs(exact).sum(0).max()
    assert not found[1].any()


def test_static_partition(drive: Drive, recssd: RecSsdTables, tables: list[Rows]) -> None:
    """The most frequent ids come from host DRAM: fewer pairs go to the drive, less time passes, the sums are equal."""
    asked = batch(16, 40, seed=3, most=300)
    drive.control.recssd(clear=True)
    start = drive.clock.now
    plain = recssd.lookup(asked)
    cold = drive.clock.now - start
    before = drive.control.recssd(clear=True)["counters"]
    recssd.keep([asked], most=200)
    start = drive.clock.now
    kept = recssd.lookup(asked)
    warm = drive.clock.now - start
    after = drive.control.recssd(clear=True)["counters"]
    for number in range(len(SHAPES)):
        recssd.keep_rows(number, [])
    assert near(kept, wanted(tables, asked))
    assert near(plain, wanted(tables, asked))
    assert after["pairs"] < before["pairs"] / 2
    assert warm < cold
    assert before["requests"] == len(SHAPES)


def test_page_grain_and_parallel(drive: Drive, recssd: RecSsdTables) -> None:
    """All tables' requests are in the drive together; each page crosses its channel whole."""
    asked = batch(8, 20, seed=4)
    before = drive.control.stats()["nand"]["classes"]["lookup"]
    recssd.lookup(asked)
    after = drive.control.stats()["nand"]["classes"]["lookup"]
    reads = after["reads"] - before["reads"]
    assert reads > 0
    assert after["nbytes"] - before["nbytes"] == reads * 4096
    assert drive.control.stats()["recssd"]["held"] == 0


def test_repeatable(tables: list[Rows]) -> None:
    """The same lookups take the same virtual time on another drive, to the nanosecond."""
    spent = []
    for _ in range(2):
        with Drive.start("rmssd", size=64 << 20, clock="virtual", memory=128 << 20) as drive:
            made = RecSsdTables(drive, SHAPES, spend=spend_on(drive))
            for number, rows in enumerate(tables):
                made.load(number, rows)
            start = drive.clock.now
            made.lookup(batch(4, 20))
            spent.append(drive.clock.now - start)
    assert spent[0] == spent[1] > 0


def test_as_a_baseline() -> None:
    """Over tables of a volume, wherever they begin: a whole inference within 1e-5, hot rows of the log on the host."""
    model = Model.rmc1(rows=1500)
    with Drive.start("rmssd", size=64 << 20, clock="virtual", memory=128 << 20) as drive:
        weights, rows = model.random_weights(1), [model.random_table(number) for number in range(8)]
        for table in model.create_tables(drive, tables=rows):
            table.close()
        log = make_locality(0.3, 60, tables=8, rows=1500, lookups=80, seed=1)
        whole = Recorded(log.name, log.lookups, np.random.default_rng(2).random((60, model.dense), np.float32))
        baseline = RecSsd()
        baseline.prepare(drive, model, weights, whole.part(0, 50))
        assert len({place.first for place in baseline.device.places}) > 1
        for batch in whole.part(50, 60).batches(5):
            assert batch.dense is not None
            answer = baseline.infer(batch)
            np.testing.assert_allclose(answer, model.reference(weights, rows, batch.dense, batch.sparse), rtol=1e-5)
        figures = drive.control.recssd()["counters"]
        assert figures["requests"] == 16
        assert 0 < figures["pairs"] < 10 * 8 * 80
        assert set(baseline.spent) == {"framework", "rows", "calls", "layers"}
        baseline.close()
        assert drive.control.recssd()["enabled"] is False


def test_refused(drive: Drive, recssd: RecSsdTables, tables: list[Rows]) -> None:
    """Bad ids and offsets are refused here; a drive that does not take the commands answers for itself."""
    empty = (np.empty(0, np.int64), np.zeros(1, np.int64))
    with pytest.raises(InvalidArgument, match=r"indices\[1\] = 4000"):
        recssd.lookup([(np.array([1, 4000]), np.array([0])), empty, empty])
    with pytest.raises(InvalidArgument, match="offsets"):
        recssd.lookup([(np.array([1, 2]), np.array([0, 2, 1])), empty, empty])
    with pytest.raises(InvalidArgument, match="larger namespace"):
        RecSsdTables(drive, [(4000, 32)] * 32, enable=False)
    with pytest.raises(InvalidArgument, match="stride 1500"):
        RecSsdTables(drive, SHAPES, stride=1500, enable=False)
    recssd.places[2] = recssd.places[2]._replace(rows=1 << 30)  # a host that is wrong about its table
    bad = (np.array([5, 1 << 28]), np.array([0]))
    with pytest.raises(LookupRefused):
        recssd.lookup([empty, empty, bad])
    recssd.places[2] = recssd.places[2]._replace(rows=SHAPES[2][0])
    asked = batch(2, 5)
    assert near(recssd.lookup(asked), wanted(tables, asked))


def test_by_the_wall_clock(tables: list[Rows]) -> None:
    """On a drive that runs in real time the sums are the same bits, with block I/O beside them."""
    with Drive.start("rmssd", size=64 << 20, memory=128 << 20) as drive:
        made = RecSsdTables(drive, SHAPES)
        for number, rows in enumerate(tables):
            made.load(number, rows)
        space = drive.namespace(1)
        first = np.array(space.read(5000, 8))
        for seed in range(10):
            asked = batch(20, 10, seed)
            assert near(made.lookup(asked), wanted(tables, asked))
            assert np.array_equal(space.read(5000, 8), first)
