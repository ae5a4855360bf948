"""The host's end in a process that has its drives open: the tunnel beside its block I/O and lookups.

with Drive.start(profile="newport") as drive, Tunnel([drive]) as tunnel:
    link = tunnel.connect(0, 7077)      # a TCP connection to the first drive's ISP engine
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from emucsd.errors import DriveTimeout
from emucsd.tunnel import network, proxy
from emucsd.tunnel.errors import TunnelError
from emucsd.tunnel.host import HostEnd
from emucsd.tunnel.keeper import Keeper
from emucsd.tunnel.port import TunnelPort

if TYPE_CHECKING:
    from emucsd.drive import Drive


class Tunnel:
    """A tunnel end in a thread, over drives that this process has open on their port 0.

    With root the interface is this machine's; without (or with ``private``) it lies in a namespace of its own, kept by
    a small process, and ``connect`` is the way in.

    :param drives: ISP engine i is drive i's
    :param network: of the tunnel; ``mtu`` of all of it
    :param private: a namespace of its own; None: unless this process may configure this machine's network
    :raises TunnelError: no network to be had
    """

    def __init__(self, drives: Sequence[Drive], network_: str = network.DEFAULT_NETWORK, mtu: int = network.DEFAULT_MTU,
                 *, interface: str = network.INTERFACE, private: bool | None = None) -> None:  # fmt: skip
        self.plan = network.plan(network_, mtu)
        self._keeper: Keeper | None = None
        self._proxy: Path | None = None
        self._closing = contextlib.ExitStack()
        openers = [(str(drive.folder), _opener(drive)) for drive in drives]
        with contextlib.ExitStack() as stack:
            if private if private is not None else not network.may_configure():
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="emucsd-"))
                self._proxy = Path(folder, "proxy")
                self._keeper = Keeper(self.plan, interface, self._proxy)
                stack.callback(self._keeper.close)
                end = HostEnd(self.plan, self._keeper.tun, openers)
            else:
                end = HostEnd.make(self.plan, openers, interface)
            stack.callback(end.close)
            self._end = end
            end.start()
            self._closing = stack.pop_all()

    @property
    def namespace_pid(self) -> int | None:
        """A process in the tunnel's namespace (for nsenter), None where that is this machine's own."""
        return self._keeper.pid if self._keeper else None

    @property
    def proxy(self) -> Path | None:
        """The Unix socket that leads into that namespace (``CONNECT address:port``), None where there is none."""
        return self._proxy

    def isp_address(self, index: int = 0) -> str:
        """Of the ISP engine of drive ``index``."""
        return network.dotted(self.plan.isp(index))

    def connect(self, index: int, port: int, timeout: float = 20.0) -> socket.socket:
        """A TCP connection to an ISP engine. :raises OSError: it does not answer"""
        address = self.isp_address(index)
        if self._proxy is not None:
            return proxy.connect(self._proxy, address, port, timeout)
        return socket.create_connection((address, port), timeout)

    def wait(self, timeout: float = 10.0) -> Self:
        """Until the tunnels of all drives are open. :raises DriveTimeout: not in time"""
        deadline = time.monotonic() + timeout
        while not self._end.up:
            if time.monotonic() > deadline:
                raise DriveTimeout(f"the tunnel was not open in {timeout:g} s: {self.status()}")
            time.sleep(0.005)
        return self

    def status(self) -> dict[str, Any]:
        """Counters: plain values."""
        return self._end.status()

    @property
    def rounds(self) -> int:
        """How often its thread has had something to do."""
        return self._end.loop.rounds

    def close(self) -> None:
        """Close the drives' tunnels and take the interface away. Harmless when repeated."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _opener(drive: Drive) -> Callable[[], TunnelPort]:
    """What makes a tunnel port of an open drive."""
    if drive.port != 0:
        raise TunnelError(f"{drive!r} is the ISP engine's port; the host's end needs port 0")
    if drive.folder.parts[:2] == ("/", "dev"):
        from emucsd.tunnel.linux import LinuxPort

        return lambda: LinuxPort(drive.folder, 0)
    from emucsd.direct import Direct
    from emucsd.tunnel.beside import beside

    attachment = drive._attachment
    if not isinstance(attachment, Direct):
        raise TunnelError(f"{drive!r} is attached in a way that this does not know")
    return lambda: beside(attachment, 0)
