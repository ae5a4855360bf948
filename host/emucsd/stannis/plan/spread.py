"""Eq. 1 where not every rank can read every pool: samples in proportion to batches, as far as it goes.

Eq. 1 of the paper: all ranks take the same number of steps, so dataset_host = dataset_card / batch_card * batch_host:
each rank gets batch * steps samples, steps = sum(counts) / sum(batches). Private pools, and public ones that lie on one
drive, can make that impossible: then some ranks have more than their part and some less.

The deal made here is the fairest there is: no rank's steps can be made fewer without making more those of another that
has as many (lexicographically minimal). It is found by divide and conquer: try Eq. 1 as a maximum flow; where that does
not fit, the minimum cut names the ranks that have too much and the pools that only they read: deal among these and
among the others apart. Source: Fujishige, "Lexicographically optimal base of a polymatroid with respect to a weight
vector", 1980.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan.flow import Flow


@dataclass(frozen=True)
class Group:
    """Ranks that come to the same number of steps by sharing pools that no rank with fewer steps can read.

    :ivar ranks: numbers, rising
    :ivar pools: numbers, rising
    :ivar steps: samples of these pools over the batches of these ranks
    """

    ranks: tuple[int, ...]
    pools: tuple[int, ...]
    steps: Fraction


@dataclass(frozen=True)
class Deal:
    """Who gets how many.

    :ivar quotas: by rank: pool -> samples, above 0
    :ivar groups: by falling steps
    """

    quotas: tuple[dict[int, int], ...]
    groups: tuple[Group, ...]

    @property
    def steps(self) -> int:
        """Steps that the rank with the most needs."""
        return math.ceil(self.groups[0].steps)


def spread(counts: Sequence[int], reach: Sequence[Sequence[int]], batches: Sequence[int]) -> Deal:
    """Deal pools to ranks.

    :param counts: samples by pool
    :param reach: by pool: the ranks that can read it, at least one for each pool that has samples
    :param batches: by rank, at least 1
    :returns: each sample dealt once; within a group ranks differ from Eq. 1 by less than one sample
    :raises PlanError: nobody can read a pool that has samples
    """
    for pool, count in enumerate(counts):
        if count and not reach[pool]:
            raise PlanError(f"pool {pool} of {len(counts)} has {count} samples, and no rank can read them")
    quotas: tuple[dict[int, int], ...] = tuple({} for _ in batches)
    groups: list[Group] = []
    todo = [(tuple(range(len(batches))), tuple(pool for pool, count in enumerate(counts) if count))]
    while todo:
        ranks, pools = todo.pop()
        place = {rank: number for number, rank in enumerate(ranks)}
        ways = [[place[rank] for rank in reach[pool] if rank in place] for pool in pools]
        here = [batches[rank] for rank in ranks]
        samples, width = sum(counts[pool] for pool in pools), sum(here)
        flow = Flow([counts[pool] * width for pool in pools], ways, [samples * batch for batch in here])
        if flow.push():
            groups.append(Group(ranks, pools, Fraction(samples, width)))
            _deal(groups[-1], [counts[pool] for pool in pools], ways, here, quotas)
            continue
        full = flow.filled()
        loaded = tuple(rank for number, rank in enumerate(ranks) if number in full)
        bound = tuple(pool for pool, way in zip(pools, ways, strict=True) if set(way) <= full)
        todo.append((tuple(rank for rank in ranks if place[rank] not in full), tuple(sorted({*pools} - {*bound}))))
        todo.append((loaded, bound))
    return Deal(quotas, tuple(sorted(groups, key=lambda group: (-group.steps, group.ranks))))


def _deal(
    group: Group,
    counts: Sequence[int],
    ways: Sequence[Sequence[int]],
    batches: Sequence[int],
    quotas: tuple[dict[int, int], ...],
) -> None:
    """Eq. 1 in whole samples: each rank gets batch * steps, rounded down or up.

    That a deal in fractions exists is known by now; then there is one in whole numbers between the two roundings, and a
    flow that has filled every rank to the lower one grows to it.
    """
    fair = [batch * group.steps for batch in batches]
    flow = Flow(counts, ways, [share.numerator // share.denominator for share in fair])
    flow.push()
    for number, share in enumerate(fair):
        flow.widen(number, int(share.denominator > 1))
    placed = flow.push()
    assert placed, "a flow in fractions is one in whole numbers"
    for pool, found in zip(group.pools, flow.placed(), strict=True):
        for number, count in found.items():
            quotas[group.ranks[number]][pool] = count
