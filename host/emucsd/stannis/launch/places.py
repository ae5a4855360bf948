"""Where samples lie, for each node: what the user named, told in each node's own terms."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from emucsd.errors import InvalidArgument
from emucsd.stannis.data.location import parse
from emucsd.stannis.group.cluster import Place

Digest = Callable[[str], str]


class Where:
    """The nodes of a run, as locations see them.

    :param names: of all nodes, the host's first
    :param drives: node -> the number of its drive, for engines
    :param called: what else a node may be called: a drive's name -> its engine's node
    :param host_reads: whether the host reads drives' shared namespaces (it has their port 0)
    :param machines: nodes that do not see this machine's files
    """

    def __init__(
        self,
        names: Sequence[str],
        drives: Mapping[str, int],
        *,
        called: Mapping[str, str] | None = None,
        host_reads: bool = True,
        machines: Iterable[str] = (),
    ) -> None:
        self.names, self.drives, self.host_reads = list(names), dict(drives), host_reads
        self.called = dict(called or {})
        self.machines = frozenset(machines)

    @property
    def host(self) -> str:
        """The first node."""
        return self.names[0]

    def split(self, text: str) -> tuple[str, str]:
        """``NODE=LOCATION`` -> both; the node is empty where none is named. :raises InvalidArgument: no such node"""
        node, equals, location = text.partition("=")
        if not equals or "/" in node:
            return "", text
        node = self.called.get(node, node)
        if node not in self.names:
            raise InvalidArgument(f"{text!r}: no node is called {node!r}; there are {', '.join(self.names)}")
        return node, location

    def at(self, location: str, nodes: Iterable[str]) -> dict[str, str]:
        """The same location at each of these nodes."""
        found = parse(location)
        if found.kind == "namespace" or self.machines:
            return dict.fromkeys(nodes, location)
        return dict.fromkeys(nodes, _absolute(location))


def public(where: Where, locations: Sequence[str], digest: Digest, pool: str = "public") -> tuple[Place, ...]:
    """Pools that everybody may read.

    A namespace without a node is each drive's own: drives that hold the same samples have one pool in copies, which
    all engines read at home; others have a pool each, read at home and by the host.

    :param digest: of what a location holds, as the host sees it: equal for copies
    :raises InvalidArgument: a namespace where there are no drives
    """
    places: list[Place] = []
    for number, text in enumerate(locations):
        name = pool if len(locations) == 1 else f"{pool}-{number}"
        node, location = where.split(text)
        found = parse(location)
        if node:
            places.append(Place(name, where.at(location, [node])))
        elif found.kind == "namespace" and not found.drive:
            places += _on_drives(where, name, location, digest)
        elif found.kind == "namespace":
            places.append(Place(name, where.at(location, [where.host])))
        else:
            places.append(Place(name, where.at(location, where.names)))
    return tuple(places)


def _on_drives(where: Where, name: str, location: str, digest: Digest) -> list[Place]:
    if not where.drives:
        raise InvalidArgument(f"{location} is a namespace of a drive, and there are no drives; name a folder or a tar")
    if not where.host_reads:
        return [Place(f"{name}-{node}", {node: location}) for node in where.drives]
    seen: dict[str, list[str]] = {}
    for node, number in where.drives.items():
        seen.setdefault(digest(f"{location}@{number}"), []).append(node)
    places = []
    for nodes in seen.values():
        own = name if len(seen) == 1 else f"{name}-{nodes[0]}"
        at = {where.host: f"{location}@{where.drives[nodes[0]]}", **dict.fromkeys(nodes, location)}
        places.append(Place(own, at))
    return places


def private(where: Where, texts: Sequence[str]) -> tuple[Place, ...]:
    """Pools that stay where they are: a location of one node, or one of each engine's own.

    :raises InvalidArgument: no engines, and no node named; or two pools of one node at one place
    """
    places: list[Place] = []
    for text in texts:
        node, location = where.split(text)
        nodes = [node] if node else list(where.drives)
        if not nodes:
            raise InvalidArgument(f"--private {text}: say whose it is, NODE=LOCATION; nodes: {', '.join(where.names)}")
        for one in nodes:
            taken = [place.name for place in places]
            name = f"private-{one}"
            while name in taken:
                name += "+"
            places.append(Place(name, where.at(location, [one]), private=True))
    return tuple(places)


def _absolute(location: str) -> str:
    """A path of this machine, wherever a node's working folder is."""
    return location if location.startswith("ns:") else os.path.abspath(location)
