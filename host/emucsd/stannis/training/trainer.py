"""Training on one rank: epochs, checkpoints, and what else happens between steps.

    trainer = Trainer(spec, build_model(spec), Alone(), plan, loaders)
    trainer.run()

All ranks take the same steps with the same numbers, so that every decision between two steps (an end, a pause, other
batches) falls on all of them alike, without a message of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch

from emucsd.stannis.errors import CheckpointFull, CheckpointMismatch, DataError, NonFinite, PlanError
from emucsd.stannis.plan.plan import Plan
from emucsd.stannis.spec import Spec
from emucsd.stannis.training import batchnorm, share
from emucsd.stannis.training.collective import Collective
from emucsd.stannis.training.evaluate import Batch, Evaluation, evaluate
from emucsd.stannis.training.gradients import BUCKET_BYTES, Flag
from emucsd.stannis.training.position import Position
from emucsd.stannis.training.report import CheckpointReport, Ended, EpochReport, PlanReport, StepReport, Tally
from emucsd.stannis.training.schedule import learning_rate
from emucsd.stannis.training.step import Stepper, Taken

STATE_VERSION = 1
FRUITLESS_MAX = 20  # skipped steps in a row: by then it is the weights that are not finite, or the rate is hopeless


class Loaders(Protocol):
    """Makes the iterable of this rank's batches for the rest of an epoch."""

    def __call__(self, plan: Plan, rank: int, epoch: int, first_step: int) -> Iterable[Batch]:
        """Give one batch for each of ``plan.steps_in(epoch) - first_step`` steps; some may be empty.

        Where it has ``close()``, that is called when no more are wanted.
        """


class Keeper(Protocol):
    """Where checkpoints go: ``checkpoint.Folder`` or ``checkpoint.Slots``."""

    def save(self, state: dict[str, Any]) -> CheckpointReport:
        """:raises CheckpointFull: there is no room; the one before it is whole"""


class Retuner(Protocol):
    """Decides on other batches, from nothing but what all ranks know alike."""

    def observe(self, plan: Plan, epoch: int, step: int, seconds: tuple[float, ...]) -> Plan | None:
        """After a step: another plan from the next step on, or None.

        :param step: of this epoch, under this plan, were taken
        :param seconds: each rank's, loading and computing
        """


def _nothing(_: Any) -> None:
    """The hook of nobody."""


@dataclass
class Hooks:
    """Whom to tell. Called between steps, on the thread that trains; what they raise ends ``run`` there."""

    step: Callable[[StepReport], None] = _nothing
    epoch: Callable[[EpochReport], None] = _nothing
    checkpoint: Callable[[CheckpointReport], None] = _nothing
    plan: Callable[[PlanReport], None] = _nothing


