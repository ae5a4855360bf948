"""Which samples each rank trains on at each step: a pure function of plan and epoch, so that no rank has to be told.

A pool is shuffled by (seed, epoch, its name) and dealt to the ranks in segments, by their quotas. Each rank takes its
segments' samples in that order, from which pool next being by chance again, and divides them among the epoch's steps
as evenly as it goes: sizes of its batches differ by one at most. So there is no short last batch whose gradient would
be noisier, or that batch norm could not take; only a rank that has fewer samples than steps has steps of none. Samples
that are taken a second time come last.

At any step, what a rank has trained is the head of each of its segments: a few numbers say what is left of an epoch
when the plan changes (``spent``).

Shuffles sort by the raw output of PCG64, which NumPy promises to keep, not by ``Generator.permutation``, which it does
not: ranks with different releases of NumPy agree on the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan.plan import Plan

Indices = NDArray[np.int64]
Batch = list[tuple[str, int]]
Ranges = tuple[tuple[int, int], ...]


class Samples(NamedTuple):
    """A rank's samples of an epoch, in the order of its steps.

    :ivar pools: i64[n], numbers of ``plan.pools``
    :ivar indices: i64[n], of the samples in their pools
    :ivar bounds: i64[steps + 1]: step t has those from bounds[t] to bounds[t + 1]
    """

    pools: Indices
    indices: Indices
    bounds: Indices


def order(plan: Plan, epoch: int, rank: int, start: int = 0) -> Iterator[Batch]:
    """A rank's batches of an epoch, ``plan.steps_in(epoch)`` of them, as (pool, index) pairs.

    :param start: the first step that is wanted: where a run resumes
    """
    return _batches(plan, samples(plan, epoch, rank), start)


def union(plan: Plan, epoch: int, start: int = 0) -> Iterator[Batch]:
    """All ranks' batches of each step, rank after rank: what one process would train on to the same end."""
    places = _places(plan, epoch)
    ranks = [_batches(plan, _dealt(plan, hand, places), start) for hand in _hands(plan, epoch)]
    for batches in zip(*ranks, strict=True):
        yield [sample for batch in batches for sample in batch]


def samples(plan: Plan, epoch: int, rank: int) -> Samples:
    """A rank's samples of an epoch, as arrays. :raises IndexError: there is no such rank"""
    return _dealt(plan, _hands(plan, epoch)[rank], _places(plan, epoch))


