"""No knob of the flash is inert: each one changes a figure of one fixed run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emucsd_firmware.nand.reliability import erase_fails, factory_bad, program_fails, read_outcome
from emucsd_firmware.nand.timing import BACKGROUND, BLOCK, LOOKUP, READ
from emucsd_firmware.profile import KNOBS, Profile
from tests.unit.nand_flash import RMSSD, Flash, Given, erase, program, read, small

DAY = 86_400_000_000_000

# a flash on which everything plays a part, and for each knob another value
BASE = small(
    {"channels": 2, "dies": 2, "planes": 2},
    command_ns=100,
    cache_read=True,
    multi_plane=True,
    suspend=True,
    suspend_ns=5_000,
    suspend_reads=2,
    retry_ns=14_000,
    max_retries=2,
)
BASE = replace(
    BASE,
    reliability=replace(
        RMSSD.reliability,
        rber_base=4e-3,
        rber_per_erase=1e-5,
        rber_per_read=1e-5,
        rber_per_day=2e-4,
        read_fail_ppm=20_000,
        factory_bad_ppm=20_000,
        program_fail_ppm=20_000,
        erase_fail_ppm=20_000,
        endurance=150,
    ),
)
OTHER: dict[str, Any] = {
    "geometry.channels": 1,
    "geometry.dies": 4,
    "geometry.planes": 1,
    "geometry.page_bytes": 8192,
    "nand.read_ns": 15_000,
    "nand.program_ns": 100_000,
    "nand.erase_ns": 1_000_000,
    "nand.transfer_ns_per_4k": 3_000,
    "nand.command_ns": 0,
    "nand.cache_read": False,
    "nand.multi_plane": False,
    "nand.suspend": False,
    "nand.suspend_ns": 0,
    "nand.suspend_reads": 1,
    "nand.retry_ns": 0,
    "nand.max_retries": 0,
    "reliability.rber_base": 0.0,
    "reliability.rber_per_erase": 0.0,
    "reliability.rber_per_read": 0.0,
    "reliability.rber_per_day": 0.0,
    "reliability.ecc_bits": 20,
    "reliability.read_fail_ppm": 0,
    "reliability.factory_bad_ppm": 0,
    "reliability.program_fail_ppm": 0,
    "reliability.erase_fail_ppm": 0,
    "reliability.endurance": 0,
    "reliability.seed": 2,
}


def figure(profile: Profile) -> dict[str, Any]:
    """Ends, counters and draws of one run."""
    flash = Flash(profile)
    rel = flash.record["reliability"]
    places, dies = range(300), profile.geometry.die_count
    outcomes = [read_outcome(rel, place, 100, 60, 3 * DAY) for place in places]
    ops = [program(0, 0), erase(0, 1, traffic=BACKGROUND)]
    for place, retries in enumerate(outcomes[:40]):
        traffic = BLOCK if place % 2 else LOOKUP
        given = Given(1000 * place, READ, place % dies, place % 5, 4096 if place % 2 else 128, traffic)
        ops.append(given._replace(retries=max(retries, 0)))
    ops += [program(200_000, 0, block=block) for block in range(4)] + [read(210_000, 0), read(210_000, 0)]
    return {
        "ends": flash.times(*ops),
        "counters": flash.model.snapshot(),
        "reads": outcomes,
        "programs": [program_fails(rel, place, 100) for place in places],
        "erases": [erase_fails(rel, place, erases) for place in places for erases in (100, 200)],
        "bad": [factory_bad(rel, place) for place in places],
    }


@pytest.mark.parametrize("key", OTHER)
def test_every_knob_changes_a_figure(key: str) -> None:
    """Another value of this knob alone gives another result."""
    part, _, name = key.partition(".")
    changed = replace(BASE, **{part: replace(getattr(BASE, part), **{name: OTHER[key]})})
    assert figure(changed) != figure(BASE)


def test_every_knob_is_tried() -> None:
    """The table above has all knobs of flash and reliability. How many blocks and pages there are is the FTL's."""
    owned = {key for key in KNOBS if key.startswith(("nand.", "reliability.", "geometry."))}
    assert owned - {"geometry.blocks", "geometry.pages"} == set(OTHER)


def test_runs_repeat() -> None:
    """The same run twice gives the same figures, all of them."""
    assert figure(BASE) == figure(BASE)
