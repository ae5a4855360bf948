"""The machines of a running testbed as nodes: its host machine by SSH, its drives' engines by their agents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emucsd.errors import InvalidArgument
from emucsd.isp.testbed import engine_of
from emucsd.stannis.launch.nodes import EngineNode, MachineNode, Node, ProcessNode
from emucsd.testbed import Testbed

HOST = "host"
DISK = "EMUCSD_DISK"


class TestbedNodes:
    """Nodes of some of a testbed's drives. Closing lets go; the testbed goes on.

    :param chosen: numbers of the drives whose engines train; None: all that have one
    :param folder: for working folders, where the host is this machine
    :raises TestbedNotFound: it does not run
    :raises InvalidArgument: a drive that it has not, or one without an engine
    """

    __test__ = False  # no test class

    def __init__(self, name: str, chosen: Sequence[int] | None, folder: Path) -> None:
        self.testbed = Testbed.open(name)
        self.record: dict[str, Any] = self.testbed.status()
        self.folder = folder
        engines = [int(isp.removeprefix("isp")) for isp in self.record["tunnel"]["isps"]]
        self.chosen = engines if chosen is None else list(chosen)
        if missing := [number for number in self.chosen if number not in engines]:
            there = ", ".join(map(str, engines)) or "none"
            raise InvalidArgument(f"{name}: drive {missing[0]} has no engine; those with one: {there}")
        if not self.record["tunnel"]["enabled"]:
            raise InvalidArgument(
                f"{name} has no tunnel, and ranks talk over it; set tunnel.enabled = true in its file"
            )

    @property
    def runtimes(self) -> list[Path]:
        """Runtime folders of the chosen drives."""
        return [Path(self.record["drives"][number]["runtime"]) for number in self.chosen]

    def host(self, cores: Sequence[int] | None = None) -> Node:
        """The host machine; without one this machine, in the namespace of the tunnel's host end."""
        address = str(self.record["tunnel"]["host"])
        if HOST in self.record["machines"]:
            disks = {f"{DISK}_{number}": f"/dev/nvme{number}n1" for number in range(len(self.record["drives"]))}
            return MachineNode(HOST, self.testbed.host, address, {DISK: "/dev/nvme0n1", **disks})
        pid = self.record["services"]["tunnel"]["pid"]
        return ProcessNode(HOST, self.folder, address=address, cores=cores, namespace=int(pid))

    def engine(self, number: int) -> EngineNode:
        """The engine of a drive."""
        name = f"isp{number}"
        kind = "machine" if name in self.record["machines"] else "local"
        return EngineNode(name, engine_of(self.record, number), self.record["tunnel"]["isps"][name], kind=kind)

    def nodes(self, cores: Sequence[int] | None = None) -> list[Node]:
        """The host, and the engines that were chosen."""
        return [self.host(cores), *(self.engine(number) for number in self.chosen)]

    def close(self) -> None:
        """Let go of it."""
        self.testbed.close()
