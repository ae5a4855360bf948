"""The plan of a run: what there is (pools of samples, engines), and each rank's part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal, Self

from emucsd.stannis import fields
from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan import table

Strategy = Literal["public", "duplicate", "shorten"]
Asked = Literal["auto", "public", "duplicate", "shorten"]

VERSION = 1


@dataclass(frozen=True)
class Pool:
    """Samples that lie together, or copies of the same in several places.

    :ivar name: unique in a run
    :ivar private: never leaves the nodes in ``at``; of the others none can read it
    :ivar count: samples
    :ivar sample_bytes: of one, stored, on average
    :ivar at: node -> location as that node opens it; its keys say who can read the pool
    :raises PlanError: a negative count or size, no name, private with nobody who can read it
    """

    name: str
    private: bool
    count: int
    sample_bytes: int
    at: dict[str, str]

    def __post_init__(self) -> None:
        if not self.name or self.count < 0 or self.sample_bytes < 0:
            raise PlanError(f"pool {self.name!r}: {self.count} samples of {self.sample_bytes} bytes; named, from 0")

    def readable_by(self, node: str) -> bool:
        """Whether a node has a way to it."""
        return node in self.at


@dataclass(frozen=True)
class Engine:
    """What is known of a node that computes, before anything is planned.

    :ivar batch: its best batch, from the tuner
    :ivar rate: images/s at that batch, synchronisation not counted
    :ivar step_seconds: of one step at that batch; 0: ``batch / rate``
    :ivar memory_limit_batch: the largest batch that its memory takes; None: unknown
    :ivar curve: more measured points (batch, seconds), by rising batch: what predictions of other batches rest on
    :raises PlanError: a batch below 1, a rate that is not positive
    """

    node: str
    batch: int
    rate: float
    step_seconds: float = 0.0
    memory_limit_batch: int | None = None
    curve: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.node or self.batch < 1 or not 0 < self.rate < float("inf") or self.step_seconds < 0:
            raise PlanError(
                f"engine {self.node!r}: batch {self.batch}, {self.rate} images/s, {self.step_seconds} s a step; "
                "a name, a batch from 1, a rate above 0"
            )
        if self.memory_limit_batch is not None and self.memory_limit_batch < 1:
            raise PlanError(f"engine {self.node!r}: memory for a batch of {self.memory_limit_batch}; leave it out")
        if any(batch < 1 or seconds <= 0 for batch, seconds in self.curve) or any(
            low >= high for (low, _), (high, _) in pairwise(self.curve)
        ):
            raise PlanError(f"engine {self.node!r}: curve {self.curve}; (batch, seconds) by rising batch, above 0")
        if not self.step_seconds:
            object.__setattr__(self, "step_seconds", self.batch / self.rate)

    @property
    def cap(self) -> int | None:
        """The largest batch that may be planned."""
        return self.memory_limit_batch

    def seconds(self, batch: float) -> float:
        """Seconds of a step at any batch: between measured points on the line that joins them.

        Below the first point the time falls in proportion down to a batch of 0, as a rate that stays would have it;
        above the last the last rate stays. With one point only, that is batch / rate everywhere.
        """
        last, longest = self._points[-1]
        if batch >= last:
            return batch * longest / last
        for (low, before), (high, after) in pairwise(self._points):
            if batch <= high:
                return before + (after - before) * (batch - low) / (high - low)
        raise AssertionError("unreachable")

    def within(self, seconds: float) -> float:
        """The batch whose step takes so long: the inverse of ``seconds``, memory left aside."""
        last, longest = self._points[-1]
        if seconds >= longest:
            return seconds * last / longest
        for (low, before), (high, after) in pairwise(self._points):
            if seconds < after:
                return low + (high - low) * (seconds - before) / (after - before)
        raise AssertionError("unreachable")

    def at(self, batch: int, slowdown: float = 1.0) -> Engine:
        """The same engine with another batch as its own, and all times multiplied."""
        curve = tuple((size, seconds * slowdown) for size, seconds in self._points[1:])
        seconds = self.seconds(batch) * slowdown
        return Engine(self.node, batch, batch / seconds, seconds, self.memory_limit_batch, curve)

    @cached_property
    def _points(self) -> list[tuple[int, float]]:
        """Measured points from (0, 0) on. A larger batch that was measured as faster counts as no slower."""
        points, longest = [(0, 0.0)], 0.0
        for batch, seconds in sorted((dict(self.curve) | {self.batch: self.step_seconds}).items()):
            longest = max(longest, seconds)
            points.append((batch, longest))
        return points


@dataclass(frozen=True)
class Share:
    """One rank's part.

    :ivar batch: samples of a step, at most
    :ivar quota: pool -> samples of an epoch, each once
    :ivar repeated: pool -> of those, how many a second time, to fill the steps
    :ivar rate: images/s at this batch, as predicted
    :ivar seconds: of a full step's computing, as predicted
    """

    rank: int
    node: str
    batch: int
    quota: dict[str, int]
    repeated: dict[str, int] = field(default_factory=dict)
    rate: float = 0.0
    seconds: float = 0.0

    @property
    def unique(self) -> int:
        """Different samples of an epoch."""
        return sum(self.quota.values())

    @property
    def samples(self) -> int:
        """Samples of an epoch, those counted twice that are taken twice."""
        return self.unique + sum(self.repeated.values())


@dataclass(frozen=True)
class Rest:
    """What is left of an epoch that an earlier plan began: so each sample comes once, whoever left or joined.

    :ivar epoch: which one
    :ivar steps: it still takes; 0: nothing is left
    :ivar done: share of the epoch's samples that were trained before
    :ivar quotas: by rank: pool -> samples
    :ivar spent: pool -> ranges (first, end) of the pool's order in this epoch that were trained; rising, apart
    """

    epoch: int
    steps: int
    done: float
    quotas: tuple[dict[str, int], ...]
    spent: dict[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Plan:
    """Who trains what. Made by ``balancer.balance``; saved with the run; the same on all ranks.

    :ivar generation: counts plans of a run: 0, then one more each time that ranks or batches change
    :ivar steps: of an epoch, the same on every rank (Eq. 1)
    :ivar step_seconds: of one step as predicted: the slowest rank's computing and ``sync_seconds``
    :ivar images_per_second: predicted, waiting included; repeated samples count
    :ivar unique_share: of an epoch's samples, how many are not repeats
    :ivar rates: strategy -> images/s predicted, of all that were compared
    :ivar why: the reason for the strategy, and what decides the number of steps
    :ivar dropped: node -> why it has no rank
    :ivar engines: all that were planned with, the dropped ones too: what a new plan starts from
    :ivar asked_batch: the global batch that was asked for, if one was
    :ivar rest: of the epoch in which this plan replaced another
    :ivar equal: batches are equal on all ranks (plain data parallel), for comparison
    :raises PlanError: quotas that don't add up to the pools, or a private sample with a rank that can't read it
    """

    seed: int
    generation: int
    steps: int
    shares: tuple[Share, ...]
    pools: tuple[Pool, ...]
    engines: tuple[Engine, ...] = ()
    step_seconds: float = 0.0
    sync_seconds: float = 0.0
    images_per_second: float = 0.0
    unique_share: float = 1.0
    strategy: Strategy = "public"
    rates: dict[str, float] = field(default_factory=dict)
    why: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    asked_batch: int | None = None
    asked_strategy: Asked = "auto"
    equal: bool = False
    rest: Rest | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise PlanError(f"a plan of version {self.version}, this release reads {VERSION}; plan anew")
        if self.steps < 1 or self.seed < 0 or self.generation < 0 or not self.shares:
            raise PlanError(
                f"a plan of {self.steps} steps and {len(self.shares)} ranks, seed {self.seed}, generation "
                f"{self.generation}; at least 1 step and rank, the rest from 0"
            )
        self._check_names()
        self._check_shares()
        if self.rest is not None:
            self._check_rest(self.rest)

    def _check_names(self) -> None:
        if [share.rank for share in self.shares] != list(range(self.world)):
            raise PlanError(f"ranks {[share.rank for share in self.shares]}; 0 to {self.world - 1} in order")
        for what, names in (("node", self.nodes), ("pool", [pool.name for pool in self.pools])):
            if len(set(names)) != len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise PlanError(f"{what} {twice!r} comes twice in a plan; each has a name of its own")

    def _check_shares(self) -> None:
        for share in self.shares:
            if share.batch < 1 or share.samples > self.steps * share.batch:
                raise PlanError(
                    f"rank {share.rank}: {share.samples} samples in {self.steps} steps of {share.batch}; "
                    "a batch of at least 1 that holds them"
                )
            if any(not 0 <= count <= share.quota.get(name, 0) for name, count in share.repeated.items()):
                raise PlanError(f"rank {share.rank}: repeats {share.repeated} of {share.quota}; each sample once more")
        self._check_dealt([share.quota for share in self.shares], {pool.name: pool.count for pool in self.pools})

    def _check_rest(self, rest: Rest) -> None:
        if len(rest.quotas) != self.world or rest.epoch < 0 or rest.steps < 0 or not 0 <= rest.done <= 1:
            raise PlanError(
                f"the rest of epoch {rest.epoch}: {rest.steps} steps for {len(rest.quotas)} ranks after {rest.done}; "
                f"for {self.world} ranks, from 0, a share of 1"
            )
        left = {}
        for pool in self.pools:
            edges = [edge for ends in rest.spent.get(pool.name, ()) for edge in ends]
            if edges != sorted(edges) or (edges and edges[0] < 0):
                raise PlanError(f"pool {pool.name!r}: {edges[:6]} were trained; ranges that rise and are apart")
            trained = (min(end, pool.count) - first for first, end in rest.spent.get(pool.name, ()))
            left[pool.name] = pool.count - sum(count for count in trained if count > 0)
        for share, quota in zip(self.shares, rest.quotas, strict=True):
            if sum(quota.values()) > rest.steps * share.batch:
                raise PlanError(
                    f"rank {share.rank}: the rest of an epoch does not fit {rest.steps} steps of {share.batch}"
                )
        self._check_dealt(rest.quotas, left)

    def _check_dealt(self, quotas: Sequence[dict[str, int]], counts: dict[str, int]) -> None:
        """Every sample is dealt, once, to a rank that can read it."""
        pools = {pool.name: pool for pool in self.pools}
        dealt = dict.fromkeys(pools, 0)
        for share, quota in zip(self.shares, quotas, strict=True):
            for name, count in quota.items():
                pool = pools.get(name)
                if pool is None or count < 0 or (count and not pool.readable_by(share.node)):
                    raise PlanError(f"rank {share.rank}, {share.node}: {count} samples of {name!r}: no way to it")
                dealt[name] += count
        for name, count in dealt.items():
            if count != counts[name]:
                raise PlanError(f"pool {name!r}: {count} of {counts[name]} samples are planned; every one, once")

    # -- ranks

    @property
    def world(self) -> int:
        """Number of ranks."""
        return len(self.shares)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes by rank."""
        return tuple(share.node for share in self.shares)

    def share(self, node: str) -> Share:
        """A node's part. :raises KeyError: it has no rank"""
        for share in self.shares:
            if share.node == node:
                return share
        raise KeyError(node)

    @property
    def global_batch(self) -> int:
        """Samples of a full step, all ranks."""
        return sum(share.batch for share in self.shares)

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch by rank."""
        return tuple(share.batch for share in self.shares)

    # -- an epoch

    def rest_of(self, epoch: int) -> Rest | None:
        """What is left of an epoch, where this plan came in its middle; None: it has all of it."""
        return self.rest if self.rest is not None and self.rest.epoch == epoch else None

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch under this plan: ``steps``, or fewer where it came in the epoch's middle."""
        rest = self.rest_of(epoch)
        return self.steps if rest is None else rest.steps

    def progress(self, epoch: int, step: int) -> float:
        """Epochs trained before a step, as a fraction: what schedules go by, whatever plans there were."""
        rest = self.rest_of(epoch)
        done = rest.done if rest is not None else 0.0
        return epoch + done + (1 - done) * step / max(self.steps_in(epoch), 1)

    @property
    def unique(self) -> int:
        """Different samples of an epoch."""
        return sum(share.unique for share in self.shares)

    @property
    def samples(self) -> int:
        """Samples of an epoch, repeats counted."""
        return sum(share.samples for share in self.shares)

    @property
    def epoch_seconds(self) -> float:
        """As predicted."""
        return self.steps * self.step_seconds

    def waiting(self, rank: int) -> float:
        """Share of a step in which a rank computes nothing, as predicted."""
        return 1 - self.shares[rank].seconds / self.step_seconds if self.step_seconds else 0.0

    # -- forms

    def to_json(self, indent: int | None = None) -> str:
        """All of it; ``from_json`` gives an equal plan."""
        return fields.to_json(self, indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """:raises PlanError: no JSON, unknown fields, or a plan that doesn't add up"""
        try:
            return fields.from_json(cls, text)
        except fields.FieldError as problem:
            raise PlanError(f"plan: {problem}") from None

    def table(self) -> str:
        """For people: a line a rank, then the sums, the strategy and why."""
        return table.plan_table(self)
