"""What is done for ranks that lack samples, and what each way is predicted to give.

Public samples come first: ``spread`` has dealt them to whom lacks. If ranks still lack more than a step's worth, then

- *duplicate*: they train on samples of their own a second time in an epoch, private ones first, each once more at most;
- *shorten*: their batches become smaller, so that what they have lasts for all steps.

Either way every rank takes the same number of steps, and those that have the most decide how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan.plan import Asked, Engine, Pool, Share, Strategy
from emucsd.stannis.plan.spread import Deal


@dataclass(frozen=True)
class Option:
    """A strategy carried out, and its prediction.

    :ivar step_seconds: of a step: the slowest rank's computing, and synchronisation
    """

    strategy: Strategy
    steps: int
    shares: tuple[Share, ...]
    step_seconds: float

    @property
    def images_per_second(self) -> float:
        """Waiting included; repeats count."""
        return sum(share.samples for share in self.shares) / (self.steps * self.step_seconds)

    @property
    def unique_per_second(self) -> float:
        """The same, repeats left out."""
        return sum(share.unique for share in self.shares) / (self.steps * self.step_seconds)


@dataclass(frozen=True)
class Draft:
    """Ranks, their batches and what was dealt to them.

    :ivar deal: of ``pools`` to ``engines`` by ``batches``; no rank without a sample
    """

    engines: tuple[Engine, ...]
    pools: tuple[Pool, ...]
    batches: tuple[int, ...]
    deal: Deal
    sync_seconds: float

    @property
    def steps(self) -> int:
        """Of an epoch: what the ranks with the most samples need."""
        return self.deal.steps

    @property
    def even(self) -> bool:
        """Whether public samples sufficed: no rank lacks a whole step's worth."""
        return self.deal.groups[-1].steps > self.steps - 1

    def options(self, asked: Asked) -> list[Option]:
        """All ways that there are, the preferred one first where rates are equal; the one that was asked for alone.

        :raises PlanError: ``public`` was asked for and does not suffice
        """
        if self.even:
            return [self._option("public", self.batches, self._nothing)]
        if asked == "public":
            raise PlanError(
                f"public samples do not suffice: {self._lack()}; use strategy 'duplicate' or 'shorten', or add data"
            )
        ways: dict[str, Option] = {"shorten": self.shortened(), "duplicate": self.duplicated()}
        return list(ways.values()) if asked == "auto" else [ways[asked]]

    def shortened(self) -> Option:
        """Batches no larger than what the samples last for."""
        return self._option("shorten", self._lasting(self._nothing), self._nothing)

    def duplicated(self) -> Option:
        """Repeats up to the fullest ranks' steps; where each sample twice is too little for that, shortened as well."""
        repeated = [self._repeats(rank) for rank in range(len(self.engines))]
        return self._option("duplicate", self._lasting(repeated), repeated)

    @property
    def _nothing(self) -> list[dict[str, int]]:
        """No repeats."""
        return [{} for _ in self.engines]

    def _repeats(self, rank: int) -> dict[str, int]:
        fullest, quota = self.deal.groups[0].steps, self.deal.quotas[rank]
        lacking = int(fullest * self.batches[rank]) - sum(quota.values())
        repeats = {}
        for pool in sorted(quota, key=lambda pool: not self.pools[pool].private):
            if lacking > 0:
                repeats[self.pools[pool].name] = min(lacking, quota[pool])
                lacking -= repeats[self.pools[pool].name]
        return repeats

    def _lasting(self, repeated: Sequence[dict[str, int]]) -> list[int]:
        return [
            min(batch, -(-(sum(quota.values()) + sum(again.values())) // self.steps))
            for batch, quota, again in zip(self.batches, self.deal.quotas, repeated, strict=True)
        ]

    def _option(self, strategy: Strategy, batches: Sequence[int], repeated: Sequence[dict[str, int]]) -> Option:
        shares = tuple(self._share(rank, batches[rank], repeated[rank]) for rank in range(len(self.engines)))
        return Option(strategy, self.steps, shares, max(share.seconds for share in shares) + self.sync_seconds)

    def _share(self, rank: int, batch: int, repeated: dict[str, int]) -> Share:
        quota = {self.pools[pool].name: count for pool, count in sorted(self.deal.quotas[rank].items())}
        mean = (sum(quota.values()) + sum(repeated.values())) / self.steps  # of a step: they are divided evenly
        seconds = self.engines[rank].seconds(mean)
        return Share(rank, self.engines[rank].node, batch, quota, repeated, mean / seconds, seconds)

    # -- reasons

    def why(self, chosen: Option, options: Sequence[Option]) -> str:
        """A sentence on the strategy and one on what decides the number of steps."""
        if chosen.strategy == "public":
            how = "all ranks have as much of their own" if self._all_own else "public samples even out all ranks"
            return f"{how}: {float(self.deal.groups[0].steps):.4g} steps' worth each"
        return f"{self._lack()}; {'; '.join(map(_rate, options))}; {self._bound()}"

    @property
    def _all_own(self) -> bool:
        return all(self.pools[pool].private for quota in self.deal.quotas for pool in quota)

    def _lack(self) -> str:
        lacking = [rank for group in self.deal.groups if group.steps <= self.steps - 1 for rank in group.ranks]
        room = sum(self.steps * self.batches[rank] for rank in lacking)
        there = sum(sum(self.deal.quotas[rank].values()) for rank in lacking)
        return f"{self._named(lacking)} can have {there:,} samples for {self.steps} steps of {room:,}"

    def _bound(self) -> str:
        group = self.deal.groups[0]
        pools = few([repr(self.pools[pool].name) for pool in group.pools])
        return f"the number of steps comes from {self._named(group.ranks)}: nobody else can read {pools}"

    def _named(self, ranks: Sequence[int]) -> str:
        return few([self.engines[rank].node for rank in ranks])


def _rate(option: Option) -> str:
    told = f"{option.strategy} gives {option.images_per_second:.4g} images/s"
    repeats = option.unique_per_second < option.images_per_second
    return f"{told}, {option.unique_per_second:.4g} without repeats" if repeats else told


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names and the number of the others."""
    told = ", ".join(names[:most])
    return told if len(names) <= most else f"{told} and {len(names) - most} more"
