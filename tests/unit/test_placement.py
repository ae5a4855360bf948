"""Placements learnt from a trace: permutations that put together what is asked for together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd.errors import InvalidArgument
from emucsd.placement import (
    Order,
    Placement,
    PlacementError,
    by_coaccess,
    by_frequency,
    by_spread,
    pages_read,
)
from emucsd.traces import AMAZON_FILE, Bags, bags_of, find_data, load_amazon, make_amazon
from emucsd.traces.bags import joined

ORDERS: tuple[Order, ...] = (by_frequency, by_spread, by_coaccess)
DATA = find_data()


@settings(max_examples=60)
@given(st.data())
@pytest.mark.parametrize("order", ORDERS)
def test_is_a_permutation(order: Order, data: st.DataObject) -> None:
    """Whatever the trace, the page and the dies, every row has a place of its own."""
    rows = data.draw(st.integers(1, 90))
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=20))
    ids = data.draw(st.lists(st.integers(0, rows - 1), min_size=sum(lengths), max_size=sum(lengths)))
    bags = bags_of(np.array(lengths), np.array(ids, np.int64))
    found = order(bags, rows, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 5))).check()
    assert found.rows == rows
    assert found.nbytes == 4 * rows
    assert found.places[found.order].tolist() == list(range(rows))
    assert found.order[found.bags(bags).indices].tolist() == ids


def test_frequency() -> None:
    """Hot rows share the first pages; of rows nobody asks for, the smaller id comes first."""
    bags = bags_of(np.array([6]), np.array([7, 7, 7, 2, 2, 5]))
    assert by_frequency(bags, 8, 2).order.tolist() == [7, 2, 5, 0, 1, 3, 4, 6]


def test_dies_get_equal_heat() -> None:
    """Pages in order of heat are dealt there and back again, so no die has all the hotter ones."""
    rows, per_page, dies = 4 * 64, 4, 4
    counts = np.arange(rows, 0, -1)
    bags = bags_of(np.array([int(counts.sum())]), np.repeat(np.arange(rows), counts))
    for order in ORDERS:
        pages = counts[order(bags, rows, per_page, dies).order].reshape(-1, per_page).sum(axis=1)
        loads = pages.reshape(-1, dies).sum(axis=0)
        assert loads.max() <= 1.01 * loads.min(), order


def test_spread() -> None:
    """Each page gets its share of the hot rows."""
    rows, per_page = 60, 4
    bags = bags_of(np.array([15 * 16 // 2]), np.repeat(np.arange(15), np.arange(15, 0, -1)))
    order = by_spread(bags, rows, per_page).order
    assert all((page < 15).sum() == 1 for page in order.reshape(-1, per_page))


def clusters(bags: int, seed: int) -> Bags:
    """Bags whose ids come from one of 60 clusters of 8 rows each, all as popular."""
    rng = np.random.default_rng(seed)
    rows = np.random.default_rng(99).permutation(480).reshape(60, 8)
    return joined([bags_of(np.array([5]), rng.choice(rows[rng.integers(60)], 5)) for _ in range(bags)])


def test_coaccess_finds_clusters() -> None:
    """Rows that come together share pages: a bag of a cluster then reads little more than a page."""
    train, test = clusters(2000, 1), clusters(400, 2)
    learnt = by_coaccess(train, 480, 8)
    assert pages_read(test, learnt, 8, 5) < 0.25
    assert pages_read(test, by_frequency(train, 480, 8), 8, 5) > 0.7


def shuffled(bags: Bags, seed: int = 0) -> Bags:
    order = np.random.default_rng(seed).permutation(bags.count)
    return joined([bags.part(int(at), int(at) + 1) for at in order])


@pytest.mark.parametrize("real", [False, True])
def test_learnt_holds_on_unseen(real: bool) -> None:
    """Learnt from half of the users, both orders save page reads for the other; co-access does within a history."""
    if real and DATA is None:
        pytest.skip("no folder with the real log: set EMUCSD_DATA")
    lookups = load_amazon(DATA / AMAZON_FILE) if real and DATA is not None else make_amazon()
    bags = shuffled(lookups.bags)
    train, test = bags.part(0, bags.count // 2), bags.part(bags.count // 2, bags.count)
    frequency = by_frequency(train, lookups.rows, 16, 16)
    together = by_coaccess(train, lookups.rows, 16, 16)
    plain = [pages_read(test, None, 16, window) for window in (9, 512)]
    assert pages_read(test, frequency, 16, 512) < 0.85 * plain[1]
    assert pages_read(test, together, 16, 512) < 0.9 * plain[1]
    if real:  # made histories have popularity, and no companions
        assert pages_read(test, together, 16, 9) < 0.95 * min(plain[0], pages_read(test, frequency, 16, 9))


def test_linear_in_the_trace() -> None:
    """A bag of many ids costs no square of them."""
    rng = np.random.default_rng(0)
    bags = bags_of(np.array([60_000]), rng.integers(0, 20_000, 60_000))
    assert by_coaccess(bags, 20_000, 32).check().rows == 20_000


def test_files_and_refusals(tmp_path: Path) -> None:
    """A placement comes back from its file; other files, maps that are no permutation and foreign ids are refused."""
    bags = bags_of(np.array([3]), np.array([2, 2, 0]))
    learnt = by_frequency(bags, 3, 2)
    learnt.save(tmp_path / "map")
    again = Placement.load(tmp_path / "map")
    assert (again.places.tolist(), again.method) == (learnt.places.tolist(), "frequency")
    (tmp_path / "other").write_bytes(b"other")
    np.savez(tmp_path / "twice.npz", places=np.array([0, 0], np.uint32), method=np.array("x"))
    for name in ("other", "twice.npz"):
        with pytest.raises(PlacementError):
            Placement.load(tmp_path / name)
    with pytest.raises(InvalidArgument, match="table of 2 rows"):
        by_frequency(bags, 2, 2)
    for order in ORDERS:
        with pytest.raises(InvalidArgument, match="at least 1"):
            order(bags, 3, 0, 1)
    with pytest.raises(InvalidArgument, match="window"):
        pages_read(bags, None, 1, 4)
