"""The ``local`` engine of a drive that this process has started: engine, tunnel and client, one lifetime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from emucsd.errors import DriveTimeout
from emucsd.isp.client import Isp
from emucsd.isp.errors import IspError, IspUnavailable
from emucsd.isp.local import LocalEngine
from emucsd.tunnel.errors import TunnelError
from emucsd.tunnel.inside import Tunnel

if TYPE_CHECKING:
    from emucsd.drive import Drive

READY_SECONDS = 60.0


class EmbeddedIsp:
    """The tunnel's host end is a thread here, its network a namespace of its own: this machine's is not touched.

    :param drive: on port 0
    :ivar client: of the engine, which answers
    :raises IspUnavailable: no namespaces, or no network in them; the text says what to change
    """

    def __init__(self, drive: Drive, tell: Callable[[str], None] | None = None) -> None:
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.engine = stack.enter_context(LocalEngine(drive.folder, tell=tell))
            try:
                self.tunnel = stack.enter_context(Tunnel([drive], private=True))
            except TunnelError as problem:
                raise IspUnavailable(
                    f"the local ISP engine is reached over a tunnel: {problem}. Without one: "
                    "emucsd.isp.LocalEngine(drive.folder, tunnel=False)"
                ) from problem
            self.client: Isp = self.engine.client(self.tunnel.isp_address(0), self.tunnel.proxy)
            try:
                self.tunnel.wait(READY_SECONDS)
                self.client.wait_ready(READY_SECONDS)
            except (DriveTimeout, IspError) as problem:
                raise IspUnavailable(
                    f"the ISP engine does not answer: {problem}\n{self.engine.log_tail()}"
                ) from problem
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Stop the engine with its jobs, then the tunnel. Harmless when repeated."""
        self._closing.close()
