"""The host's end: one TUN device, and a switch between it and the ISP engines of all drives.

Each drive is a channel; its ISP engine has the address that its place in the list gives it. A packet goes to the
channel of its destination, whether it came from this machine or from another drive; anything else is this machine's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from emucsd.tunnel import network
from emucsd.tunnel.channel import Channel
from emucsd.tunnel.frames import destination, is_ipv4
from emucsd.tunnel.loop import Loop
from emucsd.tunnel.network import Plan
from emucsd.tunnel.port import TunnelPort
from emucsd.tunnel.tun import Tun
from emucsd_wire.tunnel import TUNNEL_VERSION, SetupFlag, TunnelSetup, TunnelStatus

log = logging.getLogger(__name__)

Opener = Callable[[], TunnelPort]


class _Member:
    """The host's role towards one drive."""

    def __init__(self, end: HostEnd, index: int) -> None:
        self._end, self._index = end, index

    def setup(self) -> TunnelSetup:
        plan = self._end.plan
        return TunnelSetup(TUNNEL_VERSION, SetupFlag.OPEN, plan.mtu, plan.host, plan.isp(self._index),
                           plan.network.prefixlen, bytes(47))  # fmt: skip

    def joined(self, found: TunnelStatus) -> None:
        self._end.changed()

    def left(self) -> None:
        self._end.changed()

    def deliver(self, packet: memoryview) -> None:
        self._end.deliver(packet)


class HostEnd:
    """Made of an open TUN device, whose address and MTU are set already, and of what attaches to each drive.

    :ivar loop: runs it: ``loop.run()``, or ``start()`` for a thread
    :param changed: is called when a drive's tunnel opens or goes
    """

    def __init__(self, plan: Plan, tun: Tun, drives: Sequence[tuple[str, Opener]],
                 changed: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        self.plan, self.changed = plan, changed
        self._tun = tun
        self.channels = [Channel(opener, _Member(self, n), name) for n, (name, opener) in enumerate(drives)]
        self._routes = {plan.isp(n): channel for n, channel in enumerate(self.channels)}
        self.switched = 0
        self.loop = Loop(self.channels, self._route)
        self.loop.use(tun, plan.mtu)

    @classmethod
    def make(cls, plan: Plan, drives: Sequence[tuple[str, Opener]], interface: str = network.INTERFACE,
             changed: Callable[[], None] = lambda: None) -> HostEnd:  # fmt: skip
        """With a TUN device of this network namespace. :raises TunnelError: not allowed"""
        tun = Tun.open(interface)
        try:
            network.quiet(interface)
            network.configure(interface, plan.host, plan.network.prefixlen, plan.mtu)
            return cls(plan, tun, drives, changed)
        except BaseException:
            tun.close()
            raise

    def start(self) -> None:
        """Run in a thread."""
        self.loop.start("emucsd-tunnel")

    def close(self) -> None:
        """Leave the drives and take the interface away."""
        self.loop.stop()
        self._tun.close()

    @property
    def up(self) -> bool:
        """Whether every drive's tunnel is open."""
        return all(channel.up for channel in self.channels)

    def status(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "address": network.dotted(self.plan.host),
            "network": str(self.plan.network),
            "mtu": self.plan.mtu,
            "switched": self.switched,
            "unrouted": self.loop.unrouted,
            "overrun": self.loop.overrun,
            "drives": [
                {
                    "name": channel.name,
                    "up": channel.up,
                    "isp_address": network.dotted(self.plan.isp(index)),
                    "sent": channel.sent,
                    "received": channel.received,
                    "dropped": channel.dropped,
                    "refused": channel.refused,
                    "attached": channel.attached,
                }
                for index, channel in enumerate(self.channels)
            ],
        }

    def deliver(self, packet: memoryview) -> None:
        """A packet from a drive: on to another drive, or to this machine."""
        target = self._routes.get(destination(packet)) if is_ipv4(packet) else None
        if target is None:
            self._tun.write(packet)
        elif target.put(packet):
            self.switched += 1
        else:
            self.loop.overrun += 1

    def _route(self, packet: memoryview) -> Channel | None:
        return self._routes.get(destination(packet))
