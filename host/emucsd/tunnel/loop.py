"""The loop of an end: a TUN device on one side, channels on the other, nothing running while nothing comes."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence

from emucsd.tunnel.channel import Channel
from emucsd.tunnel.frames import is_ipv4
from emucsd.tunnel.port import TunnelPort
from emucsd.tunnel.tun import Tun

log = logging.getLogger(__name__)

_TURN = 64  # packets from TUN before completions are looked at again

Route = Callable[[memoryview], Channel | None]


class Loop:
    """Moves packets from TUN to channels, and services channels.

    :param route: the channel that a packet from TUN goes to, None to drop it
    """

    def __init__(self, channels: Sequence[Channel], route: Route) -> None:
        self.channels = list(channels)
        self.tun: Tun | None = None
        self.unrouted = self.overrun = 0
        self.rounds = 0
        self._route = route
        self._guess = self.channels[0]
        self._mtu = 0
        self._pending: memoryview | None = None  # a packet whose channel has no room now
        self._target = self._guess
        self._staging = memoryview(bytearray(65536))
        self._poll = select.epoll()
        self._watched: set[int] = set()
        self._owners: dict[int, Channel] = {}
        self._ports: list[TunnelPort | None] = []
        self._reading = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.EPOLLIN)
        self._stopping = False
        self._thread: threading.Thread | None = None

    def use(self, tun: Tun | None, mtu: int) -> None:
        """Read packets from this device from now on."""
        self.tun, self._mtu = tun, mtu

    # -- life

    def start(self, name: str) -> None:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop and leave the drives. Harmless when repeated."""
        self._stopping = True
        if self._thread is None or self._thread is threading.current_thread():
            self._close()
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._thread = None

    def interrupt(self) -> None:
        """Ask ``run`` to end, from a signal handler."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Until ``stop``."""
        try:
            while not self._stopping:
                self.run_once()
        except Exception:
            log.exception("the tunnel's end has died")
            raise
        finally:
            self._close()

    def _close(self) -> None:
        for channel in self.channels:
            channel.stop()
        if self._wake >= 0:
            self._poll.close()
            os.close(self._wake)
            self._wake = -1

    # -- one round

    def run_once(self, most: float | None = None) -> None:
        """Wait until something is to be done (at most ``most`` seconds), and do it."""
        self.rounds += 1
        self._watch()
        ready = [fd for fd, _ in self._poll.poll(self._patience(most))]
        if self._wake in ready:
            os.eventfd_read(self._wake)
            return
        for channel in self.channels:
            if (not channel.up and channel.is_due) or any(self._owners.get(fd) is channel for fd in ready):
                channel.service()
        if self._pending is not None:
            self._retry()
        tun = self.tun
        if tun is not None and self._pending is None and tun.fd in ready:
            self._pump(tun)
        for channel in self.channels:
            channel.flush()

    def _patience(self, most: float | None) -> float | None:
        times = [channel.due for channel in self.channels]
        if self._pending is not None:
            times.append(time.monotonic() + 0.02)
        due = min((when for when in times if when is not None), default=None)
        left = None if due is None else max(due - time.monotonic(), 0.0)
        return min((t for t in (left, most) if t is not None), default=None)

    def _watch(self) -> None:
        """Wait for the channels' descriptors, and for packets unless they have nowhere to go."""
        reading = self.tun is not None and self._pending is None and not self._blocked()
        ports = [channel.port for channel in self.channels]
        if reading == self._reading and ports == self._ports:
            return
        self._reading, self._ports = reading, ports
        wanted = {fd: channel for channel in self.channels if channel.port for fd in channel.port.filenos()}
        self._owners = dict(wanted)
        watched = set(wanted)
        if reading and self.tun is not None:
            watched.add(self.tun.fd)
        for fd in self._watched - watched:
            with contextlib.suppress(OSError):  # closed, and so gone from there already
                self._poll.unregister(fd)
        for fd in watched - self._watched:
            self._poll.register(fd, select.EPOLLIN)
        self._watched = watched

    def _blocked(self) -> bool:
        """With one drive alone, packets stay with the kernel until there is room: that is what slows senders down."""
        if len(self.channels) > 1:
            return False
        channel = self.channels[0]
        return channel.up and channel.room(self._mtu) is None and not channel.stuck

    def _retry(self) -> None:
        packet = self._pending
        assert packet is not None
        if self._target.put(packet):
            self._pending = None
        elif self._target.stuck:
            self.overrun += 1
            self._pending = None

    def _pump(self, tun: Tun) -> None:
        """Packets from TUN, straight into the batch of the channel that the last one went to."""
        for _ in range(_TURN):
            place = self._guess.room(self._mtu)
            if place is None and self._blocked():
                return
            packet = self._staging[: self._mtu] if place is None else place
            length = tun.read(packet)
            if not length:
                return
            packet = packet[:length]
            target = self._route(packet) if is_ipv4(packet) else None
            if target is None:
                self.unrouted += 1
            elif target is self._guess and place is not None:
                target.commit(length)
            elif target.put(packet):
                self._guess = target
            elif target.stuck:
                self.overrun += 1
            else:
                self._staging[:length] = packet
                self._pending, self._target = self._staging[:length], target
                return
