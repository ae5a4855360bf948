"""The ISP engine's end: one channel, and a TUN device with the address that the host has set up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emucsd.errors import EmucsdError
from emucsd.tunnel import network
from emucsd.tunnel.channel import Channel
from emucsd.tunnel.errors import TunnelError
from emucsd.tunnel.loop import Loop
from emucsd.tunnel.opening import open_port
from emucsd.tunnel.port import TunnelPort
from emucsd.tunnel.tun import Tun
from emucsd_wire.tunnel import TunnelStatus

log = logging.getLogger(__name__)


class IspEnd:
    """Follows what the host sets up: before that there is no interface, after it the interface stays.

    :ivar loop: runs it: ``loop.run()``, or ``start()`` for a thread
    :param opener: attaches to port 1
    :param changed: is called when the tunnel opens or goes
    """

    def __init__(self, name: str, opener: Callable[[], TunnelPort], interface: str = network.INTERFACE,
                 changed: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        self._interface, self._changed = interface, changed
        self._tun: Tun | None = None
        self._applied: tuple[int, int, int] | None = None
        self._joined = threading.Event()
        self.host_address = ""
        self.address = ""
        self.mtu = 0
        self.channel = Channel(opener, self, name)
        self.loop = Loop([self.channel], lambda packet: self.channel)

    def start(self) -> None:
        """Run in a thread."""
        self.loop.start("emucsd-tunnel")

    def wait(self, timeout: float | None = None) -> bool:
        """Until the tunnel was open for the first time. :returns: whether it was"""
        return self._joined.wait(timeout)

    @property
    def up(self) -> bool:
        """Whether the tunnel is open now."""
        return self.channel.up

    def close(self) -> None:
        """Leave the drive and take the interface away."""
        self.loop.stop()
        if self._tun is not None:
            self._tun.close()

    def status(self) -> dict[str, Any]:
        """Plain values."""
        channel = self.channel
        return {
            "address": self.address,
            "host_address": self.host_address,
            "mtu": self.mtu,
            "up": channel.up,
            "sent": channel.sent,
            "received": channel.received,
            "dropped": channel.dropped,
            "refused": channel.refused,
            "attached": channel.attached,
        }

    # -- the channel's role

    def setup(self) -> None:
        """This end takes what it finds."""

    def joined(self, found: TunnelStatus) -> None:
        """The host's setup: address, MTU. :raises TunnelError: the interface can't be made so"""
        wanted = (found.isp_address, found.prefix, found.mtu)
        if wanted != self._applied:
            if self._tun is None:
                self._tun = Tun.open(self._interface)
                network.quiet(self._interface)
            network.configure(self._interface, *wanted)
            self._applied = wanted
        self.address, self.host_address = network.dotted(found.isp_address), network.dotted(found.host_address)
        self.mtu = found.mtu
        self.loop.use(self._tun, found.mtu)
        self._joined.set()
        self._changed()

    def left(self) -> None:
        """The interface stays: connections outlive a restart of the other side."""
        self._changed()

    def deliver(self, packet: memoryview) -> None:
        """To this machine."""
        if self._tun is not None:
            self._tun.write(packet)


def join(drive: str | Path, interface: str = network.INTERFACE, *, timeout: float | None = None) -> IspEnd:
    """Join the tunnel of a drive's port 1, in a thread of this process, for as long as it runs.

    :param drive: name or runtime folder of a drive, or a node of Linux's driver (``/dev/nvme0``)
    :param timeout: seconds to wait for the host to open the tunnel; None waits for nothing and comes back at once
    :raises TunnelError: this process may make no interface
    :raises EmucsdError: not open in time
    """
    if not network.may_configure():
        raise TunnelError("a tunnel end makes an interface, which takes CAP_NET_ADMIN: run as root, or in a namespace")
    end = IspEnd(str(drive), lambda: open_port(drive, 1), interface)
    end.start()
    if timeout is not None and not end.wait(timeout):
        end.close()
        raise EmucsdError(f"{drive}: the host did not open the tunnel in {timeout:g} s; start its end first")
    return end
