"""Batches that follow the engines' speeds while the run goes on.

The idea is HyperTune's (arXiv 2007.08077): an engine that slows down, because its drive serves other readers or it is
throttled, makes all ranks wait; a smaller batch on it and larger ones elsewhere, at the same global batch, do not
change what is learnt, and all wait less. Here:

- An engine's *slowdown* is the median, over a window of steps, of its computing time over the predicted one: single
  slow steps do not count, bursts shorter than half of the window neither.
- The *gain* is what the step would be shorter with the batches that are best for these slowdowns. Only a gain above
  ``threshold``, seen ``patience`` times in a row, leads to a change. Large gains are looked for in a short window,
  small ones (a quarter of the threshold) in one nine times as long, where noise can't feign them.
- After a change nothing changes for ``cooldown`` steps; each further change doubles that, a calm of four times its
  length halves it again. So a drive that is slow by turns is followed when the turns are long, and soon left alone when
  they are short: no series of times makes it swing between two plans.

All is a function of numbers that every rank has (the times ride along with the gradients), so every rank comes to the
same plan at the same step, and nobody has to be told.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan import batches as sizes
from emucsd.stannis.plan.plan import Engine, Plan
from emucsd.stannis.plan.replan import replan

_CALM = 4  # cool-downs without a wish to change, until it is halved
_SLOWER, _SMALLER = 9, 4  # the second window is so much longer, for gains so much smaller


@dataclass(frozen=True)
class Change:
    """What the retuner proposes.

    :ivar engines: by rank: with the new batches, and times as they are now
    :ivar slowdowns: by rank: time over the predicted one
    :ivar gain: by which the rate rises: 0.5: the old plan takes 1.5 times as long
    """

    engines: tuple[Engine, ...]
    slowdowns: tuple[float, ...]
    gain: float

    @property
    def batches(self) -> tuple[int, ...]:
        """By rank."""
        return tuple(engine.batch for engine in self.engines)

    def why(self) -> str:
        """A sentence for people."""
        slowest = max(range(len(self.engines)), key=lambda rank: self.slowdowns[rank])
        return (
            f"{self.engines[slowest].node} takes {self.slowdowns[slowest]:.2f} times as long as planned; "
            f"all of it takes {self.gain:.0%} longer than it need"
        )


class Watch:
    """Looks at the last steps for a gain that stays."""

    def __init__(self, engines: Sequence[Engine], window: int, threshold: float, patience: int, every: int) -> None:
        """:param every: steps from one look to the next"""
        self._engines, self._window, self._every = engines, window, every
        self._threshold, self._patience = threshold, patience
        self._ratios: list[deque[float]] = [deque(maxlen=window) for _ in engines]
        self._steps = 0
        self.streak = 0  # looks in a row that saw a gain

    def observe(self, ratios: Sequence[float | None]) -> None:
        """:param ratios: by rank: time over the predicted one; None: not known"""
        for known, ratio in zip(self._ratios, ratios, strict=True):
            if ratio is not None:
                known.append(ratio)
        self._steps += 1
        if self._steps % self._every == 0:
            self.streak = self.streak + 1 if self._gain() > self._threshold else 0

    @property
    def sure(self) -> bool:
        """Whether the gain has stayed for long enough."""
        return self.streak >= self._patience

    @property
    def slowdowns(self) -> tuple[float, ...]:
        """By rank; 1 where nothing was observed yet."""
        return tuple(median(ratios) if ratios else 1.0 for ratios in self._ratios)

    def _gain(self) -> float:
        """What can be had at most: all ranks busy all the time, memories left aside."""
        if any(2 * len(ratios) < self._window for ratios in self._ratios):
            return 0.0
        times = [one.step_seconds * slow for one, slow in zip(self._engines, self.slowdowns, strict=True)]
        rate = sum(one.batch / time for one, time in zip(self._engines, times, strict=True))
        return max(times) * rate / sum(one.batch for one in self._engines) - 1


class Retuner:
    """Watches a run's steps. Each rank has one and feeds it the same numbers."""

    def __init__(
        self, plan: Plan, *, window: int = 11, threshold: float = 0.20, patience: int = 5, cooldown: int = 30
    ) -> None:
        """
        :param window: steps that a slowdown is the median of
        :param threshold: gain that is worth a change at once; a quarter of it is worth one in time
        :param patience: how many times in a row it must be seen
        :param cooldown: steps after the first change without another
        :raises PlanError: a number out of range
        """
        if window < 1 or not 0 < threshold < math.inf or patience < 1 or cooldown < 1:
            raise PlanError(
                f"window {window}, threshold {threshold}, patience {patience}, cool-down {cooldown}; from 1, above 0"
            )
        self.window, self.threshold, self.patience, self.cooldown = window, threshold, patience, cooldown
        self._pause = cooldown
        self._left = 0  # steps of the pause
        self._calm = 0  # steps without a wish to change
        self.follow(plan)

    def follow(self, plan: Plan) -> None:
        """Watch another plan: the one that a change led to, or one without a rank that was lost."""
        self._plan = plan
        by_node = {engine.node: engine for engine in plan.engines}
        self._engines = [by_node[share.node].at(share.batch) for share in plan.shares]
        self._watches = (
            Watch(self._engines, self.window, self.threshold, self.patience, 1),
            Watch(self._engines, _SLOWER * self.window, self.threshold / _SMALLER, self.patience, _SLOWER),
        )

    @property
    def slowdowns(self) -> tuple[float, ...]:
        """By rank: time over the predicted one, lately; 1 where nothing was observed yet."""
        return self._watches[0].slowdowns

    def observe(self, seconds: Sequence[float], images: Sequence[int]) -> Change | None:
        """A step that all ranks have taken.

        :param seconds: by rank: of computing, without waiting for others
        :param images: by rank: samples of this step (``order.sizes``); ranks that had none tell nothing
        :returns: a change that is due now; ``retuned`` makes the plan of it, then call ``follow``
        """
        ratios = [
            took / engine.seconds(count) if count > 0 and 0 < took < math.inf else None
            for engine, took, count in zip(self._engines, seconds, images, strict=True)
        ]
        for watch in self._watches:
            watch.observe(ratios)
        self._left = max(self._left - 1, 0)
        self._rest(any(watch.streak for watch in self._watches))
        sure = next((watch for watch in self._watches if watch.sure), None)
        return None if sure is None or self._left else self._change(sure)

    def _rest(self, wished: bool) -> None:
        """Shorten the pause after a calm."""
        self._calm = 0 if wished else self._calm + 1
        if self._calm >= _CALM * self._pause:
            self._pause, self._calm = max(self._pause // 2, self.cooldown), 0

    def _change(self, watch: Watch) -> Change | None:
        """The best batches for the slowdowns, if memories and quotas leave them worth it."""
        slowdowns = watch.slowdowns
        slowed = [one.at(one.batch, slow) for one, slow in zip(self._engines, slowdowns, strict=True)]
        batches = sizes.fastest(slowed, sum(one.batch for one in slowed))
        engines = tuple(one.at(batch) for one, batch in zip(slowed, batches, strict=True))
        plan, watch.streak = self._plan, 0
        seconds = max(one.seconds(share.samples / plan.steps) for one, share in zip(slowed, plan.shares, strict=True))
        rate = plan.samples / plan.steps / (seconds + plan.sync_seconds)
        change = Change(engines, slowdowns, 0.0)
        change = replace(change, gain=retuned(plan, change).images_per_second / rate - 1)
        if change.gain <= self.threshold / _SMALLER:
            return None
        self._left = self._pause
        self._pause, self._calm = 2 * self._pause, 0
        return change


def retuned(plan: Plan, change: Change, *, epoch: int = 0, step: int = 0) -> Plan:
    """The plan with a change's batches; quotas follow (Eq. 1), what is left of the epoch is dealt by them.

    :param epoch: where the run stands
    :param step: of that epoch under ``plan``: steps that were trained
    """
    new = {engine.node: engine for engine in change.engines}
    engines = [new.get(engine.node, engine) for engine in plan.engines]
    after = replan(plan, engines, plan.pools, epoch=epoch, step=step)
    return replace(after, why=f"{change.why()}; {after.why}")
