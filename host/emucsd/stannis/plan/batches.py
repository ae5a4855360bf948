"""The ranks' batches: each engine's own, equal ones, or those that make a global batch with the shortest step."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan.plan import Engine

_HALVINGS = 60  # of an interval of seconds: to the last bit of a float


def tuned(engines: Sequence[Engine]) -> list[int]:
    """Each engine's own best batch, or what its memory takes."""
    return [min(engine.batch, engine.cap or engine.batch) for engine in engines]


def equal(engines: Sequence[Engine], global_batch: int | None) -> list[int]:
    """The same batch on every engine, as plain data parallelism has it.

    :param global_batch: None: as many samples a step as ``tuned`` has
    :returns: batches that sum up to ``global_batch`` at most
    """
    wanted = (global_batch or sum(tuned(engines))) // len(engines)
    return [min([max(wanted, 1), *(engine.cap for engine in engines if engine.cap)])] * len(engines)


def fastest(engines: Sequence[Engine], global_batch: int) -> list[int]:
    """Batches whose sum is ``global_batch`` and whose slowest step is as short as can be.

    At least 1 each, none above its cap.

    :raises PlanError: more engines than samples, or more samples than all memories take
    """
    if global_batch < len(engines):
        raise PlanError(f"a global batch of {global_batch} for {len(engines)} ranks; at least 1 each: leave some out")
    room = most(engines)
    if room is not None and global_batch > room:
        raise PlanError(f"a global batch of {global_batch}; the memories take {room} together: make it smaller")
    low, high = 0.0, max(engine.seconds(global_batch) for engine in engines)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sum(_within(engines, middle)) <= global_batch:
            low = middle
        else:
            high = middle
    return _filled(engines, _within(engines, low), global_batch)


def most(engines: Sequence[Engine]) -> int | None:
    """The largest global batch that all memories take; None: not known of all."""
    caps = [engine.cap for engine in engines]
    return None if None in caps else sum(cap for cap in caps if cap)


def _within(engines: Sequence[Engine], seconds: float) -> list[int]:
    """What each engine manages in a time."""
    found = (max(int(engine.within(seconds)), 1) for engine in engines)
    return [min(batch, engine.cap or batch) for batch, engine in zip(found, engines, strict=True)]


def _filled(engines: Sequence[Engine], batches: list[int], global_batch: int) -> list[int]:
    """The samples that are left to whom they cost least."""
    free = [
        (engine.seconds(batch + 1), number)
        for number, (engine, batch) in enumerate(zip(engines, batches, strict=True))
        if batch != engine.cap
    ]
    heapq.heapify(free)
    for _ in range(global_batch - sum(batches)):
        _, number = heapq.heappop(free)
        batches[number] += 1
        if batches[number] != engines[number].cap:
            heapq.heappush(free, (engines[number].seconds(batches[number] + 1), number))
    return batches
