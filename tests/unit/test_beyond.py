"""What `--beyond` measures, and what it says of it, without a drive."""

from __future__ import annotations

import numpy as np
import pytest

from emucsd.reproduce.rm_ssd import beyond
from emucsd.reproduce.rm_ssd.beyond_workloads import DTYPES, Workload, make_workloads, rows_a_page
from emucsd.rowtypes import DTYPES as STORED
from emucsd.rowtypes import stride_of
from emucsd_wire.vendor import content_bytes


@pytest.fixture(scope="module")
def workloads() -> list[Workload]:
    return make_workloads(1, quick=True)


def test_five_workloads(workloads: list[Workload]) -> None:
    """Amazon's histories and four localities; both halves ask the same tables, and the same seed gives the same ids."""
    assert [w.name for w in workloads] == ["amazon", "K = 0", "K = 0.3", "K = 1", "K = 2"]
    again = make_workloads(1, quick=True)
    for one, other in zip(workloads, again, strict=True):
        assert one.train.samples == one.test.samples
        for mine, theirs in zip(one.test.lookups, other.test.lookups, strict=True):
            assert np.array_equal(mine.bags.indices, theirs.bags.indices)
    assert not np.array_equal(
        make_workloads(2, quick=True)[1].test.lookups[0].bags.indices, workloads[1].test.lookups[0].bags.indices
    )


def test_places_keep_sums(workloads: list[Workload]) -> None:
    """A placement changes which rows are read, and never how many, nor their order in a bag."""
    for workload in workloads[:2]:
        plain = workload.asked(workload.test, "id", "float32")
        placed = workload.asked(workload.test, "co-access", "float32")
        for one, other in zip(plain, placed, strict=True):
            for number, ((ids, offsets), (places, same)) in enumerate(zip(one, other, strict=True)):
                assert np.array_equal(offsets, same)
                assert np.array_equal(workload.placements("co-access", "float32")[number].places[ids], places)


def test_row_sizes() -> None:
    """Bytes of a row, and rows of a page, are those that tables are stored with."""
    for name, size in DTYPES.items():
        for dim in (32, 64):
            assert size(dim) == content_bytes(STORED[name], dim)
            assert rows_a_page(name, dim) == 4096 // stride_of(STORED[name], dim)


def test_groups(workloads: list[Workload]) -> None:
    """Every mechanism meets every workload once, on a drive of its settings; each drive is started once."""
    groups = list(beyond._groups(workloads))
    pairs = [(w.name, m.name) for _, some in groups for w, m in some]
    assert len(pairs) == len(set(pairs)) == len(workloads) * len(beyond.MECHANISMS)
    assert len({(*sorted(settings.items()), some[0][1].way == "two drives") for settings, some in groups}) == len(
        groups
    )
    for settings, some in groups:
        assert all(m.register == settings["lookup.page_register"] for _, m in some)
        assert all(bool(m.cache) == bool(settings["lookup.cache_rows"]) for _, m in some)


def test_mechanisms_compare() -> None:
    """Whatever a mechanism is compared to is measured, and is itself compared to nothing."""
    known = {m.name: m for m in beyond.MECHANISMS}
    assert len(known) == len(beyond.MECHANISMS)
    for mechanism in beyond.MECHANISMS:
        assert not mechanism.versus or not known[mechanism.versus].versus


def test_floor() -> None:
    """All together at 2x on two workloads and below 0.98 on none meets the floor; who is slower alone is named."""

    def rows(together: list[float], alone: float = 1.0) -> list[dict[str, object]]:
        return [
            {"workload": str(n), "mechanism": name, "ratio": ratio, "counted": True}
            for n, value in enumerate(together)
            for name, ratio in (("all together", value), ("page register", alone))
        ]

    assert beyond._floor(rows([2.0, 2.5, 0.98, 1.0, 1.0]))["met"]
    assert not beyond._floor(rows([2.0, 1.9, 1.0, 1.0, 1.0]))["met"]
    assert not beyond._floor(rows([2.0, 2.5, 0.97, 1.0, 1.0]))["met"]
    slow = beyond._floor(rows([2.0, 2.5, 1.0, 1.0, 1.0], alone=0.9))
    assert slow["met"]
    assert slow["slower_alone"] == [f"page register, {n}: 0.9" for n in range(5)]
