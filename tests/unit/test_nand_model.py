"""The NAND model's Python side: memory, the record that compiled code uses, and the counters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emucsd_firmware.nand import timing
from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nand.state import Die, Nand, Op, Queue
from emucsd_firmware.profile import load
from emucsd_wire.layout import I64, State
from tests.unit.nand_flash import RMSSD, Flash, erase, program, read, small


class Root(State):
    """A record that holds the model's among others, as the drive's does."""

    before: I64
    nand: Nand
    after: I64


def test_records_fill_cache_lines() -> None:
    """Sizes that the speed depends on: two operations in a line, a queue in one, a die in three."""
    assert [layout.dtype.itemsize for layout in (Op, Queue, Die)] == [32, 64, 192]


def test_nested_record() -> None:
    """The model works through a record nested in another, and touches nothing beside it."""
    root = np.zeros(1, Root.dtype)
    root["before"], root["after"] = 11, 22
    model = NandModel(small(), jobs=4)
    model.fill(root[0]["nand"])
    timing.open_job(root[0]["nand"], 3)
    timing.submit(root[0]["nand"], 0, timing.READ, timing.BLOCK, 0, 4096, 3, 0)
    assert timing.close_job(root[0]["nand"], 3, 0) == -1
    timing.advance(root[0]["nand"], timing.NEVER)
    assert timing.pop_done(root[0]["nand"]) == 3
    assert timing.job_finish(root[0]["nand"], 3) == 20_000
    assert (root["before"][0], root["after"][0]) == (11, 22)


def test_fill_starts_afresh() -> None:
    """Filling again forgets what was in flight and all counters."""
    flash = Flash(small())
    flash.submit(read(0))
    flash.model.fill(flash.record)
    assert timing.next_event(flash.record) == timing.NEVER
    seen = flash.model.snapshot()
    assert seen["in_flight"] == 0
    assert seen["classes"]["block"]["reads"] == 0


def test_only_null_is_instant() -> None:
    """Of the built-in profiles, the one without delays takes the fast path."""
    instant = {name: int(NandModel(load(name), jobs=1).record["instant"]) for name in ("null", "femu", "rmssd")}
    assert instant == {"null": 1, "femu": 0, "rmssd": 0}


def test_retries_alone_take_time() -> None:
    """A flash whose only delay is the read retry is not instant."""
    null = load("null")
    slow = replace(null, nand=replace(null.nand, retry_ns=1000, max_retries=2))
    assert NandModel(slow, jobs=1).record["instant"] == 0


def test_snapshot_is_plain() -> None:
    """Counters by channel, die and class, as Python numbers that JSON takes."""
    flash = Flash(small({"channels": 2, "dies": 1}))
    flash.times(read(0, 0), program(0, 1), erase(300_000, 1))
    seen = flash.model.snapshot()
    assert seen["channels"] == [{"busy_ns": 6_000}, {"busy_ns": 6_000}]
    assert seen["dies"][0] == {
        "channel": 0,
        "suspensions": 0,
        "reads": 1,
        "programs": 0,
        "erases": 0,
        "nbytes": 4096,
        "busy_ns": 14_000,
        "wait_ns": 0,
    }
    assert [seen["dies"][1][name] for name in ("channel", "programs", "erases", "busy_ns")] == [1, 1, 1, 2_200_000]
    assert all(type(value) is int for die in seen["dies"] for value in die.values())
    assert (seen["in_flight"], seen["overflows"]) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 500_000), st.sampled_from([128, 4096])), max_size=60))
def test_work_is_conserved(reads: list[tuple[int, int, int]]) -> None:
    """Dies work as long as the array times add up to, channels as long as the transfers do."""
    flash = Flash(small({"channels": 2}))
    ends = flash.times(*(read(arrival, die, nbytes=nbytes) for die, arrival, nbytes in reads))
    seen = flash.model.snapshot()
    transfers = [-(-nbytes * RMSSD.nand.transfer_ns_per_4k // 4096) for _, _, nbytes in reads]
    assert sum(die["busy_ns"] for die in seen["dies"]) == 14_000 * len(reads)
    assert sum(channel["busy_ns"] for channel in seen["channels"]) == sum(transfers)
    assert sum(die["nbytes"] for die in seen["dies"]) == sum(nbytes for _, _, nbytes in reads)
    alone = [arrival + 14_000 + time for (_, arrival, _), time in zip(reads, transfers, strict=True)]
    assert all(end >= soonest for end, soonest in zip(ends, alone, strict=True))
    assert timing.room(flash.record) == 256
