"""All-reduce over the fabric, three ways; each tells when every rank has the sum.

- ``ring``: each rank passes a part of 1/n on to the next, 2 (n - 1) times. Every tunnel carries 2 (n - 1) / n of the
  gradients out and in, however many ranks there are; but each of the rounds has its latency.
- ``tree``: a binary tree, parts of 1 MiB up and down in a pipeline. Few rounds, but an inner rank carries everything
  six times.
- ``hierarchical``: each drive sends to its host, which adds; hosts pass parts around a ring between them; each host
  sends to its drives. A drive's tunnel carries everything twice, half of what a ring takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from emucsd.stannis.errors import PlanError
from emucsd.stannis.fleet.fabric import Fabric, Floats, Ints

Algorithm = Literal["ring", "tree", "hierarchical"]
PART = float(1 << 20)  # bytes that a pipeline passes on at a time


def all_reduce(fabric: Fabric, algorithm: Algorithm, size: float, ready: Floats) -> Floats:
    """Sum ``size`` bytes over all ranks.

    :param ready: rank -> when its gradients are there
    :returns: rank -> when it has the sum; its own time where there is nobody else
    :raises PlanError: no algorithm of that name
    """
    if algorithm not in ALGORITHMS:
        raise PlanError(f"no all-reduce {algorithm!r}; there are {', '.join(ALGORITHMS)}")
    if fabric.ranks == 1 or not size:
        return ready.copy()
    return ALGORITHMS[algorithm](fabric, size, ready)


def ring(fabric: Fabric, size: float, ready: Floats) -> Floats:
    """Reduce-scatter and all-gather around all ranks in their order."""
    return _around(fabric, np.arange(fabric.ranks), size, ready)


def _around(fabric: Fabric, order: Ints, size: float, ready: Floats) -> Floats:
    """A ring over some ranks. :param ready: of each of them, in this order"""
    count = len(order)
    following = np.roll(order, -1)
    adding = size / count / fabric.sum_rate[following]
    time = ready
    for turn in range(2 * (count - 1)):
        arrived = fabric.move(order, following, size / count, time)
        time = np.roll(arrived + adding if turn < count - 1 else arrived, 1)
    return time


@dataclass(frozen=True)
class _Tree:
    """:ivar parent: rank -> the one above; the root's own
    :ivar level: rank -> steps from the root
    """

    parent: Ints
    level: Ints

    @property
    def depth(self) -> int:
        return int(self.level.max())


def _binary(count: int) -> _Tree:
    """Ranks that follow each other lie together: each takes the first of its part, and halves the rest."""
    parent, level = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    parts = [(0, count)]
    while parts:
        low, high = parts.pop()
        middle = (low + 2 + high) // 2
        for start, end in ((low + 1, middle), (middle, high)):
            if start < end:
                parent[start], level[start] = low, level[low] + 1
                parts.append((start, end))
    return _Tree(parent, level)


def _parts(size: float) -> Floats:
    """Sizes of a pipeline's parts."""
    return np.full(max(1, int(np.ceil(size / PART))), size / max(1, int(np.ceil(size / PART))))


def tree(fabric: Fabric, size: float, ready: Floats) -> Floats:
    """Up a binary tree and down again, part after part."""
    shape, parts = _binary(fabric.ranks), _parts(size)
    depth, count = shape.depth, len(parts)
    up = np.repeat(ready[None, :], count, axis=0)  # part, rank -> when its subtree's sum is there
    down = np.zeros_like(up)
    adding = parts[0] / fabric.sum_rate
    levels = [np.flatnonzero(shape.level == level) for level in range(depth + 1)]
    # wave after wave: while a part goes up a level, others go up or down at theirs
    for wave in range(count + 2 * depth):
        part_up = [(wave - (depth - level), level) for level in range(1, depth + 1)]
        part_down = [(wave - depth - level + 1, level) for level in range(1, depth + 1)]
        ups = [(part, levels[level]) for part, level in part_up if 0 <= part < count]
        downs = [(part, levels[level]) for part, level in part_down if 0 <= part < count]
        if ups:
            ranks, which = _joined(ups)
            above = shape.parent[ranks]
            came = fabric.move(ranks, above, parts[0], up[which, ranks])
            np.maximum.at(up, (which, above), came + adding[above])
        if downs:
            ranks, which = _joined(downs)
            above = shape.parent[ranks]
            have = np.where(above == 0, up[which, above], down[which, above])
            down[which, ranks] = fabric.move(above, ranks, parts[0], have)
    down[:, 0] = up[:, 0]
    finished: Floats = down.max(axis=0)
    return finished


def _joined(pieces: list[tuple[int, Ints]]) -> tuple[Ints, Ints]:
    ranks = np.concatenate([ranks for _, ranks in pieces])
    return ranks, np.repeat([part for part, _ in pieces], [len(ranks) for _, ranks in pieces])


def hierarchical(fabric: Fabric, size: float, ready: Floats) -> Floats:
    """To the server's host, around the hosts, and back."""
    drives = np.flatnonzero(~fabric.is_host)
    owner = fabric.hosts[fabric.server[drives]]
    added = ready[fabric.hosts].copy()  # server -> when its host has added all of what it got
    sums = []
    for part in _parts(size):
        arrived = fabric.move(drives, owner, part, ready[drives])
        latest = np.zeros(len(fabric.servers))
        np.maximum.at(latest, fabric.server[drives], arrived)
        added = np.maximum(added, latest) + part * np.array(fabric.servers) / fabric.links.host_sum_rate
        sums.append((part, added))
    finished = ready.copy()
    for part, have in sums:
        everywhere = _around(fabric, fabric.hosts, part, have) if len(fabric.hosts) > 1 else have
        finished[fabric.hosts] = np.maximum(finished[fabric.hosts], everywhere)
        finished[drives] = fabric.move(owner, drives, part, everywhere[fabric.server[drives]])
    return finished


ALGORITHMS: dict[str, Callable[[Fabric, float, Floats], Floats]] = {
    "ring": ring,
    "tree": tree,
    "hierarchical": hierarchical,
}
