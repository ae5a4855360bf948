"""Two tables that change places: between two requests, for every handle at once, and only where they are alike."""

from __future__ import annotations

import numpy as np
import pytest

from emucsd.traces import Bags, sums_in_order
from emucsd_firmware.lookup.tables import TableRefused
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import MAX_TABLES, TABLE_STATS
from tests.unit.lookup_rig import Rig, Rows, payload
from tests.unit.test_lookup_engine import equal, filled, rows_of

OLD, NEW = [(0, 1000)], [(1000, 500), (1504, 500)]
IDS = np.arange(0, 3000, 3)


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.place(list(range(256)))
    filled(made)
    return made


def pair(rig: Rig) -> tuple[tuple[int, int], tuple[Rows, Rows]]:
    """Two open tables of one shape and their rows."""
    handles = rig.open(4000, 32, OLD, name=1), rig.open(4000, 32, NEW, name=2)
    return handles, (rows_of(rig, 32, OLD), rows_of(rig, 32, NEW))


def wanted(rows: Rows) -> Rows:
    return sums_in_order(rows, Bags(IDS, np.array([0, len(IDS)])))


def test_in_order(rig: Rig) -> None:
    """Lookups sent before a swap see what was, those sent after it what is, even when the first is half done."""
    handles, rows = pair(rig)
    data = [payload(handle, IDS, np.array([0, len(IDS)]), 32) for handle in handles]
    assert [rig.send(data[n], tag=n) for n in (0, 1)] == [0, 0]
    rig.run(3000)
    assert rig.memory.requests[0]["cursor"] not in (0, len(IDS))
    rig.tables.swap(0, *handles, now=3000)
    assert [rig.send(data[n], tag=2 + n, now=3000) for n in (0, 1)] == [0, 0]
    rig.run()
    found = [rig.take(1, 32, tag=tag).sums for tag in range(4)]
    for tag, which in enumerate((0, 1, 1, 0)):
        assert equal(found[tag], wanted(rows[which])), tag
    versions = [TABLE_STATS.unpack(rig.tables.stats(0, handle)).version for handle in handles]
    assert versions == [1, 1]
    assert not rig.tables.records["active"].any()


def test_opened_again(rig: Rig) -> None:
    """A table opened a second time after a swap is the same table at its new place, also before the swap has run."""
    handles, _ = pair(rig)
    rig.tables.swap(0, *handles, now=0)
    for _ in range(2):
        assert rig.open(4000, 32, NEW, name=1) == handles[0]
        assert rig.open(4000, 32, OLD, name=2) == handles[1]
        with pytest.raises(TableRefused):
            rig.open(4000, 32, OLD, name=1)
        rig.run()


def test_twice(rig: Rig) -> None:
    """Two swaps are none, but the version says that there were two."""
    handles, rows = pair(rig)
    for _ in range(2):
        rig.tables.swap(0, *handles, now=0)
    answer = rig.answer(payload(handles[0], IDS, np.array([0, len(IDS)]), 32), 1, 32)
    assert equal(answer.sums, wanted(rows[0]))
    assert rig.tables.records[handles[0] % MAX_TABLES]["version"] == 2


def test_closed_meanwhile(rig: Rig) -> None:
    """A swap whose tables were closed by a reset before its turn changes nothing and lets go of them."""
    handles, _ = pair(rig)
    assert rig.send(payload(handles[0], IDS, np.array([0, len(IDS)]), 32)) == 0
    rig.tables.swap(0, *handles, now=0)
    with pytest.raises(TableRefused) as caught:
        rig.tables.close(0, handles[1])
    assert caught.value.status == Status.LOOKUP_BUSY
    rig.reset_port(0)
    rig.tables.close_port(0)
    rig.run()
    assert not rig.tables.records["active"].any()
    assert not rig.tables.records["version"].any()


def test_refused(rig: Rig) -> None:
    """Tables of other shapes, ports or names, and a table with itself, do not change places."""
    handles, _ = pair(rig)
    others = [rig.open(3999, 32, OLD, name=3), rig.open(4000, 16, NEW, name=4), rig.open(4000, 32, OLD, name=5, port=1)]
    for other, status in zip(
        (*others, handles[0], 12345),
        (*[Status.LOOKUP_TABLE_SHAPE] * 2, Status.LOOKUP_NO_TABLE, Status.LOOKUP_TABLE_SHAPE, Status.LOOKUP_NO_TABLE),
        strict=True,
    ):
        with pytest.raises(TableRefused) as caught:
            rig.tables.swap(0, handles[0], other, now=0)
        assert caught.value.status == status


def test_generated(rig: Rig) -> None:
    """A generated table and a stored one of the same shape change places, seed and all."""
    stored, made = rig.open(4000, 32, OLD, name=1), rig.open(4000, 32, NEW, name=2, seed=9)
    rig.map[125:] = 0
    rig.tables.swap(0, stored, made, now=0)
    data = [payload(handle, IDS, np.array([0, len(IDS)]), 32) for handle in (stored, made)]
    from emucsd.rowtypes import generated_rows

    answers = [rig.answer(one, 1, 32).sums for one in data]
    rows = generated_rows(9, np.arange(4000), 32)
    assert equal(answers[0], wanted(rows))
    assert equal(answers[1], wanted(rows_of(rig, 32, OLD)))
