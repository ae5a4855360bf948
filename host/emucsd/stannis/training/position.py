"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from emucsd.stannis.plan.plan import Plan


@dataclass(frozen=True)
class Position:
    """A step boundary.

    :ivar step: steps taken in all
    :ivar epoch: from 0
    :ivar inside: steps of this epoch that were taken under the plan that holds
    :ivar skipped: of all steps, those that taught nothing
    :ivar fruitless: steps that taught nothing one after the other, up to here
    """

    step: int = 0
    epoch: int = 0
    inside: int = 0
    skipped: int = 0
    fruitless: int = 0

    def under(self, old: Plan, new: Plan) -> Self:
        """The same place under another plan: at the begin of what that one deals out of this epoch; a plan that was
        not made for the middle of this epoch goes on where the same share of it lies behind."""
        if new.rest_of(self.epoch) is not None:
            return self if new == old else replace(self, inside=0)
        steps = new.steps_in(self.epoch)
        share = self.inside / max(old.steps_in(self.epoch), 1)
        return replace(self, inside=min(round(share * steps), steps - 1) if self.inside else 0)

    def after(self, *, skipped: bool) -> Self:
        """One step further."""
        return replace(
            self,
            step=self.step + 1,
            inside=self.inside + 1,
            skipped=self.skipped + skipped,
            fruitless=self.fruitless + 1 if skipped else 0,
        )

    def next_epoch(self) -> Self:
        """At the begin of the next epoch."""
        return replace(self, epoch=self.epoch + 1, inside=0)
