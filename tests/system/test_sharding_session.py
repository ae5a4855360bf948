"""A model over two drives: one drive's answers, sooner."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from emucsd import Drive
from emucsd.errors import InvalidArgument
from emucsd.rm import Model, Session
from emucsd.rm.errors import InputError
from emucsd.sharding import Fleet, ShardedSession, ShardedTables, ShardLost

MODEL = Model.rmc1(rows=2000)


def start() -> Drive:
    return Drive.start("rmssd", size=64 << 20, clock="virtual", memory=64 << 20)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with start() as first, start() as second, Fleet([first, second]) as both:
        yield both


def test_one_drive_s_answers(fleet: Fleet) -> None:
    """Outputs over two drives are the reference's, and batches take about half of one drive's time."""
    weights = MODEL.random_weights(1)
    rows = [MODEL.random_table(number, 2) for number in range(len(MODEL.tables))]
    batches = [MODEL.random_batch(16, seed) for seed in range(8)]
    wanted = [MODEL.reference(weights, rows, *batch) for batch in batches]

    first = fleet.drives[0]
    alone = MODEL.create_tables(first, tables=rows, prefix="alone")
    with Session.open(first, MODEL, tables=alone, weights=weights, depth=4) as session:
        began = first.clock.now
        for out, right in zip(session.stream(batches), wanted, strict=True):
            assert np.allclose(out, right, rtol=1e-5, atol=1e-6)
        one = first.clock.now - began
    for table in alone:
        table.close()
    fleet.align()

    names = {f"half.{number}": data for number, data in enumerate(rows)}
    with ShardedTables.create(fleet, names, [t.lookups for t in MODEL.tables]) as tables:
        assert sorted(tables.places) == [0] * 4 + [1] * 4
        with ShardedSession.open(MODEL, tables, weights, depth=4) as both:
            began = fleet.now
            found = list(both.stream(batches))
            two = fleet.now - began
            for out, right in zip(found, wanted, strict=True):
                assert np.allclose(out, right, rtol=1e-5, atol=1e-6)
            assert 1.6 < one / two < 2.1
            with pytest.raises(InputError):
                both.send(batches[0][0][:3], batches[0][1])
        with pytest.raises(InvalidArgument, match=r"8 tables; rmc2"):
            ShardedSession.open(Model.rmc2(rows=100), tables, weights)


def test_a_drive_that_dies() -> None:
    """A batch in flight on a drive that ends is a lost shard, named."""
    with start() as first, start() as second, Fleet([first, second]) as fleet:
        rows = {f"t{number}": MODEL.random_table(number) for number in range(len(MODEL.tables))}
        tables = ShardedTables.create(fleet, rows)
        session = ShardedSession.open(MODEL, tables, MODEL.random_weights())
        ticket = session.send(*MODEL.random_batch(4))
        assert second.process is not None
        second.process.kill()
        with pytest.raises(ShardLost) as caught:
            session.read(ticket)
        assert caught.value.number == 1
        session.close()
        tables.close()
