"""Measured points, found by what they are, and the ratios between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Point:
    """A baseline, measured on batches of one size.

    :ivar latency_ns: of a batch, from inputs to outputs, mean
    :ivar rate: samples a second, batches following each other as closely as the baseline can
    :ivar sls_ns: of that latency, the lookup operators alone; None where they are not by themselves
    :ivar lookups: vectors of a batch
    :ivar spent: ns of a batch by kind (``baselines.KINDS``); ``drive`` is what the host waits for it
    :ivar misses: pages of a batch that were not in the host's page cache; None where there is none
    :ivar stages: of the drive's MLP engine: samples of a mini-batch, and ns that each stage takes for one
    """

    baseline: str
    model: str
    batch: int
    latency_ns: float
    rate: float
    sls_ns: float | None
    lookups: int
    spent: dict[str, float] = field(default_factory=dict)
    misses: float | None = None
    stages: dict[str, int] | None = None

    @property
    def interval_ns(self) -> float:
        """From one batch's outputs to the next one's, batches following each other closely."""
        return self.batch / self.rate * 1e9


Time = Callable[[Point], float]  # what of a point is compared, ns


def latency(point: Point) -> float:
    """Of a batch."""
    return point.latency_ns


def interval(point: Point) -> float:
    """Throughput, as a time."""
    return point.interval_ns


def operators(point: Point) -> float:
    """The lookup operators alone."""
    assert point.sls_ns is not None, f"{point.baseline} has no operators of its own"
    return point.sls_ns


class Pair(NamedTuple):
    """The same batches, served two ways; ``slow`` is what ``fast`` is compared with."""

    slow: Point
    fast: Point

    def ratio(self, time: Time) -> float:
        """How many times less time the second takes."""
        return time(self.slow) / time(self.fast)


class Points:
    """All points of a run."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._all = {(point.baseline, point.model, point.batch): point for point in points}

    def __iter__(self) -> Iterator[Point]:
        return iter(self._all.values())

    def pairs(self, slow: str, fast: str, models: Sequence[str]) -> list[Pair]:
        """Both baselines' points of these models, batch size by batch size."""
        return [
            Pair(point, self._all[fast, model, batch])
            for (name, model, batch), point in self._all.items()
            if name == slow and model in models
        ]


def mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def a_miss(pairs: Sequence[Pair]) -> float:
    """What a missed page takes, ns: the kernel's work and the drive's, mean."""
    spent = sum(pair.slow.spent["misses"] + pair.slow.spent["drive"] for pair in pairs)
    return spent / misses(pairs)


def misses(pairs: Sequence[Pair]) -> float:
    """Missed pages of the slow side's batches."""
    return sum(pair.slow.misses or 0 for pair in pairs)


def miss_rate(pairs: Sequence[Pair]) -> float:
    """Missed pages a lookup."""
    return misses(pairs) / sum(pair.slow.lookups for pair in pairs)


def needed_miss(
    pairs: Sequence[Pair], wanted: float, time: Time, whole: Callable[[Iterable[float]], float] = mean
) -> float:
    """What a missed page would have to take, ns, for a ratio to be as published, all else being as it is.

    :param whole: makes one figure of the pairs' ratios: ``mean``, ``max`` or ``min``
    """

    def found(extra: float) -> float:
        return whole((time(pair.slow) + extra * (pair.slow.misses or 0)) / time(pair.fast) for pair in pairs)

    now = a_miss(pairs)
    low, high = -now, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < wanted else (low, middle)
    return now + high


def at_misses(pairs: Sequence[Pair], share: float, time: Time) -> float:
    """The mean ratio if this share of the lookups missed, all else being as it is."""
    cost = a_miss(pairs)
    return mean(
        (time(pair.slow) + cost * (share * pair.slow.lookups - (pair.slow.misses or 0))) / time(pair.fast)
        for pair in pairs
    )
