"""The event engine against a slow model of the same rules, over random mixes of operations."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd_firmware.nand.timing import BACKGROUND, BLOCK, ERASE, LOOKUP, PROGRAM, READ
from emucsd_firmware.profile import Profile
from tests.unit.nand_flash import Flash, Given, Reference, small

TIMES = (0, 5, 10, 10, 20, 40, 200)  # multiples, so that much happens at the same moment


def flash_of(random: Random) -> Profile:
    """A small geometry with any abilities, and times small enough that everything meets everything."""
    shape = {"channels": random.choice((1, 1, 2)), "dies": random.randint(1, 3), "planes": random.choice((1, 2, 4))}
    names = ("read_ns", "program_ns", "erase_ns", "transfer_ns_per_4k", "suspend_ns", "retry_ns")
    nand: dict[str, Any] = {name: random.choice(TIMES) for name in names}
    nand |= {name: random.random() < 0.6 for name in ("cache_read", "multi_plane", "suspend")}
    nand |= {"command_ns": random.choice((0, 0, 5)), "suspend_reads": random.randint(1, 3)}
    if not any(nand[name] for name in names[:4]):
        nand["read_ns"] = 10  # all zero: the engine does nothing, by a path of its own
    return small(shape, **nand)


def mix_of(random: Random, dies: int, count: int) -> list[Given]:
    """Operations in no order of time, several of them at each moment."""
    spread = random.choice((0, 50, 300, 1000))
    kinds = random.choice(((READ,), (READ, PROGRAM), (READ, READ, READ, PROGRAM, ERASE), (PROGRAM, PROGRAM, ERASE)))
    classes = random.choice(((BLOCK,), (BLOCK, BACKGROUND), (BLOCK, LOOKUP, BACKGROUND)))
    ops = []
    for _ in range(count):
        kind, die, block = random.choice(kinds), random.randrange(dies), random.randrange(8)
        arrival = random.randrange(spread // 5 + 1) * 5
        nbytes = 0 if kind == ERASE else random.choice((128, 1024, 4096))
        retries = random.choice((0, 0, 0, 1, 2)) if kind == READ else 0
        ops.append(Given(arrival, kind, die, block, nbytes, random.choice(classes), retries))
    return ops


@st.composite
def mixes(draw: st.DrawFn) -> tuple[Profile, list[Given]]:
    """A flash, and up to 60 operations for it. Drawn as a seed: hypothesis prefers calm mixes."""
    random = Random(draw(st.integers(0, 1 << 32)))
    profile = flash_of(random)
    return profile, mix_of(random, profile.geometry.die_count, draw(st.integers(1, 60)))


def counters(profile: Profile, reference: Reference) -> dict[str, list[Any]]:
    """The reference's counters, as ``snapshot`` names them."""
    return {
        "bus": reference.bus_busy,
        "busy": [sum(die.busy) for die in reference.dies],
        "wait": [sum(die.waited) for die in reference.dies],
        "pauses": [die.pauses for die in reference.dies],
        "classes": [
            [sum(die.busy[c] for die in reference.dies), sum(die.waited[c] for die in reference.dies)] for c in range(3)
        ],
    }


def measured(flash: Flash) -> dict[str, list[Any]]:
    """The engine's."""
    seen = flash.model.snapshot()
    return {
        "bus": [channel["busy_ns"] for channel in seen["channels"]],
        "busy": [die["busy_ns"] for die in seen["dies"]],
        "wait": [die["wait_ns"] for die in seen["dies"]],
        "pauses": [die["suspensions"] for die in seen["dies"]],
        "classes": [[seen["classes"][c]["busy_ns"], seen["classes"][c]["wait_ns"]] for c in seen["classes"]],
    }


@given(mixes())
@settings(max_examples=400)
def test_engine_equals_reference(case: tuple[Profile, list[Given]]) -> None:
    """Every end, busy time and waiting time is the slow model's, for operations submitted ahead in any order."""
    profile, ops = case
    reference, flash = Reference(profile, ops), Flash(profile)
    assert flash.times(*ops) == reference.run()
    assert measured(flash) == counters(profile, reference)


@given(mixes(), st.lists(st.integers(0, 40), max_size=40))
@settings(max_examples=100)
def test_steps_change_nothing(case: tuple[Profile, list[Given]], pauses: list[int]) -> None:
    """Submitting in order of time, with the engine run in between, ends everything when submitting ahead does."""
    profile, ops = case
    ops = sorted(ops, key=lambda op: op.arrival)
    stepwise, reported = Flash(profile), []
    for op, pause in zip(ops, [*pauses, *[0] * len(ops)], strict=False):
        reported += stepwise.advance(max(-1, op.arrival - 1 - pause))
        stepwise.submit(op)
    reported += stepwise.advance()
    ends = Flash(profile).times(*ops)
    assert [stepwise.ended[number] for number in range(len(ops))] == ends
    assert reported == sorted(range(len(ops)), key=lambda number: (ends[number], number))
