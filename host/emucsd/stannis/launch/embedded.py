"""Drives of this program: opened here or made here, each with its local engine, and one tunnel over all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from emucsd.drive import Drive
from emucsd.errors import DriveTimeout
from emucsd.isp.client import Isp
from emucsd.isp.diskserver import DiskServer
from emucsd.isp.errors import IspError, IspUnavailable
from emucsd.isp.local import LocalEngine
from emucsd.stannis.launch.nodes import EngineNode, Node, ProcessNode
from emucsd.tunnel.errors import TunnelError
from emucsd.tunnel.inside import Tunnel

Tell = Callable[[str], None]
PROFILE = "newport"
SIZE = "512MiB"
QUEUES = 4  # of port 0: one for each of as many disk connections of the host's rank
READY_SECONDS = 60.0
DISK = "EMUCSD_DISK"


class EngineOptions(NamedTuple):
    """What each engine is held to; None: the profile's.

    :ivar cpu_share: of a processor here, that each of its cores is worth
    :ivar cores: that it has
    :ivar processors: of this machine, that engines and what serves their drives may run on; None: all
    """

    cpu_share: float | None = None
    memory_bytes: int | None = None
    cores: int | None = None
    processors: Sequence[int] | None = None


class EmbeddedDrives:
    """Open drives with engines on one network; closing stops the engines, and drives that were made here.

    :param drives: on port 0, of this process; closed with this
    :param folder: for the host's sockets and working folders
    :param tell: is given a line at each step
    :raises IspUnavailable: this machine allows no namespaces, or no network in them; the text says what to change
    """

    def __init__(self, drives: Sequence[Drive], folder: Path, options: EngineOptions, tell: Tell) -> None:
        self.drives, self.folder = list(drives), folder
        self.engines: list[LocalEngine] = []
        self._clients: list[Isp] = []
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            for drive in drives:
                stack.callback(drive.close)
            with on_cores(options.processors):
                self.tunnel = self._open_tunnel(stack)
                for number, drive in enumerate(drives):
                    tell(f"starting the engine of drive {number}")
                    self.engines.append(stack.enter_context(self._engine(drive, options)))
                self._disks = [self._serve(stack, number) for number in range(len(drives))]
            self._await(tell)
            self._closing = stack.pop_all()

    @classmethod
    def make(cls, count: int, folder: Path, options: EngineOptions, tell: Tell, **settings: Any) -> EmbeddedDrives:
        """With so many temporary drives. :param settings: of ``Drive.start``, instead of a small Newport's"""
        chosen = {"profile": PROFILE, "size": SIZE, "queues": QUEUES, **settings}
        with contextlib.ExitStack() as stack, on_cores(options.processors):
            drives = []
            for number in range(count):
                tell(f"starting drive {number}")
                drives.append(stack.enter_context(Drive.start(**chosen, tell=tell)))
            stack.pop_all()
        return cls(drives, folder, options, tell)

    @classmethod
    def open(cls, names: Sequence[str], folder: Path, options: EngineOptions, tell: Tell) -> EmbeddedDrives:
        """Over running drives, by name. :raises EmucsdError: there is none of a name, or another program has it"""
        with contextlib.ExitStack() as stack:
            drives = [stack.enter_context(Drive.open(name, queues=QUEUES)) for name in names]
            stack.pop_all()
        return cls(drives, folder, options, tell)

    def _open_tunnel(self, stack: contextlib.ExitStack) -> Tunnel:
        try:
            return stack.enter_context(Tunnel(self.drives, private=True))
        except TunnelError as problem:
            raise IspUnavailable(
                f"engines and host train over a tunnel: {problem}. To try without drives: emucsd train … --processes 2"
            ) from problem

    def _engine(self, drive: Drive, options: EngineOptions) -> LocalEngine:
        share, memory = options.cpu_share, options.memory_bytes
        return LocalEngine(drive.folder, cores=options.cores, cpu_share=share, memory_bytes=memory)

    def _serve(self, stack: contextlib.ExitStack, number: int) -> str:
        """Port 0 of a drive, for the host's rank: the URI that it finds it by."""
        server = DiskServer(self.drives[number], self.folder / f"disk{number}")
        stack.callback(server.close)
        return server.uri()

    def _await(self, tell: Tell) -> None:
        tell("waiting for the engines")
        try:
            self.tunnel.wait(READY_SECONDS)
            for number, engine in enumerate(self.engines):
                client = engine.client(self.tunnel.isp_address(number), self.tunnel.proxy)
                client.wait_ready(READY_SECONDS)
                self._clients.append(client)
        except (DriveTimeout, IspError) as problem:
            said = "\n".join(engine.log_tail() for engine in self.engines)
            raise IspUnavailable(f"an engine does not answer: {problem}\n{said}") from problem

    # -- what a run needs ------------------------------------------------------------------------------------------

    def host(self, name: str = "host", cores: Sequence[int] | None = None) -> ProcessNode:
        """This machine, on the tunnel's network."""
        variables = {f"{DISK}_{number}": uri for number, uri in enumerate(self._disks)}
        if self._disks:
            variables[DISK] = self._disks[0]
        address = self.tunnel.status()["address"]
        return ProcessNode(
            name,
            self.folder,
            address=address,
            variables=variables,
            cores=cores,
            namespace=self.tunnel.namespace_pid,
        )

    def engine(self, number: int) -> EngineNode:
        """The engine of a drive."""
        address = self.tunnel.isp_address(number)
        return EngineNode(f"isp{number}", self._clients[number], address, revive=lambda: self.revive(number))

    def nodes(self, cores: Sequence[int] | None = None) -> list[Node]:
        """The host and all engines. :param cores: that the host's commands may run on"""
        return [self.host(cores=cores), *(self.engine(number) for number in range(len(self.engines)))]

    def revive(self, number: int) -> None:
        """Start an engine again that has ended. :raises IspError: it can't be"""
        engine = self.engines[number]
        if engine.exit_status() is not None:
            engine.restart()
            self._clients[number].wait_ready(READY_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engines with their jobs, then the tunnel, then the drives. Harmless when repeated."""
        self._closing.close()


@contextmanager
def on_cores(cores: Sequence[int] | None) -> Iterator[None]:
    """What this thread starts meanwhile stays on these processors."""
    before = os.sched_getaffinity(0)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores is not None:
            os.sched_setaffinity(0, before)
