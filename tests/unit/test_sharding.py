"""Spreading tables over drives."""

from __future__ import annotations

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucsd.errors import InvalidArgument
from emucsd.sharding import Fleet, ShardLost, spread


@given(st.lists(st.integers(0, 100), max_size=7), st.integers(1, 3))
def test_spread_is_near_the_best(loads: list[int], drives: int) -> None:
    """No drive gets more than 4/3 of what the best spread of all would give its fullest drive."""
    places = spread(loads, drives)
    assert len(places) == len(loads)

    def fullest(places: tuple[int, ...] | list[int]) -> int:
        return max(sum(load for load, place in zip(loads, places, strict=True) if place == n) for n in range(drives))

    best = min(fullest(some) for some in itertools.product(range(drives), repeat=len(loads)))
    assert 3 * fullest(places) <= 4 * best


def test_spread_of_equal_tables() -> None:
    """Tables of equal load go round; tables of no load too, so no drive is left without."""
    assert sorted(spread([1.0] * 8, 2)) == [0] * 4 + [1] * 4
    assert sorted(spread([0.0] * 4, 2)) == [0, 0, 1, 1]
    with pytest.raises(InvalidArgument, match="at least one drive"):
        spread([1.0], 0)
    with pytest.raises(InvalidArgument, match="0 or more"):
        spread([-1.0], 1)


def test_errors() -> None:
    """A fleet needs drives; the error of a lost one tells what it held, also from another process."""
    with pytest.raises(InvalidArgument, match="at least one"):
        Fleet([])
    lost = pickle.loads(pickle.dumps(ShardLost(1, ["items.1of2"], "its process ended")))
    assert (lost.number, lost.held) == (1, ("items.1of2",))
    assert "items.1of2" in str(lost)
