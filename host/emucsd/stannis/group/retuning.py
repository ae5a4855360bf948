"""Between the trainer, which asks after each step, and the retuner, which decides."""

from __future__ import annotations

from emucsd.stannis.plan.order import sizes
from emucsd.stannis.plan.plan import Plan
from emucsd.stannis.plan.retune import Retuner, retuned


class Follower:
    """A ``training.trainer.Retuner``. Made anew with each group, on all ranks alike: one that came later must know no
    less than the others."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._retuner = plan, Retuner(plan)

    def observe(self, plan: Plan, epoch: int, step: int, seconds: tuple[float, ...]) -> Plan | None:
        """After a step of all ranks: another plan from the next step on, or None."""
        if plan is not self._plan:
            self._plan = plan
            self._retuner.follow(plan)
        if not 0 < step <= plan.steps_in(epoch):
            return None  # an epoch has just ended
        change = self._retuner.observe(seconds, sizes(plan, epoch, step - 1))
        return None if change is None else retuned(plan, change, epoch=epoch, step=step)
