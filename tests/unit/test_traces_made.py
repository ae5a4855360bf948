"""Made inputs have the real logs' skew; bags, and what they sum to."""

from __future__ import annotations

import numpy as np
import pytest

from emucsd.traces import (
    AMAZON,
    AMAZON_FILE,
    AMAZON_ITEMS,
    CRITEO,
    Bags,
    Zipf,
    bags_of,
    draw,
    find_data,
    load_amazon,
    make_amazon,
    make_criteo,
    make_uniform,
    sums_in_order,
)
from emucsd.traces.bags import joined

DATA = find_data()


@pytest.mark.skipif(DATA is None, reason="no folder with the real log: set EMUCSD_DATA")
def test_amazon_skew() -> None:
    """The made histories have the real ones' size, lengths and popularity, within a few percent."""
    assert DATA is not None
    real, made = load_amazon(DATA / AMAZON_FILE), make_amazon()
    assert real.rows == made.rows == AMAZON_ITEMS
    assert real.bags.count == made.bags.count
    assert abs(len(made.bags.indices) / len(real.bags.indices) - 1) < 0.1
    assert np.median(np.diff(real.bags.offsets)) in (6, 7)
    for top in (237, 2371):
        shares = []
        for _, rows, bags in (real, made):
            counts = np.sort(np.bincount(bags.indices, minlength=rows))[::-1]
            shares.append(counts[:top].sum() / counts.sum())
        assert abs(shares[0] - shares[1]) < 0.04


def test_made_is_repeatable() -> None:
    """The same seed gives the same input, another seed another; ids stay below the table's rows."""
    assert np.array_equal(make_amazon(100, seed=3).bags.indices, make_amazon(100, seed=3).bags.indices)
    assert not np.array_equal(make_uniform(9, 9, 99, 1).bags.indices, make_uniform(9, 9, 99, 2).bags.indices)
    for lookups in make_criteo(500, (1, 2, 3, 1000, 10**6)):
        assert lookups.bags.indices.min() >= 0
        assert lookups.bags.indices.max() < lookups.rows


@pytest.mark.parametrize("law", [AMAZON, CRITEO])
def test_draw_reaches_every_row(law: Zipf) -> None:
    """Scattering loses no row: a small table's every row is drawn."""
    ids = draw(law, 50, 20_000, np.random.default_rng(0))
    assert set(ids.tolist()) == set(range(50))


def test_bags_parts() -> None:
    """Parts and batches of bags keep their ids and start at offset 0."""
    bags = bags_of(np.array([2, 0, 3]), np.arange(5))
    assert bags.part(1, 3).offsets.tolist() == [0, 0, 3]
    assert [b.indices.tolist() for b in bags.batches(2)] == [[0, 1], [2, 3, 4]]
    again = joined(list(bags.batches(2)))
    assert again.offsets.tolist() == bags.offsets.tolist()
    assert again.indices.tolist() == bags.indices.tolist()


def test_sums_in_order() -> None:
    """The reference adds FP32 in index order from zero, and an empty bag is zeros."""
    table = np.array([[1e8], [1.0], [-1e8]], np.float32)
    bags = Bags(np.array([0, 1, 2, 0, 2, 1]), np.array([0, 3, 3, 6]))
    assert sums_in_order(table, bags).tolist() == [[0.0], [0.0], [1.0]]
