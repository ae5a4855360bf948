"""Rows that are asked for together, on one page.

Groups of rows are doubled until they fill a page. At each doubling, groups that come in the same bags are counted (ids
that lie up to ``REACH`` apart in a bag, so that the work is linear in the trace and a long bag costs no square), every
group names the partner it shares most bags with, and two that name each other become one; who is left after some rounds
is paired by heat. A pair that shares n bags saves n page reads, so the heaviest pair is the right one to take first;
where two weigh the same, the rarer partner wins: a hot one is everybody's companion. At the end pages go by heat.

The idea that a hypergraph of queries should be cut along pages is Bandana's and MaxEmbed's; the way of cutting it by
doubling is ours: no partitioner, a few sorts of the trace for each doubling.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.placement.order import Placement, _check, heat, striped
from emucsd.traces.bags import Bags, Ids

REACH = 8  # ids of a bag that are looked at beside each
ROUNDS = 6  # of naming partners; by then fewer than one in a hundred changes


class _Edges(NamedTuple):
    """Pairs of groups, each once, and how many times they came together."""

    one: Ids
    other: Ids
    weight: Ids


def by_coaccess(bags: Bags, rows: int, per_page: int, dies: int = 1, *, reach: int = REACH) -> Placement:
    """Rows that come in the same bags share pages, hot pages first.

    :param per_page: rows of a flash page
    :param dies: of the drive
    :param reach: ids of a bag that are looked at beside each
    """
    _check(per_page, dies)
    count = heat(bags, rows)
    seen = np.flatnonzero(count)
    members = seen[np.argsort(-count[seen], kind="stable")].reshape(-1, 1)  # of each group; -1: nobody
    while members.shape[1] * 2 <= per_page and len(members) > 1:
        heats = np.where(members >= 0, count[members], 0).sum(axis=1)
        one, other = _paired(_edges(bags, members, rows, reach), heats)
        if len(one) * 2 < len(members):  # an odd one is left
            members = np.concatenate([members, np.full((1, members.shape[1]), -1)])
            used = np.zeros(len(members), np.bool_)
            used[one] = used[other] = True
            one, other = (np.append(some, last) for some, last in zip((one, other), np.flatnonzero(~used), strict=True))
        members = np.concatenate([members[one], members[other]], axis=1)
    heats = np.where(members >= 0, count[members], 0).sum(axis=1)
    whole = (members >= 0).all(axis=1)  # a group with gaps would shift the pages behind it
    ordered = members[np.lexsort((-heats, ~whole))].reshape(-1)
    order = np.concatenate([ordered[ordered >= 0], np.flatnonzero(count == 0)])
    return Placement.of(striped(order, per_page, dies), "co-access")


def _edges(bags: Bags, members: NDArray[np.int64], rows: int, reach: int) -> _Edges:
    """Which groups come together in bags, and how often."""
    groups = len(members)
    group_of = np.zeros(rows, np.int64)
    numbers, inside = np.repeat(np.arange(groups), members.shape[1]), members.reshape(-1) >= 0
    group_of[members.reshape(-1)[inside]] = numbers[inside]
    group = group_of[bags.indices]
    bag = np.repeat(np.arange(bags.count), np.diff(bags.offsets))
    keys = []
    for step in range(1, reach + 1):
        one, other = group[:-step], group[step:]
        together = (bag[:-step] == bag[step:]) & (one != other)
        one, other = one[together], other[together]
        keys.append(np.minimum(one, other) * groups + np.maximum(one, other))
    key, weight = np.unique(np.concatenate(keys), return_counts=True)
    return _Edges(key // groups, key % groups, weight.astype(np.int64))


def _paired(edges: _Edges, heats: Ids) -> tuple[Ids, Ids]:
    """Groups in pairs; all but one where their number is odd."""
    groups = len(heats)
    # both directions, best last: a group's last one is its choice
    one = np.concatenate([edges.one, edges.other])
    other = np.concatenate([edges.other, edges.one])
    weight = np.concatenate([edges.weight, edges.weight])
    ranked = np.lexsort((other, -heats[other], weight))
    one, other = one[ranked], other[ranked]
    free = np.ones(groups, np.bool_)
    found: list[NDArray[np.int64]] = []
    for _ in range(ROUNDS):
        choice = np.full(groups, -1)
        choice[one] = other
        mutual = np.flatnonzero((choice >= 0) & (choice[choice] == np.arange(groups)))
        mutual = mutual[mutual < choice[mutual]]
        if not len(mutual):
            break
        pair = np.array([mutual, choice[mutual]])
        found.append(pair)
        free[pair] = False
        left = free[one] & free[other]
        one, other = one[left], other[left]
    rest = np.flatnonzero(free)
    rest = rest[np.argsort(-heats[rest], kind="stable")][: len(rest) // 2 * 2]
    pairs = np.concatenate([*found, rest.reshape(-1, 2).T], axis=1)
    return pairs[0], pairs[1]