class Trainer:
    """One rank's training of one model.

    :param model: FP32 parameters on the CPU. With ``spec.sync_batchnorm`` its batch norms are replaced
    :param group: all ranks; this one's number is ``group.rank``, its part ``plan.shares[rank]``
    :param loaders: makes the batches of an epoch
    :param tests: (rank, size) -> this rank's part of the test set; None: no evaluation
    :param keeper: where this rank keeps checkpoints; None: it keeps none (others may)
    :param retuner: asked after each step, where ``spec.retune``
    :param on_nonfinite: a step with an infinite or NaN gradient ends the run (``fail``), or is counted and teaches
        nothing (``skip``); 20 of these in a row end it too
    :param bucket_bytes: a transfer's size
    :raises FactoryFailed: the run's loss or optimizer can't be made
    :raises ParameterRefused, BatchNormRefused: the model can't be trained this way
    :raises PlanError: the plan has another number of ranks than the group
    """

    def __init__(
        self,
        spec: Spec,
        model: torch.nn.Module,
        group: Collective,
        plan: Plan,
        loaders: Loaders,
        *,
        hooks: Hooks | None = None,
        tests: Callable[[int, int], Iterable[Batch]] | None = None,
        keeper: Keeper | None = None,
        retuner: Retuner | None = None,
        on_nonfinite: Literal["fail", "skip"] = "fail",
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.spec, self.group, self.plan, self.loaders = spec, group, plan, loaders
        self.hooks, self.tests, self.keeper, self.retuner = hooks or Hooks(), tests, keeper, retuner
        _check(plan, group)
        self._stepper = Stepper(spec, model, group, on_nonfinite=on_nonfinite, bucket_bytes=bucket_bytes)
        self.at = Position()
        self._tally = Tally()
        self._asked: set[Flag] = set()
        self._lock = threading.Lock()
        self._loader: Iterable[Batch] | None = None
        self._batches: Iterator[Batch] | None = None
        self._since_average = 0
        self._kept = -1
        self._joined = False

    @property
    def model(self) -> torch.nn.Module:
        """The model that is trained."""
        return self._stepper.model

    @property
    def private(self) -> bool:
        """Whether this rank trains on samples that must not be told of."""
        quota = self.plan.shares[self.group.rank].quota
        return any(pool.private and quota.get(pool.name) for pool in self.plan.pools)

    @property
    def length(self) -> float:
        """The run's length in epochs."""
        whole = float(self.spec.epochs)
        return min(whole, self.spec.steps / self.plan.steps) if self.spec.steps else whole

    @property
    def _steps(self) -> int:
        """Of this epoch, under the plan that holds."""
        return self.plan.steps_in(self.at.epoch)

    @property
    def done(self) -> bool:
        """Nothing is left to train."""
        return self.at.epoch >= self.spec.epochs or bool(self.spec.steps and self.at.step >= self.spec.steps)

    def ask(self, flag: Flag) -> None:
        """From any thread: have all ranks pause, stop, or leave ``run`` to tune anew, after the same step."""
        with self._lock:
            self._asked.add(flag)

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, until: int | None = None) -> Ended:
        """Train until the end, or what comes first. Every rank calls it, with the same ``until``.

        :param until: return once so many steps were taken in all
        :raises PeerLost: a rank is gone: ``regroup`` and run again. After this as after any other error the state is
            that of the last step boundary
        :raises ModelFailed, MemoryExceeded: the user's code raised
        :raises NonFinite: a gradient is infinite or NaN, and ``on_nonfinite`` is ``fail``; or again and again
        :raises DataError: the loader's
        :raises LayoutDiffers: ranks have different models
        """
        try:
            self._join()
            while not self.done:
                if until is not None and self.at.step >= until:
                    return Ended.UNTIL
                if self.at.inside >= self._steps:
                    self._end_epoch()  # another plan came after the last step
                elif (ended := self._step()) is not None:
                    return ended
        except BaseException:
            self._close_loader()
            raise
        self._close_loader()
        return Ended.DONE

    def _join(self) -> None:
        """Once a group: the same model everywhere, and the newest state of all."""
        if not self._joined:
            self._stepper.gradients.agree(self.group)
            share.newest(self.group, self.at.step, self.state, self.load_state)
            self._joined = True

    def _step(self) -> Ended | None:
        begun = time.perf_counter()
        batch = self._next()
        load = time.perf_counter() - begun
        with self._lock:
            asked = frozenset(self._asked)
        progress = self.plan.progress(self.at.epoch, self.at.inside)
        lr = learning_rate(self.spec, self.plan.global_batch, progress, self.length)
        # no two ranks or steps draw the same dropout, and a resumed step draws what it would have drawn
        seed = (self.spec.seed, self.at.epoch, self.at.step, self.group.rank)
        try:
            taken = self._stepper.take(batch, lr=lr, seed=seed, load=load, asked=asked, private=self.private)
        except NonFinite as problem:
            problem.step = self.at.inside
            raise
        with self._lock:
            self._asked -= asked
        self.at = self.at.after(skipped=taken.skipped)
        if self.at.fruitless >= FRUITLESS_MAX:
            raise self._stepper.gradients.blame(taken.totals, f"{FRUITLESS_MAX} steps in a row taught nothing: ")
        self._count(taken, time.perf_counter() - begun)
        self.hooks.step(self._report(taken, lr, load, getattr(batch, "skipped", 0)))
        return self._between(taken)

    def _between(self, taken: Taken) -> Ended | None:
        """What a step boundary brings: all of it decided by numbers that all ranks have alike."""
        flags = taken.totals.flags
        if self.at.inside >= self._steps or self.done:
            self._end_epoch()
        elif self.spec.checkpoint_every and self.at.step % self.spec.checkpoint_every == 0:
            self._keep()
        if self.done:
            return None
        if self.spec.retune and self.retuner:
            plan = self.retuner.observe(self.plan, self.at.epoch, self.at.inside, taken.totals.seconds)
            if plan is not None:
                self.adopt(plan)
        if Flag.STOP in flags:
            self._keep()
            return Ended.STOPPED
        if Flag.PAUSE in flags:
            return Ended.PAUSED
        return Ended.RETUNE if Flag.RETUNE in flags else None

    def _end_epoch(self) -> None:
        self._close_loader()
        tally, epoch = self._tally, self.at.epoch
        if self.at.inside >= self._steps:  # else spec.steps ended the run in its middle
            self.at, self._tally = self.at.next_epoch(), Tally()
        self._keep()
        every = self.spec.evaluate_every
        due = self.done or bool(every and (epoch + 1) % every == 0)
        found = self.evaluate(self.tests(self.group.rank, self.group.size)) if self.tests and due else None
        samples = max(tally.samples, 1)
        self.hooks.epoch(
            EpochReport(
                epoch=epoch,
                steps=tally.steps,
                samples=tally.samples,
                loss=tally.loss_sum / samples,
                accuracy=tally.correct / samples,
                seconds=tally.seconds,
                skipped=tally.skipped,
                evaluation=found,
            )
        )

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """Loss and accuracy over all ranks' batches together. Every rank calls it at the same step, with its part.

        Where batch norm is not synchronised, running statistics become their mean over the ranks first.
        """
        self._average()
        return evaluate(self.model, self._stepper.loss, batches, self.group, private=self.private)

    # -- other plans, other groups -----------------------------------------------------------------------------------

    def adopt(self, plan: Plan) -> None:
        """Follow another plan from here on; every rank, between the same two steps.

        A plan with a ``rest`` for this epoch deals out what is left of it, so that each sample still comes once. With
        any other, the epoch goes on where the same share of it lies behind.

        :raises PlanError: it has another number of ranks than the group
        """
        _check(plan, self.group)
        self._close_loader()
        self.plan, self.at = plan, self.at.under(self.plan, plan)
        self.hooks.plan(PlanReport(self.at.step, plan, plan.why))

    def regroup(self, group: Collective, plan: Plan) -> None:
        """Go on with other ranks. ``run`` then gives all of them the newest state that any has.

        :raises PlanError: the plan has another number of ranks than the group
        """
        _check(plan, group)
        self.group = group
        self._stepper.regroup(group)
        self._joined = False
        self.adopt(plan)

    # -- state -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that training goes on from: tensors (not copied), numbers and strings. Between steps alone."""
        return {
            "version": STATE_VERSION,
            "spec": self.spec.to_json(),
            "plan": self.plan.to_json(),
            "at": asdict(self.at),
            "tally": asdict(self._tally),
            "model": self.model.state_dict(),
            "optimizer": self._stepper.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; the plan stays this trainer's own.

        :raises CheckpointMismatch: it is of another model or optimizer, or of another release
        """
        if state.get("version") != STATE_VERSION:
            raise CheckpointMismatch(f"a state of version {state.get('version')!r}; this release has {STATE_VERSION}")
        try:
            self.model.load_state_dict(state["model"])
            self._stepper.optimizer.load_state_dict(state["optimizer"])
            at, tally = Position(**state["at"]), Tally(**state["tally"])
            plan = Plan.from_json(state["plan"])
        except (KeyError, TypeError, ValueError, RuntimeError) as problem:
            raise CheckpointMismatch(f"the state is of another model or optimizer: {problem}") from problem
        self._close_loader()
        self.at, self._tally = at.under(plan, self.plan), tally

    def _keep(self) -> None:
        """A checkpoint, on those ranks that keep any; no room for it is told, and ends nothing."""
        if self._kept == self.at.step:
            return
        self._kept = self.at.step
        self._average()
        if self.keeper is None:
            return
        begun = time.perf_counter()
        try:
            self.hooks.checkpoint(self.keeper.save(self.state()))
        except CheckpointFull as problem:
            seconds = time.perf_counter() - begun
            self.hooks.checkpoint(CheckpointReport(self.at.step, "", problem.needed, seconds, str(problem)))

    def _average(self) -> None:
        batchnorm.average_statistics(self.model, self.group, self._since_average)
        self._since_average = 0

    # -- inside ------------------------------------------------------------------------------------------------------

    def _next(self) -> Batch:
        if self._batches is None:
            self._loader = self.loaders(self.plan, self.group.rank, self.at.epoch, self.at.inside)
            self._batches = iter(self._loader)
        try:
            return next(self._batches)
        except StopIteration:
            raise DataError(
                f"the loader of rank {self.group.rank} ended before step {self.at.inside + 1} of {self._steps}; it "
                "must give a batch for each, if need be an empty one"
            ) from None

    def _close_loader(self) -> None:
        loader, self._loader, self._batches = self._loader, None, None
        close = getattr(loader, "close", None)
        if close is not None:
            close()

    def _count(self, taken: Taken, seconds: float) -> None:
        tally, totals = self._tally, taken.totals
        self._since_average += taken.samples
        tally.steps += 1
        tally.seconds += seconds
        tally.skipped += taken.skipped
        if not taken.skipped:
            tally.samples += totals.samples
            tally.loss_sum += totals.loss_sum
            tally.correct += totals.correct

    def _report(self, taken: Taken, lr: float, load: float, left_out: int) -> StepReport:
        totals = taken.totals
        samples = max(totals.samples, 1)
        return StepReport(
            step=self.at.step,
            epoch=self.at.epoch,
            samples=taken.samples,
            global_samples=totals.samples,
            loss=totals.loss_sum / samples,
            accuracy=totals.correct / samples,
            lr=lr,
            seconds_load=load,
            seconds_compute=taken.compute,
            seconds_wait=taken.wait,
            seconds_transfer=taken.transfer,
            seconds=totals.seconds,
            skipped=taken.skipped,
            left_out=left_out,
            generation=self.plan.generation,
        )


def _check(plan: Plan, group: Collective) -> None:
    if plan.world != group.size:
        raise PlanError(f"a plan of {plan.world} ranks for a group of {group.size}; plan anew for this group")
