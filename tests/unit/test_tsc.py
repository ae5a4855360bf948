"""The rate of the time stamp counter, as guests are told it."""

from __future__ import annotations

import platform
import time

import pytest

from emucsd_femu import tsc


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a time stamp counter is an x86-64 machine's")
def test_rate_is_measured_the_same_twice() -> None:
    """Two measurements some time apart agree within what the guest's kernel accepts (one per cent)."""
    first = tsc.khz()
    tsc.khz.cache_clear()
    time.sleep(0.01)
    assert tsc.khz() == pytest.approx(first, rel=0.01)


def test_only_emulated_x86_guests_are_told() -> None:
    """Under KVM and on Arm the guest's kernel knows its clock's rate by itself."""
    assert tsc.words("aarch64", "tcg") == ""
    assert tsc.words("x86_64", "kvm") == ""
