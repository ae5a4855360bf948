"""The drive's time as its host sees it: what both clocks do, and the wall clock. ``virtual`` has the other one."""

from __future__ import annotations

import time
from typing import Protocol

from emucsd.errors import InvalidArgument


class Clock(Protocol):
    """What both clocks do."""

    @property
    def virtual(self) -> bool:
        """Whether time is the drive's to move."""

    @property
    def now(self) -> int:
        """ns since an arbitrary start."""

    def think(self, ns: int) -> None:
        """The host is busy with something else for ``ns`` nanoseconds. :raises InvalidArgument: negative"""


class RealClock:
    """CLOCK_MONOTONIC."""

    virtual = False

    @property
    def now(self) -> int:
        return time.monotonic_ns()

    def think(self, ns: int) -> None:
        """Let ``ns`` nanoseconds pass."""
        if ns < 0:
            raise InvalidArgument(f"think({ns}): time goes forward only")
        time.sleep(ns / 1e9)
