"""The page register, which goes beyond the paper: vectors of one page share one array read."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd_firmware.nand import timing
from emucsd_firmware.nand.timing import BLOCK, ERASE, LOOKUP, PROGRAM, READ
from emucsd_firmware.profile import Profile
from tests.unit.nand_flash import Flash, Given, Reference, erase, program, read, small


def register(geometry: dict[str, Any] | None = None, **nand: Any) -> Profile:
    """A small flash whose vector reads look at the register."""
    profile = small(geometry, **nand)
    return replace(profile, lookup=replace(profile.lookup, page_register=True))


def vector(arrival: int, block: int = 0, **more: Any) -> Given:
    """A vector of 128 bytes: 14 us of array, 188 ns of channel."""
    return Given(arrival, READ, block=block, nbytes=128, traffic=LOOKUP, **more)


def hits(flash: Flash) -> dict[str, int]:
    found: dict[str, int] = flash.model.snapshot()["page_register"]
    return found


def test_same_page_next() -> None:
    """The page that the die read last costs only its transfer, whoever asks; another page costs a read again."""
    flash = Flash(register())
    assert flash.times(vector(0), vector(0), vector(20_000), vector(30_000, 1)) == [14_188, 14_376, 20_188, 44_188]
    assert hits(flash) == {"register_hits": 2, "merged": 0}


def test_off_by_default() -> None:
    """Without the switch each vector is an array read, as published."""
    flash = Flash(small())
    assert flash.times(vector(0), vector(0)) == [14_188, 28_376]
    assert hits(flash) == {"register_hits": 0, "merged": 0}


def test_what_fills_and_voids_the_register() -> None:
    """A page of block I/O fills it, but block reads never profit; programs and erases void it."""
    assert Flash(register()).times(read(0), vector(30_000)) == [20_000, 30_188]
    assert Flash(register()).times(read(0), read(30_000)) == [20_000, 50_000]
    assert Flash(register()).times(vector(0), program(20_000, block=1), vector(300_000)) == [14_188, 226_000, 314_188]
    assert Flash(register()).times(vector(0), erase(20_000, block=1), vector(2_100_000))[2] == 2_114_188


def submit(flash: Flash, job: int, arrivals: list[int], block: int = 0) -> None:
    for arrival in arrivals:
        timing.submit_vector(flash.record, arrival, flash.profile.geometry.ppn(0, block, 3), 128, job)


def test_waiting_read_takes_others_along() -> None:
    """Reads of one page for one job that wait together become one, whose transfer carries the bytes of all."""
    flash = Flash(register())
    for job in (0, 1):
        timing.open_job(flash.record, job)
    submit(flash, 0, [0, 5], block=1)
    submit(flash, 0, [10, 15, 20])
    submit(flash, 1, [25, 30])
    submit(flash, 0, [20_000])  # too late to be told to the first one
    for job in (0, 1):
        timing.close_job(flash.record, job, 0)
    flash.advance()
    end = 14_000 + 2 * 188 + 14_000 + 3 * 188 + 2 * 188
    assert flash.ended == {0: end + 188, 1: end}
    assert hits(flash) == {"register_hits": 2, "merged": 4}
    counted = flash.model.snapshot()["classes"]["lookup"]
    assert (counted["reads"], counted["nbytes"], counted["busy_ns"]) == (4, 8 * 128, 28_000)
    assert timing.room(flash.record) == 256


def test_only_for_plain_flash() -> None:
    """Where the register is shared by planes, or has a cache before it, or programs pause, nothing is kept."""
    for extra in ({"cache_read": True}, {"multi_plane": True}, {"suspend": True}, {"command_ns": 5}):
        assert Flash(register(None, **extra)).record["page_register"] == 0


@given(st.integers(0, 1 << 32), st.integers(1, 60))
@settings(max_examples=150)
def test_register_equals_reference(seed: int, count: int) -> None:
    """Every end is the slow model's, over random mixes on few pages."""
    random = Random(seed)
    times = {name: random.choice((0, 5, 10, 40)) for name in ("program_ns", "erase_ns", "transfer_ns_per_4k")}
    profile = register({"channels": random.choice((1, 2)), "dies": random.randint(1, 3)}, read_ns=20, **times)
    spread = random.choice((0, 50, 1000))
    ops = []
    for _ in range(count):
        kind, traffic = random.choice(((READ, LOOKUP),) * 6 + ((READ, BLOCK), (PROGRAM, BLOCK), (ERASE, BLOCK)))
        nbytes = 0 if kind == ERASE else random.choice((128, 1024))
        die = random.randrange(profile.geometry.die_count)
        ops.append(Given(random.randint(0, spread), kind, die, random.randrange(3), nbytes, traffic))
    assert Flash(profile).times(*ops) == Reference(profile, ops).run()