def sizes(plan: Plan, epoch: int, step: int) -> list[int]:
    """By rank: samples of one step."""
    rest, steps = plan.rest_of(epoch), max(plan.steps_in(epoch), 1)
    totals = [sum(quota.values()) for quota in rest.quotas] if rest else [share.samples for share in plan.shares]
    return [(step + 1) * total // steps - step * total // steps for total in totals]


def spent(plan: Plan, epoch: int, step: int) -> dict[str, Ranges]:
    """Pool -> ranges of its order in an epoch that all ranks have trained before ``step``, earlier plans' included.

    What a plan that follows in the same epoch begins from (``Rest.spent``).

    :raises PlanError: the epoch has no such step under this plan
    """
    if not 0 <= step <= plan.steps_in(epoch):
        raise PlanError(f"step {step} of epoch {epoch}, which has {plan.steps_in(epoch)} under this plan")
    rest = plan.rest_of(epoch)
    found = {name: list(ranges) for name, ranges in rest.spent.items()} if rest else {}
    left = [_left(pool.count, found.get(pool.name, ())) for pool in plan.pools]
    for hand in _hands(plan, epoch):
        sequence, bounds = _sequence(plan, hand)
        used = np.bincount(sequence[: bounds[step]], minlength=len(plan.pools))
        for number, (first, size, _) in hand.segments.items():
            head = left[number][first : first + min(int(used[number]), size)]
            found.setdefault(plan.pools[number].name, []).extend(_ranges(head))
    return {name: _merged(ranges) for name, ranges in found.items() if ranges}


def _batches(plan: Plan, mine: Samples, start: int) -> Iterator[Batch]:
    names = [pool.name for pool in plan.pools]
    for step in range(start, len(mine.bounds) - 1):
        part = slice(*mine.bounds[step : step + 2].tolist())
        yield [
            (names[pool], index)
            for pool, index in zip(mine.pools[part].tolist(), mine.indices[part].tolist(), strict=True)
        ]


# -- a rank's samples


class Segment(NamedTuple):
    """A rank's part of what is to be dealt of a pool: ``size`` samples from ``first`` on, ``again`` of them twice."""

    first: int
    size: int
    again: int


class Hand(NamedTuple):
    """What a rank is dealt in an epoch: pool number -> segment, by rising number."""

    node: str
    epoch: int
    segments: dict[int, Segment]


def _hands(plan: Plan, epoch: int) -> list[Hand]:
    """By rank: the ranks' segments of each pool follow one another."""
    rest = plan.rest_of(epoch)
    numbers = {pool.name: number for number, pool in enumerate(plan.pools)}
    dealt = [0] * len(plan.pools)
    hands = []
    for share in plan.shares:
        quota = rest.quotas[share.rank] if rest else share.quota
        segments = {}
        for number in sorted(numbers[name] for name, count in quota.items() if count):
            name = plan.pools[number].name
            segments[number] = Segment(dealt[number], quota[name], 0 if rest else share.repeated.get(name, 0))
            dealt[number] += quota[name]
        hands.append(Hand(share.node, epoch, segments))
    return hands


def _dealt(plan: Plan, hand: Hand, places: Callable[[int], Indices]) -> Samples:
    """A rank's segments of all pools, in the order in which it takes them."""
    sequence, bounds = _sequence(plan, hand)
    indices = np.empty(len(sequence), np.int64)
    for number, (first, size, again) in hand.segments.items():
        segment = places(number)[first : first + size]
        indices[sequence == number] = np.concatenate([segment, segment[:again]])
    return Samples(sequence, indices, bounds)


def _sequence(plan: Plan, hand: Hand) -> tuple[Indices, Indices]:
    """From which pool each of a rank's samples comes, and where its steps begin and end."""
    totals = [segment.size + segment.again for segment in hand.segments.values()]
    numbers = np.repeat(np.array([*hand.segments], np.int64), totals)
    mixed = _shuffle(len(numbers), plan.seed, hand.epoch, f"node {hand.node}")
    steps = plan.steps_in(hand.epoch)
    return numbers[mixed], np.arange(steps + 1, dtype=np.int64) * len(numbers) // max(steps, 1)


# -- a pool's order


def _places(plan: Plan, epoch: int) -> Callable[[int], Indices]:
    """Pool number -> its samples that are to be dealt, in this epoch's order; made when first asked for."""
    rest = plan.rest_of(epoch)

    @cache
    def places(number: int) -> Indices:
        pool = plan.pools[number]
        shuffled = _shuffle(pool.count, plan.seed, epoch, f"pool {pool.name}")
        return shuffled[_left(pool.count, rest.spent.get(pool.name, ()))] if rest else shuffled

    return places


def _shuffle(count: int, seed: int, epoch: int, name: str) -> Indices:
    """i64[count]: 0 .. count - 1 in an order of its own for each seed, epoch and name.

    By name and not by number: a pool keeps its order when another one leaves.
    """
    said = hashlib.sha256(f"{seed} {epoch} {name}".encode()).digest()
    keys = np.random.PCG64(int.from_bytes(said[:16], "little")).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def _left(count: int, ranges: Iterable[tuple[int, int]]) -> Indices:
    """The places from 0 to ``count`` that lie in none of the ranges."""
    free = np.ones(count, np.bool_)
    for first, end in ranges:
        free[first:end] = False
    return np.flatnonzero(free)


def _ranges(places: Indices) -> list[tuple[int, int]]:
    """Rising places as ranges."""
    if not len(places):
        return []
    cuts = np.flatnonzero(np.diff(places) != 1)
    firsts = places[np.concatenate([[0], cuts + 1])]
    ends = places[np.concatenate([cuts, [len(places) - 1]])] + 1
    return list(zip(firsts.tolist(), ends.tolist(), strict=True))


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    """Ranges by their firsts, those that touch as one."""
    merged: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if merged and merged[-1][1] == first:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((first, end))
    return tuple(merged)
