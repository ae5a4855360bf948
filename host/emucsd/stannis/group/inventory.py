"""What the nodes say that lies where, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from emucsd.stannis.data.location import ordered
from emucsd.stannis.errors import DataFormat, GroupViolation
from emucsd.stannis.group.cluster import Cluster
from emucsd.stannis.plan.plan import Pool

_CLASSES_LIMIT, _COUNT_LIMIT = 1 << 20, 1 << 40


@dataclass(frozen=True)
class Seen:
    """A pool as one node sees it."""

    count: int
    sample_bytes: int
    classes: tuple[str, ...]
    digest: str | None


@dataclass
class Inventory:
    """All pools of a run as far as nodes were seen to have them.

    :ivar pools: those to train on, with the nodes at which they were found
    :ivar tests: those to evaluate on: name -> nodes that can read it
    :ivar frozen: training has begun: classes don't change any more
    """

    cluster: Cluster
    pools: dict[str, Pool] = field(default_factory=dict)
    tests: dict[str, list[str]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    frozen: bool = False
    _seen: dict[str, Seen] = field(default_factory=dict)
    _tested: dict[str, Seen] = field(default_factory=dict)

    def wanted(self, node: str) -> dict[str, Any]:
        """The request ``inspect`` for a node."""
        return {
            kind: {
                place.name: {"location": place.at[node], "private": place.private}
                for place in places
                if node in place.at
            }
            for kind, places in (("pools", self.cluster.pools), ("tests", self.cluster.test))
        }

    def take(self, node: str, said: dict[str, Any]) -> None:
        """What a node answered.

        :raises DataFormat: a copy is no copy, or classes come that the run has not
        :raises GroupViolation: it is no such answer
        """
        wanted = self.wanted(node)
        pools = {name: _seen(said, "pools", name) for name in wanted["pools"]}
        tests = {name: _seen(said, "tests", name) for name in wanted["tests"]}
        for name, seen in pools.items():
            _compare(name, node, seen, self._seen.get(name))
        for name, seen in tests.items():
            _compare(name, node, seen, self._tested.get(name))
        self._take_classes(node, {name for seen in (*pools.values(), *tests.values()) for name in seen.classes})
        for name, seen in pools.items():
            self._seen[name] = seen
            place = next(place for place in self.cluster.pools if place.name == name)
            pool = self.pools.get(name) or Pool(name, place.private, seen.count, seen.sample_bytes, {})
            self.pools[name] = replace(pool, at={**pool.at, node: place.at[node]})
        for name, seen in tests.items():
            self._tested[name] = seen
            readers = self.tests.setdefault(name, [])
            if node not in readers:
                readers.append(node)

    def _take_classes(self, node: str, classes: set[str]) -> None:
        new = sorted(classes - set(self.classes))
        if new and self.frozen:
            raise DataFormat(
                f"{node} has the class {new[0]!r} ({len(new)} such), which the run has not; it is to be there "
                "from the begin"
            )
        self.classes = ordered({*self.classes, *new})

    def of(self, nodes: list[str]) -> list[Pool]:
        """The pools that these nodes can read, each with those of them that can; in the order of the cluster."""
        found = []
        for place in self.cluster.pools:
            pool = self.pools.get(place.name)
            if pool is not None and (at := {node: pool.at[node] for node in nodes if node in pool.at}):
                found.append(replace(pool, at=at))
        return found

    def told(self) -> dict[str, Any]:
        """For an event: counts, never a sample."""
        return {
            "pools": {
                name: {"private": pool.private, "count": pool.count, "sample_bytes": pool.sample_bytes,
                       "nodes": sorted(pool.at)}
                for name, pool in self.pools.items()
            },
            "tests": {name: {"count": self._tested[name].count, "nodes": nodes} for name, nodes in self.tests.items()},
            "classes": len(self.classes),
        }  # fmt: skip


def _seen(said: dict[str, Any], kind: str, name: str) -> Seen:
    found = said.get(kind)
    one = found.get(name) if isinstance(found, dict) else None
    if not isinstance(one, dict):
        raise GroupViolation(f"an inspection without {name!r}")
    count, size, classes, digest = (one.get(key) for key in ("count", "sample_bytes", "classes", "digest"))
    if not (
        isinstance(count, int)
        and isinstance(size, int)
        and 0 <= count <= _COUNT_LIMIT
        and 0 <= size <= _COUNT_LIMIT
        and isinstance(classes, list)
        and len(classes) <= _CLASSES_LIMIT
        and all(isinstance(name, str) for name in classes)
        and isinstance(digest, str | None)
    ):
        raise GroupViolation(f"an inspection of {name!r} that says nothing: count {count!r}, bytes {size!r}")
    return Seen(count, size, tuple(classes), digest)


def _compare(name: str, node: str, seen: Seen, other: Seen | None) -> None:
    if other is None or (seen.count, seen.classes, seen.digest) == (other.count, other.classes, other.digest):
        return
    raise DataFormat(
        f"pool {name!r} at {node} is no copy of the others: {seen.count} samples of {len(seen.classes)} classes "
        f"there, {other.count} of {len(other.classes)} elsewhere, or in other sizes; copy it anew",
        name,
    )
