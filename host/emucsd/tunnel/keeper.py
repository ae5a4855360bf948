"""A process that keeps a network namespace with a TUN device in it, for a process that can't have one itself.

``python3 -m emucsd.tunnel.keeper FD ADDRESS PREFIX MTU INTERFACE [PROXY]``: the device's descriptor goes back over the
socket FD, with a line that says how it went; the process ends when that socket reaches its end of file.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from emucsd.errors import EmucsdError
from emucsd.tunnel import network
from emucsd.tunnel.errors import TunnelError
from emucsd.tunnel.network import Plan
from emucsd.tunnel.tun import Tun

_SECONDS = 30.0
_LINE = 1 << 16


class Keeper:
    """The process, from the other side.

    :ivar tun: the device, for this process to use though it lies in another namespace
    :ivar pid: enter its namespaces with ``nsenter -U --preserve-credentials -n -t PID``
    :raises TunnelError: namespaces are not allowed, or there is no TUN
    """

    def __init__(self, plan: Plan, interface: str, proxy: Path | None) -> None:
        self._socket, theirs = socket.socketpair()
        words = [str(theirs.fileno()), str(plan.host), str(plan.network.prefixlen), str(plan.mtu), interface]
        words += [str(proxy)] if proxy is not None else []
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "emucsd.tunnel.keeper", *words], pass_fds=[theirs.fileno()]
            )
        self.pid = self._process.pid
        try:
            self.tun = Tun(self._receive(), interface)
        except BaseException:
            self.close()
            raise

    def _receive(self) -> int:
        self._socket.settimeout(_SECONDS)
        try:
            line, fds, _, _ = socket.recv_fds(self._socket, _LINE, 1)
        except TimeoutError:
            raise TunnelError(f"the network namespace was not ready in {_SECONDS:g} s") from None
        answer: dict[str, Any] = json.loads(line or b'{"error": "its process ended"}')
        if not fds:
            raise TunnelError(str(answer.get("error")))
        return fds[0]

    def close(self) -> None:
        """End it; what runs in its namespace keeps that alive, without the device."""
        self._socket.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def keep(link: socket.socket, plan: tuple[int, int, int], interface: str, proxy: Path | None) -> None:
    """The process itself."""
    address, prefix, mtu = plan
    try:
        network.enter_private()
        tun = Tun.open(interface)
        network.quiet(interface)
        network.configure(interface, address, prefix, mtu)
        if proxy is not None:
            from emucsd.tunnel.proxy import Proxy

            server = Proxy(proxy)
    except (EmucsdError, OSError) as problem:
        link.sendall(json.dumps({"error": str(problem)}).encode())
        return
    socket.send_fds(link, [b"{}"], [tun.fd])
    tun.close()
    with contextlib.suppress(OSError):
        while link.recv(64):
            pass
    if proxy is not None:
        server.close()


if __name__ == "__main__":
    number, *figures, name = sys.argv[1:6]
    first, second, third = (int(word) for word in figures)
    keep(socket.socket(fileno=int(number)), (first, second, third), name, Path(sys.argv[6]) if sys.argv[6:] else None)
