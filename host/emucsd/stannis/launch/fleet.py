"""What a run is trained on: its nodes, its drives, and what each member of the run is held to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emucsd.control import Control
from emucsd.stannis.group.cluster import Member
from emucsd.stannis.launch.embedded import DISK, EmbeddedDrives, EngineOptions
from emucsd.stannis.launch.nodes import LOOPBACK, Node, ProcessNode, describe
from emucsd.stannis.launch.places import Where
from emucsd.stannis.launch.request import Request
from emucsd.stannis.launch.testbed import TestbedNodes
from emucsd.testbed import names as testbeds

Tell = Callable[[str], None]
MACHINE_CHECKPOINTS = "/var/lib/emucsd/checkpoints"  # in a testbed's host machine; gone with the testbed


@dataclass
class Fleet:
    """Nodes that can run commands, on one network. Made by ``open_fleet``.

    :ivar where: how locations look from them
    :ivar members: the same nodes, for the coordinator
    :ivar engines: node -> runtime folder of its drive, whose counters tell what crossed
    :ivar embedded: the drives that this process holds, None for others'
    """

    nodes: list[Node]
    where: Where
    members: tuple[Member, ...]
    engines: dict[str, Path] = field(default_factory=dict)
    embedded: EmbeddedDrives | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """Node -> its kind."""
        return {node.name: node.kind for node in self.nodes}

    @property
    def profiles(self) -> dict[str, str]:
        """Node -> what it draws as: a drive's engine as a computational storage drive, all else as a host."""
        return {node.name: "csd" if node.kind in ("local", "machine") else "host" for node in self.nodes}

    def control(self, node: str) -> Control:
        """Of an engine's drive."""
        return Control(self.engines[node])

    def record(self) -> list[dict[str, Any]]:
        """For the run's record."""
        held = {member.name: member for member in self.members}
        return [{**describe(node), "engine": held[node.name].engine} for node in self.nodes]

    @contextmanager
    def disks(self) -> Iterator[None]:
        """Meanwhile this process finds the drives as the host's rank does: ``ns:N@K``."""
        found = {} if self.embedded is None else self.embedded.host().variables
        before = {key: os.environ.get(key) for key in found if key.startswith(DISK)}
        os.environ.update({key: value for key, value in found.items() if key.startswith(DISK)})
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


@contextmanager
def open_fleet(request: Request, folder: Path, checkpoints: Path, tell: Tell) -> Iterator[Fleet]:
    """What the request names, opened or made; let go of, or ended, afterwards.

    :param folder: for sockets and working folders: short
    :param checkpoints: where the first node keeps them if the request does not say, and it sees this machine's files
    :raises EmucsdError: it can't be had; the text says what to do
    """
    with contextlib.ExitStack() as stack:
        fleet = _chosen(request, folder, tell, stack)
        for node in fleet.nodes:
            stack.callback(node.close)
        first = fleet.nodes[0]
        kept = request.checkpoint or (MACHINE_CHECKPOINTS if first.kind == "host-machine" else str(checkpoints))
        fleet.members = (replace(fleet.members[0], checkpoint=kept), *fleet.members[1:])
        yield fleet


def _chosen(request: Request, folder: Path, tell: Tell, stack: contextlib.ExitStack) -> Fleet:
    if request.processes:
        return _processes(request, folder)
    named = request.testbed
    if named is None and len(request.drives) == 1 and request.drives[0] in testbeds():
        named = (request.drives[0], None)
    if named is not None:
        return _testbed(request, TestbedNodes(named[0], named[1], folder), stack)
    options = EngineOptions(request.cpu_share, request.engine_memory, processors=request.engine_cores or None)
    if request.engines:
        sized = {} if request.drive_size is None else {"size": request.drive_size}
        drives = EmbeddedDrives.make(request.engines, folder, options, tell, profile=request.profile, **sized)
    else:
        drives = EmbeddedDrives.open(request.drives, folder, options, tell)
    stack.callback(drives.close)
    return _embedded(request, drives)


def _processes(request: Request, folder: Path) -> Fleet:
    cores = request.host_cores or None
    nodes: list[Node] = [
        ProcessNode(f"process{number}", folder, address=LOOPBACK, cores=cores) for number in range(request.processes)
    ]
    members = tuple(Member(node.name, engine="process") for node in nodes)
    return Fleet(nodes, Where([node.name for node in nodes], {}), members)


def _embedded(request: Request, drives: EmbeddedDrives) -> Fleet:
    nodes = drives.nodes(request.host_cores or None)
    names = [node.name for node in nodes]
    numbers = {name: number for number, name in enumerate(names[1:])}
    called = dict(zip(request.drives, names[1:], strict=True)) if request.drives else {}
    members = [Member(names[0], engine="host")]
    for name, engine in zip(names[1:], drives.engines, strict=True):
        kind = f"local-{engine.cores}x{engine.cpu_share:g}"
        members.append(Member(name, engine=kind, memory_bytes=engine.memory_bytes))
    folders = {name: drives.drives[number].folder for name, number in numbers.items()}
    return Fleet(nodes, Where(names, numbers, called=called), tuple(members), folders, drives)


def _testbed(request: Request, testbed: TestbedNodes, stack: contextlib.ExitStack) -> Fleet:
    stack.callback(testbed.close)
    nodes = testbed.nodes(request.host_cores or None)
    names = [node.name for node in nodes]
    numbers = dict(zip(names[1:], testbed.chosen, strict=True))
    drives = testbed.record["drives"]
    called = {drives[number]["name"]: name for name, number in numbers.items()}
    machines = [node.name for node in nodes if node.kind in ("machine", "host-machine")]
    where = Where(names, numbers, called=called, host_reads=nodes[0].kind == "host-machine", machines=machines)
    members = tuple(Member(node.name, engine=node.kind) for node in nodes)
    folders = {name: Path(drives[number]["runtime"]) for name, number in numbers.items()}
    return Fleet(nodes, where, members, folders)
