"""The engines of a testbed: through its host machine's SSH, or the tunnel's proxy where it has no host machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emucsd.errors import EmucsdError
from emucsd.isp.client import Isp
from emucsd.isp.errors import IspUnreachable
from emucsd.isp.protocol import PORT, Stream
from emucsd.isp.reach import folder_of, noted

if TYPE_CHECKING:
    from emucsd.ssh import Ssh

RECORD = "testbed.json"
HOST = "host"
AGENT_SOCKET = "agent"  # of a local engine without a tunnel, in its folder


class Jump:
    """Connections that the host machine makes for us: one SSH connection, made when it is needed, again if lost."""

    def __init__(self, record: Mapping[str, Any], address: str) -> None:
        self._record, self._address = record, address
        self._lock = threading.Lock()
        self._ssh: Ssh | None = None

    def dial(self) -> Stream:
        """A TCP connection to the agent. :raises IspUnreachable: it can't be made"""
        from emucsd import ssh

        with self._lock:
            try:
                if self._ssh is None or not self._ssh.alive:
                    self._ssh = ssh.connect(self._record, HOST)
                stream: Stream = self._ssh.stream(self._address, PORT)
            except EmucsdError as problem:
                raise IspUnreachable(f"{self._address}:{PORT} through {HOST}: {problem}") from problem
        return stream

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            if self._ssh is not None:
                self._ssh.close()
                self._ssh = None


def engine_of(record: Mapping[str, Any], number: int = 0) -> Isp:
    """The engine of a testbed's drive ``number``. :param record: what ``testbed.json`` holds

    :raises IspUnreachable: that drive has no engine, or no way leads to it
    """
    name = f"isp{number}"
    tunnel = record["tunnel"]
    address = tunnel.get("isps", {}).get(name, "")
    if not address:
        known = ", ".join(tunnel.get("isps", {})) or "none"
        raise IspUnreachable(f"{record['name']} has no {name}; there are: {known}")
    socket = Path(record["token"]).parent / name / AGENT_SOCKET
    try:
        token = Path(record["token"]).read_text().strip()
    except OSError as problem:
        raise IspUnreachable(f"{record['token']}: {problem.strerror}; is the testbed up, and yours?") from problem
    if not tunnel["enabled"] and socket.exists():
        return Isp(token=token, socket=socket)
    if HOST in record["machines"]:
        jump = Jump(record, address)
        return Isp(address, token=token, dial=jump.dial, close=jump.close)
    if proxy := tunnel.get("proxy"):
        return Isp(address, token=token, proxy=Path(proxy))
    raise IspUnreachable(f"{record['name']} has neither a host machine nor a tunnel proxy: no way leads to {address}")


def connect(name: str | Path, number: int = 0) -> Isp:
    """The engine of a running drive or testbed, by its name or runtime folder. :raises IspUnreachable: it has none"""
    path = folder_of(name) / RECORD
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return Isp.at(noted(name))
    return engine_of(record, number)
