"""Draws of the reliability model: repeatable, of the stated frequency, and nothing at all when the knobs are zero."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from emucsd_firmware.nand import reliability
from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nand.reliability import erase_fails, error_rate, factory_bad, program_fails, read_outcome
from emucsd_firmware.profile import Profile
from tests.unit.nand_flash import RMSSD, small

DAY = 86_400_000_000_000


def with_reliability(max_retries: int = 5, **knobs: Any) -> Profile:
    return replace(small(max_retries=max_retries), reliability=replace(RMSSD.reliability, **knobs))


def draws(max_retries: int = 5, **knobs: Any) -> Any:
    """The Reliability record of a flash with these knobs; it owns its memory."""
    return NandModel(with_reliability(max_retries, **knobs), jobs=1, pool=1).record["reliability"].copy()


def at_most(mean: float, bits: int) -> float:
    """Poisson, the plain way."""
    return sum(math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(bits + 1))


def test_nothing_fails_by_default() -> None:
    """All knobs zero: no read retries, nothing fails, whatever the wear."""
    rel = draws()
    assert rel["reads_err"] == 0
    for ppn in range(100):
        assert read_outcome(rel, ppn, 1 << 20, 1 << 30, 1000 * DAY) == 0
        assert program_fails(rel, ppn, 1 << 20) == erase_fails(rel, ppn, 1 << 20) == factory_bad(rel, ppn) == 0


def test_error_rate_adds_up() -> None:
    """The bit error rate is the sum of base, erases, reads and days."""
    rel = draws(rber_base=1e-4, rber_per_erase=1e-6, rber_per_read=1e-7, rber_per_day=1e-5)
    assert error_rate(rel, 100, 1000, 3 * DAY) == pytest.approx(1e-4 + 1e-4 + 1e-4 + 3e-5)
    assert error_rate(rel, 0, 0, -5) == pytest.approx(1e-4)


@pytest.mark.parametrize("expected", [0.05, 0.5, 0.95])
def test_first_read_succeeds_as_poisson_says(expected: float) -> None:
    """The share of reads without a retry is the chance that none of 4 codewords has too many errors."""
    low, high = 0.0, 0.1
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if at_most(rate * 8192, 40) ** 4 > expected else (low, rate)
    rel = draws(rber_base=rate, ecc_bits=40)
    good = sum(read_outcome(rel, ppn, 7, ppn % 13, 0) == 0 for ppn in range(4000))
    assert good / 4000 == pytest.approx(expected, abs=0.02)


def test_retries_rise_with_the_error_rate() -> None:
    """More errors, more retry steps, until the retries run out and the page is lost."""
    seen = []
    for rate in (1e-4, 6e-3, 1.2e-2, 2.4e-2, 9e-2):
        rel = draws(rber_base=rate, ecc_bits=40, max_retries=3)
        seen.append([read_outcome(rel, ppn, 0, 0, 0) for ppn in range(200)])
    assert set(seen[0]) == {0}
    assert all(max(a) <= min(b) for a, b in pairwise(seen[1:4]))
    assert seen[4] == [-1] * 200


def test_below_the_safe_rate_nothing_is_drawn() -> None:
    """The shortcut is exact: just below it the largest draw still passes."""
    rel = draws(rber_base=1e-3, ecc_bits=40)
    safe = float(rel["safe_rate"])
    assert 1e-4 < safe < 5e-3
    assert at_most(safe * 8192, 40) ** 4 >= 1 - 1e-15


def test_draws_repeat() -> None:
    """The same seed and history draw the same; another seed, page, wear or read count draws anew."""
    knobs: dict[str, Any] = {"rber_base": 5.2e-3, "ecc_bits": 40}
    rel, same, other = draws(**knobs), draws(**knobs), draws(**knobs, seed=2)
    history = [(ppn, 3, 5) for ppn in range(500)]
    first = [read_outcome(rel, *h, 0) for h in history]
    assert first == [read_outcome(same, *h, 0) for h in history]
    assert 0 < sum(first) < 500
    for changed in (
        [read_outcome(other, *h, 0) for h in history],
        [read_outcome(rel, ppn + 500, 3, 5, 0) for ppn in range(500)],
        [read_outcome(rel, ppn, 4, 5, 0) for ppn in range(500)],
        [read_outcome(rel, ppn, 3, 6, 0) for ppn in range(500)],
    ):
        assert changed != first


@pytest.mark.parametrize(
    ("knob", "draw"),
    [
        ("read_fail_ppm", lambda rel, n: read_outcome(rel, n, 1, 1, 0) == -1),
        ("program_fail_ppm", lambda rel, n: program_fails(rel, n, 1)),
        ("erase_fail_ppm", lambda rel, n: erase_fails(rel, n, 1)),
        ("factory_bad_ppm", lambda rel, n: factory_bad(rel, n)),
    ],
)
def test_failures_have_their_frequency(knob: str, draw: Any) -> None:
    """So many in a million, each drawn by itself."""
    rel = draws(**{knob: 50_000})
    assert sum(draw(rel, n) for n in range(20_000)) / 20_000 == pytest.approx(0.05, abs=0.006)
    assert not any(draw(draws(**{knob: 0}), n) for n in range(100))


def test_endurance_is_a_hard_end() -> None:
    """A block survives as many erases as its endurance says; the next one fails."""
    rel = draws(endurance=1000)
    assert [erase_fails(rel, 4, erases) for erases in (0, 999, 1000, 5000)] == [0, 0, 1, 1]


def test_uniform_covers_its_range() -> None:
    """The hash is even in its top bits: 16 buckets within four deviations of their share."""
    buckets = [0] * 16
    for place in range(16_000):
        buckets[int(reliability._uniform(1, 1, place, 0, 0) * 16)] += 1
    assert all(abs(count - 1000) < 4 * math.sqrt(1000) for count in buckets)
