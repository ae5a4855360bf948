"""Nodes that come while the run goes on: looked at, measured if need be, and ready for the next step boundary."""

from __future__ import annotations

from dataclasses import replace

from emucsd.stannis.errors import DataFormat, GroupViolation, StannisError
from emucsd.stannis.group.inventory import Inventory
from emucsd.stannis.group.membership import Membership, Outcome, Present
from emucsd.stannis.group.options import BENCH_SECONDS
from emucsd.stannis.plan.plan import Engine


class Joining:
    """:param engines: node -> what is known of it; newcomers are added
    :ivar ready: nodes that wait for the next plan
    :ivar pending: nodes that are being looked at
    """

    def __init__(self, members: Membership, inventory: Inventory, engines: dict[str, Engine]) -> None:
        self.members, self.inventory, self.engines = members, inventory, engines
        self.ready: list[str] = []
        self.pending: set[str] = set()

    def begin(self, node: Present) -> None:
        """Have a newcomer looked at, beside the training of the others."""
        self.pending.add(node.name)
        self.members.ask(node, "inspect", self.inventory.wanted(node.name), self._inspected)

    def forget(self, node: Present) -> None:
        """It is gone again."""
        self.pending.discard(node.name)
        if node.name in self.ready:
            self.ready.remove(node.name)

    def take(self) -> list[str]:
        """Those that are ready; they are in the next plan."""
        ready, self.ready = self.ready, []
        return ready

    def _inspected(self, node: Present, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, StannisError):
                raise outcome
            self.inventory.take(node.name, outcome)
        except StannisError as problem:
            # a drive that is still away may be back later; samples that differ stay other samples
            self._refuse(node, str(problem), again=not isinstance(problem, DataFormat | GroupViolation))
            return
        if node.name in self.engines:
            self._admit(node)
        elif (like := self._alike(node)) is not None:
            self.engines[node.name] = replace(like, node=node.name)
            self._admit(node)
        else:
            batch = min((engine.batch for engine in self.engines.values()), default=1)
            self.members.ask(node, "bench", {"batch": batch, "seconds": BENCH_SECONDS}, self._measured)

    def _alike(self, node: Present) -> Engine | None:
        """A node of the same kind, machine and memory."""
        kind = self.members.cluster.member(node.name).engine
        for name, engine in self.engines.items():
            other = self.members.present.get(name)
            if (
                kind
                and other is not None
                and self.members.cluster.member(name).engine == kind
                and (other.hello.machine, other.hello.cores) == (node.hello.machine, node.hello.cores)
            ):
                return engine
        return None

    def _measured(self, node: Present, outcome: Outcome) -> None:
        """One measurement: retuning finds the rest."""
        if isinstance(outcome, StannisError):
            self._refuse(node, str(outcome))
            return
        seconds, batch = outcome.get("seconds"), outcome.get("batch")
        if not isinstance(seconds, float) or not isinstance(batch, int) or not 0 < seconds < 1e9 or batch < 1:
            self._refuse(node, f"its benchmark says {seconds!r} s for a batch of {batch!r}")
            return
        self.engines[node.name] = Engine(node.name, batch, batch / seconds)
        self._admit(node)

    def _admit(self, node: Present) -> None:
        self.pending.discard(node.name)
        self.ready.append(node.name)

    def _refuse(self, node: Present, why: str, *, again: bool = False) -> None:
        self.pending.discard(node.name)
        if self.members.present.get(node.name) is node:
            self.members.dismiss(node, why, again=again)
