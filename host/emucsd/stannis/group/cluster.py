"""What takes part in a run: nodes, the pools of samples and where they lie, where checkpoints go.

A JSON file for the coordinator; whoever launches the run writes it. Standard library alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from emucsd.stannis import fields
from emucsd.stannis.errors import SpecError

NODES_MAX, POOLS_MAX, NAME_MAX = 4096, 65536, 200


@dataclass(frozen=True)
class Place:
    """A pool as the user names it, before anyone has looked into it.

    :ivar at: node -> location as that node opens it; see docs/data.md
    :ivar private: none but the nodes in ``at`` may ever read it
    :raises SpecError: no name, or nowhere
    """

    name: str
    at: dict[str, str]
    private: bool = False

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > NAME_MAX or not self.at:
            raise SpecError(
                f"pool {self.name!r} lies at {len(self.at)} nodes; a name to {NAME_MAX} characters, a node at least"
            )


@dataclass(frozen=True)
class Member:
    """A node that takes part.

    :ivar engine: what kind of engine it is. Nodes of one kind and the same machine are benchmarked once.
    :ivar checkpoint: where it keeps checkpoints, as it opens it (a folder or ``ns:N``); None: nowhere
    :ivar memory_bytes: what training may use at most; None: what the machine has
    """

    name: str
    engine: str = ""
    checkpoint: str | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > NAME_MAX:
            raise SpecError(f"a node's name is {self.name!r}; 1 to {NAME_MAX} characters")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise SpecError(f"memory_bytes of {self.name!r} is {self.memory_bytes}; above 0, or null")


@dataclass(frozen=True)
class Cluster:
    """All that takes part.

    :ivar nodes: in the order of their ranks
    :ivar pools: what is trained on
    :ivar test: what is evaluated on; empty: nothing is
    :raises SpecError: names that come twice, places at nodes that there are not
    """

    nodes: tuple[Member, ...]
    pools: tuple[Place, ...]
    test: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if not 1 <= len(names) <= NODES_MAX or len(set(names)) != len(names):
            raise SpecError(f"{len(names)} nodes, {len(set(names))} names; 1 to {NODES_MAX}, each with its own name")
        if not 1 <= len(self.pools) <= POOLS_MAX:
            raise SpecError(f"{len(self.pools)} pools; 1 to {POOLS_MAX}")
        for places in (self.pools, self.test):
            if len({place.name for place in places}) != len(places):
                raise SpecError("a pool's name comes twice; each has its own")
            for place in places:
                if strange := sorted(set(place.at) - set(names)):
                    raise SpecError(f"pool {place.name!r} lies at {strange[0]!r}; the nodes are {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' names, by rank."""
        return tuple(node.name for node in self.nodes)

    def member(self, name: str) -> Member:
        """:raises KeyError: no such node"""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def to_json(self, indent: int | None = None) -> str:
        """``from_json`` gives an equal one."""
        return fields.to_json(self, indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """:raises SpecError: no JSON, a field unknown, missing or of another type, names that don't fit"""
        try:
            return fields.from_json(cls, text)
        except fields.FieldError as problem:
            raise SpecError(f"cluster: {problem}") from None
