"""Virtual time, the host's side: it moves only while the host waits or thinks.

Virtual time (``emucsd_wire.nvme.ClockWords``) stands still unless the host asks for a grant: waiting for a completion
lets the drive jump to it, and ``think`` says how long the host itself was busy. One thread at a time drives a virtual
clock; with that a run gives the same numbers, to the nanosecond, on any machine.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from emucsd.errors import DriveTimeout, InvalidArgument
from emucsd.ring import DRIVE_NOW, GRANTED, HOST_NOW, WAIT, HostClock

if TYPE_CHECKING:
    from emucsd.link import Link

_RINGS = 65


class Follower(Protocol):
    """A queue pair on a virtual clock."""

    ring_address: int

    def think(self, until: int) -> None:
        """Let the drive go on to a time."""


class VirtualClock:
    """The host's side of the grant protocol. ``lock`` is held around every compiled call that may ask for a grant."""

    virtual = True

    def __init__(self, link: Link) -> None:
        self._link = link
        self.lock = threading.RLock()
        self._rings = np.zeros(_RINGS, np.int64)
        self._record = np.zeros((), HostClock.dtype)
        self._record["rings"] = self._rings.ctypes.data
        self._record["now"] = link.read_word(DRIVE_NOW)
        self._followers: list[Follower] = []

    @property
    def address(self) -> int:
        """Of the HostClock record."""
        return int(self._record.ctypes.data)

    @property
    def now(self) -> int:
        return int(self._record["now"])

    def follow(self, follower: Follower) -> None:
        """Take completions of this queue pair after every grant."""
        with self.lock:
            self._followers.append(follower)
            self._list()

    def leave(self, follower: Follower) -> None:
        """The queue pair is gone. Harmless when repeated."""
        with self.lock:
            self._followers = [other for other in self._followers if other is not follower]
            self._list()

    def _list(self) -> None:
        self._rings[: len(self._followers)] = [follower.ring_address for follower in self._followers]
        self._record["ring_count"] = len(self._followers)

    def think(self, ns: int) -> None:
        """Let the drive's time go on by ``ns``; completions due in that time are taken on the way.

        :raises InvalidArgument: negative, or no I/O queue is open
        """
        if ns < 0:
            raise InvalidArgument(f"think({ns}): time goes forward only")
        if not self._followers:
            raise InvalidArgument("virtual time moves through an I/O queue: open the drive with at least one")
        self._followers[0].think(self.now + ns)

    def grant_by_messages(self, timeout: float) -> None:
        """One grant where the words are not mapped; the caller holds ``lock`` and settles the rings afterwards.

        :raises DriveTimeout: no grant within ``timeout`` seconds
        """
        wait = self._link.read_word(GRANTED) + 1
        self._link.write_word(HOST_NOW, max(int(self._record["until"]), self.now))
        self._link.write_word(WAIT, wait)
        deadline = time.monotonic() + timeout
        while self._link.read_word(GRANTED) != wait:
            if time.monotonic() > deadline:
                raise DriveTimeout(f"the drive granted no virtual time in {timeout:g} s; its log may say why")
        self._record["now"] = max(self.now, self._link.read_word(DRIVE_NOW))
