"""What a trainer tells while it runs. Values without "own" are over all ranks, and equal on each."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from emucsd.stannis.plan.plan import Plan
from emucsd.stannis.training.evaluate import Evaluation


class Ended(enum.Enum):
    """Why ``Trainer.run`` returned; the same on all ranks, after the same step."""

    DONE = "done"  # the last epoch, or spec.steps
    UNTIL = "until"  # the step that the caller gave
    PAUSED = "paused"  # somebody asked: call run() again to go on
    STOPPED = "stopped"  # somebody asked: a checkpoint was kept
    RETUNE = "retune"  # somebody asked: tune anew, then adopt() the plan and call run() again


@dataclass(frozen=True)
class StepReport:
    """One step.

    :ivar step: from 1, over the whole run
    :ivar epoch: from 0
    :ivar samples: own; ``global_samples`` of all ranks
    :ivar loss: mean over all ranks' samples; ``accuracy`` in 0 .. 1 likewise
    :ivar seconds_load: own: waiting for the next batch
    :ivar seconds_compute: own: forward, backward, optimizer
    :ivar seconds_wait: own: in additions, until the slowest rank was there
    :ivar seconds_transfer: own: in additions, beyond that
    :ivar seconds: load and compute by rank
    :ivar skipped: gradients were not finite, nothing was learned
    :ivar left_out: own samples that the loader could not have
    :ivar generation: the plan's
    """

    step: int
    epoch: int
    samples: int
    global_samples: int
    loss: float
    accuracy: float
    lr: float
    seconds_load: float
    seconds_compute: float
    seconds_wait: float
    seconds_transfer: float
    seconds: tuple[float, ...]
    skipped: bool
    left_out: int
    generation: int


@dataclass(frozen=True)
class EpochReport:
    """One epoch, as far as this run went through it (after a resume: its rest).

    :ivar loss: mean over the samples of its steps, each at its own weights
    :ivar skipped: steps that were not finite
    :ivar evaluation: on the test set, where there is one and its turn has come
    """

    epoch: int
    steps: int
    samples: int
    loss: float
    accuracy: float
    seconds: float
    skipped: int
    evaluation: Evaluation | None


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint was kept, or ``error`` says why not; the one before it is whole either way.

    :ivar where: file or disk
    """

    step: int
    where: str
    bytes: int
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class PlanReport:
    """From the next step on another plan holds: engines changed their speed, or ranks came or went."""

    step: int
    plan: Plan
    why: str


@dataclass
class Tally:
    """Sums over the steps of an epoch."""

    steps: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    skipped: int = 0
    seconds: float = 0.0
