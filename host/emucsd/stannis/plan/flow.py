"""Maximum flow from pools to ranks, in whole numbers: Dinic's algorithm on a graph of two sides.

    source ──count──> pool ──> rank ──capacity──> sink

Exact, whatever the size of the numbers. Source: Dinic, "Algorithm for solution of a problem of maximum flow", 1970.
"""

from __future__ import annotations

from collections.abc import Sequence


class Flow:
    """A flow that only grows: capacities may be raised between two calls of ``push``.

    An edge is a number; ``edge ^ 1`` is its reverse, whose room is what flows.
    """

    def __init__(self, counts: Sequence[int], reach: Sequence[Sequence[int]], capacities: Sequence[int]) -> None:
        """:param reach: by pool: the ranks that can read it"""
        self._pools, self._ranks = len(counts), len(capacities)
        self._source, self._sink = self._pools + self._ranks, self._pools + self._ranks + 1
        self._target: list[int] = []
        self._room: list[int] = []
        self._edges: list[list[int]] = [[] for _ in range(self._sink + 1)]
        self._counts = [self._edge(self._source, pool, count) for pool, count in enumerate(counts)]
        self._ways = [
            {rank: self._edge(pool, self._pools + rank, counts[pool]) for rank in ranks}
            for pool, ranks in enumerate(reach)
        ]
        self._capacities = [self._edge(self._pools + rank, self._sink, room) for rank, room in enumerate(capacities)]

    def push(self) -> bool:
        """Make the flow as large as it can be. :returns: whether all pools are placed whole"""
        while self._measure():
            self._next = [0] * len(self._edges)
            while self._augment():
                pass
        return not any(self._room[edge] for edge in self._counts)

    def widen(self, rank: int, more: int) -> None:
        """Raise a rank's capacity."""
        self._room[self._capacities[rank]] += more

    def placed(self) -> list[dict[int, int]]:
        """By pool: rank -> how many of its samples go there; ranks that get none are left out."""
        return [
            {rank: self._room[edge ^ 1] for rank, edge in ways.items() if self._room[edge ^ 1]} for ways in self._ways
        ]

    def filled(self) -> set[int]:
        """After ``push``: the ranks on the source's side of a minimum cut.

        They are full, and they alone read the pools that could not be placed whole.
        """
        return {rank for rank in range(self._ranks) if self._level[self._pools + rank] >= 0}

    def _edge(self, start: int, end: int, room: int) -> int:
        edge = len(self._target)
        self._target += [end, start]
        self._room += [room, 0]
        self._edges[start].append(edge)
        self._edges[end].append(edge + 1)
        return edge

    def _measure(self) -> bool:
        """Distances from the source where there is room. :returns: whether the sink is reached"""
        self._level = [-1] * len(self._edges)
        self._level[self._source] = 0
        nodes = [self._source]
        while nodes and self._level[self._sink] < 0:
            further = []
            for node in nodes:
                for edge in self._edges[node]:
                    target = self._target[edge]
                    if self._room[edge] and self._level[target] < 0:
                        self._level[target] = self._level[node] + 1
                        further.append(target)
            nodes = further
        return self._level[self._sink] >= 0

    def _augment(self) -> bool:
        """Send what one shortest way takes. Edges that lead nowhere are tried once a phase. :returns: False: no way"""
        way: list[int] = []
        node = self._source
        while node != self._sink:
            edge = self._onward(node)
            if edge is not None:
                way.append(edge)
                node = self._target[edge]
            elif way:
                node = self._target[way.pop() ^ 1]
                self._next[node] += 1
            else:
                return False
        sent = min(self._room[edge] for edge in way)
        for edge in way:
            self._room[edge] -= sent
            self._room[edge ^ 1] += sent
        return True

    def _onward(self, node: int) -> int | None:
        """The next edge from a node that leads one step nearer to the sink."""
        edges, level = self._edges[node], self._level[node] + 1
        for number in range(self._next[node], len(edges)):
            edge = edges[number]
            if self._room[edge] and self._level[self._target[edge]] == level:
                self._next[node] = number
                return edge
        self._next[node] = len(edges)
        return None
