"""One drive's end of the tunnel: attaching and attaching again, batches out, frames in.

A channel is ``away`` (no drive), ``closed`` (a drive, and no open tunnel) or ``up``. Nothing that happens to the drive
leaves it as an exception: it goes away, and comes back when the drive does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Protocol

from emucsd.errors import DriveNotFound, EmucsdError
from emucsd.tunnel.errors import TunnelRefused
from emucsd.tunnel.frames import Batch, split
from emucsd.tunnel.port import BUFFERS, SENDS, Done, TunnelPort
from emucsd_wire.nvme import Status
from emucsd_wire.tunnel import SetupFlag, TunnelSetup, TunnelStatus

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.02, 1.0  # s between attempts
STUCK = 0.1  # s without room after which frames are dropped at once

Opener = Callable[[], TunnelPort]


class Role(Protocol):
    """What a channel asks of the end that it belongs to."""

    def setup(self) -> TunnelSetup | None:
        """What to set up, None where this end has to take what the host has set up."""

    def joined(self, found: TunnelStatus) -> None:
        """The tunnel is open, as this says."""

    def left(self) -> None:
        """It is not, any more."""

    def deliver(self, packet: memoryview) -> None:
        """A packet came from the drive."""


class Channel:
    """One drive.

    :param opener: attaches to its port
    :param role: of the end
    :param name: for messages
    """

    def __init__(self, opener: Opener, role: Role, name: str) -> None:
        self.name = name
        self._opener, self._role = opener, role
        self.port: TunnelPort | None = None
        self.up = False
        self.sent = self.received = self.dropped = self.refused = self.attached = 0
        self._free: list[int] = []
        self._out: set[int] = set()
        self._batches: list[Batch] = []
        self._filling = -1  # the buffer that frames go into now
        self._new = True  # the next status is this port's first
        self._wait, self._due = FIRST_WAIT, time.monotonic()
        self._stuck_since = 0.0
        self._told = ""

    # -- frames out

    def room(self, length: int) -> memoryview | None:
        """Where to put a packet of up to ``length`` bytes; None when the drive has to take some first."""
        if self._filling >= 0:
            place = self._batches[self._filling].room(length)
            if place is not None:
                return place
            self._submit()
        if not self._free or not self.up:
            return None
        self._filling = self._free.pop()
        return self._batches[self._filling].room(length)

    def commit(self, length: int) -> None:
        """The packet that was put into ``room``."""
        self._batches[self._filling].commit(length)
        self.sent += 1

    def put(self, packet: memoryview) -> bool:
        """Send a copy of a packet. :returns: whether there was room"""
        place = self.room(len(packet))
        if place is None:
            return False
        place[:] = packet
        self.commit(len(packet))
        return True

    @property
    def stuck(self) -> bool:
        """Whether there has been no room for a while: then frames are better dropped than waited for."""
        if not self.up:
            return True
        now = time.monotonic()
        if self._free or self._filling >= 0:
            self._stuck_since = 0.0
            return False
        self._stuck_since = self._stuck_since or now
        return now - self._stuck_since > STUCK

    def _submit(self) -> None:
        buffer, self._filling = self._filling, -1
        batch = self._batches[buffer]
        if self.port is None or not batch.size:
            self._free.append(buffer)
            return
        self.port.send(buffer, batch.size)
        self._out.add(buffer)
        batch.clear()

    def flush(self) -> None:
        """Let the drive have what is there."""
        if self.port is None:
            return
        try:
            if self._filling >= 0 and self._batches[self._filling].size:
                self._submit()
            self.port.flush()
        except (EmucsdError, OSError) as problem:
            self._lose(problem)

    # -- life

    @property
    def due(self) -> float | None:
        """When to call ``service`` though nothing is readable, as time.monotonic."""
        return None if self.up else self._due

    @property
    def is_due(self) -> bool:
        """Whether ``service`` is to be called now."""
        return not self.up and time.monotonic() >= self._due

    def service(self) -> None:
        """Attach when it is time; take what has come."""
        try:
            if self.port is None:
                if time.monotonic() < self._due:
                    return
                self._attach()
            if self.port is not None:
                for done in self.port.completions():
                    self._ended(done)
            if not self.up and time.monotonic() >= self._due:
                self._begin()
        except TunnelRefused as problem:
            self._close(str(problem))
        except (EmucsdError, OSError) as problem:
            self._lose(problem)

    def stop(self) -> None:
        """Leave the drive."""
        port, self.port = self.port, None
        self.up = False
        if port is not None:
            try:
                port.close()
            except (EmucsdError, OSError) as problem:
                log.debug("%s: closing: %s", self.name, problem)

    def _attach(self) -> None:
        self.port = self._opener()
        self.attached += 1
        self._free = list(range(SENDS))
        self._out = set()
        self._batches = [Batch(self.port.buffers[n]) for n in range(SENDS)]
        self._filling = -1
        self._new = True

    def _begin(self) -> None:
        """Open the tunnel, or find it open; then ask for frames."""
        assert self.port is not None
        setup = self._role.setup()
        if setup is not None:
            self.port.set_up(setup)
        found = self.port.status(join=self._new and setup is None)
        self._new = False
        if not found.flags & SetupFlag.OPEN:
            raise TunnelRefused("the host has not opened this drive's tunnel")
        self.up = True
        self._role.joined(found)
        self._wait = FIRST_WAIT
        self._tell(f"up, MTU {found.mtu}")
        for buffer in range(SENDS, BUFFERS):
            if buffer not in self._out:
                self._receive(buffer)
        self.port.flush()

    def _receive(self, buffer: int) -> None:
        assert self.port is not None
        self.port.receive(buffer)
        self._out.add(buffer)

    def _ended(self, done: Done) -> None:
        self._out.discard(done.buffer)
        sending = done.buffer < SENDS
        if sending:
            self._free.append(done.buffer)
            self._stuck_since = 0.0
        if done.status == 0:
            if sending:
                self.dropped += int(done.dw0 == 0)
            else:
                self._take(done)
                if self.up:
                    self._receive(done.buffer)
        elif done.status == Status.TUNNEL_BATCH:
            self.refused += 1
            log.warning("%s: the drive refused a batch at byte %d", self.name, done.dw0)
        elif done.status == Status.ABORT_REQUESTED:  # our own setup ended it
            if not sending and self.up:
                self._receive(done.buffer)
        elif done.status == Status.TUNNEL_CLOSED:
            self._close("closed by the host")
        elif done.status < 0:  # Linux's, not the drive's: the namespace that commands went through was deleted
            raise DriveNotFound(f"{self.name}: commands can't pass any more: {os.strerror(-done.status)}")
        else:
            self._close(f"a command ended with status {done.status:#x}")

    def _take(self, done: Done) -> None:
        assert self.port is not None
        for packet in split(self.port.buffers[done.buffer][: done.dw0]):
            self.received += 1
            self._role.deliver(packet)

    def _close(self, reason: str) -> None:
        """The drive is there, its tunnel is not: ask again later."""
        if self.up:
            self._role.left()
        self.up = False
        self._later()
        self._tell(reason)

    def _lose(self, problem: Exception) -> None:
        if self.up:
            self._role.left()
        self.stop()
        self._later()
        self._tell(f"away: {problem}")

    def _later(self) -> None:
        self._due = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _tell(self, text: str) -> None:
        """Once for each change, not for each attempt."""
        if text != self._told:
            self._told = text
            log.info("%s: %s", self.name, text)
