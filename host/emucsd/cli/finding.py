"""What a probe of `emucsd doctor` finds."""

from __future__ import annotations

from typing import NamedTuple

GOOD, PARTLY, MISSING = "ok", "partly", "missing"


class Finding(NamedTuple):
    """One probe's answer. ``needed_for`` names what a user can't do without it."""

    name: str
    state: str
    found: str
    needed_for: str
    next_step: str = ""
