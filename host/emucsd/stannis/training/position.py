"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Position:
    """A step boundary.

    :ivar step: steps taken in all
    :ivar epoch: from 0
    :ivar inside: steps of this epoch that were taken, of ``steps``
    :ivar steps: of an epoch; 0: no plan was followed yet
    :ivar skipped: of all steps, those that taught nothing
    """

    step: int = 0
    epoch: int = 0
    inside: int = 0
    steps: int = 0
    skipped: int = 0

    @property
    def epochs(self) -> float:
        """The same in epochs, as learning rates have it."""
        return self.epoch + (self.inside / self.steps if self.steps else 0.0)

    def under(self, steps: int) -> Self:
        """The same place in an epoch of another number of steps: the same share of it lies behind."""
        if not self.inside or steps == self.steps:
            return replace(self, steps=steps)
        return replace(self, steps=steps, inside=min(round(self.inside / self.steps * steps), steps - 1))

    def after(self, *, skipped: bool) -> Self:
        """One step further."""
        return replace(self, step=self.step + 1, inside=self.inside + 1, skipped=self.skipped + skipped)

    def next_epoch(self) -> Self:
        """At the begin of the next epoch."""
        return replace(self, epoch=self.epoch + 1, inside=0)
