"""One step: forward, backward, the addition over all ranks, and the optimizer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from emucsd.stannis.spec import Spec
from emucsd.stannis.training import batchnorm
from emucsd.stannis.training.buffers import Buffers
from emucsd.stannis.training.collective import Collective, Metered
from emucsd.stannis.training.errors import ModelFailed
from emucsd.stannis.training.evaluate import Batch, correct
from emucsd.stannis.training.factory import blamed, build_loss, build_optimizer, main_output, seed_all
from emucsd.stannis.training.gradients import BUCKET_BYTES, Flag, Gradients, Part, Totals


@dataclass(frozen=True)
class Taken:
    """How a step went.

    :ivar samples: own
    :ivar totals: over all ranks
    :ivar compute: own seconds of forward, backward and optimizer
    :ivar wait: own seconds in additions until the slowest rank was there; ``transfer`` those beyond
    :ivar skipped: nothing was learned
    """

    samples: int
    totals: Totals
    compute: float
    wait: float
    transfer: float
    skipped: bool


class Stepper:
    """A model with all that moves it.

    :param on_nonfinite: ``fail``: a gradient that is not finite raises; ``skip``: the step teaches nothing
    :raises FactoryFailed: the run's loss or optimizer can't be made
    :raises ParameterRefused, BatchNormRefused: the model can't be trained this way
    """

    def __init__(
        self,
        spec: Spec,
        model: torch.nn.Module,
        group: Collective,
        *,
        on_nonfinite: Literal["fail", "skip"] = "fail",
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.spec = spec
        self.bucket_bytes = bucket_bytes
        self.on_nonfinite = on_nonfinite
        self.bond = batchnorm.Bond(group)
        self.model = batchnorm.convert(model, self.bond) if spec.sync_batchnorm else model
        self.model.train()
        self.loss = build_loss(spec)
        self.optimizer = build_optimizer(spec, self.model)
        # groups of a user's optimizer keep the ratio that they were made with
        self._ratios = [g["lr"] / spec.lr if spec.lr else 1.0 for g in self.optimizer.param_groups]
        self._buffers = Buffers(self.model)
        self._update_seconds = 0.0
        self._attach(group)

    def _attach(self, group: Collective) -> None:
        self.group = Metered(group)
        self.bond.group = self.group
        # with synchronised batch norm, additions inside of backward would meet gradients already under way
        overlap = not batchnorm.synchronised(self.model)
        self.gradients = Gradients(self.model, group.size, bucket_bytes=self.bucket_bytes, overlap=overlap)

    def regroup(self, group: Collective) -> None:
        """Other ranks, or another number of them."""
        self.gradients.close()
        self._attach(group)

    def take(
        self,
        batch: Batch,
        *,
        lr: float,
        seed: tuple[int, ...] = (0,),
        load: float = 0.0,
        asked: frozenset[Flag] = frozenset(),
        private: bool = False,
    ) -> Taken:
        """Take a step with all other ranks. After any error the model is as before it.

        :param seed: of dropout and other chance in the model
        :param load: seconds that this rank took to get the batch
        :param private: the text of the model's exceptions is kept back
        :raises ModelFailed, MemoryExceeded, NonFinite, PeerLost: as named
        """
        self._buffers.keep()
        self.group.take()
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = lr * ratio
        begun = time.perf_counter()
        try:
            samples, loss_sum, right = self._compute(batch, seed, private)
            computed = time.perf_counter()
            inside = self.group.take()
            # the last step's optimizer stands for this one's, which nobody has run yet
            own = load + computed - begun - inside + self._update_seconds
            totals, finite = self.gradients.reduce(Part(samples, loss_sum, right, own, asked))
            adding = time.perf_counter() - computed + inside
            updating = time.perf_counter()
            skipped = self._refuse(totals) if not finite else self._update(private)
        except BaseException:
            self.gradients.abandon()
            self._buffers.restore()
            raise
        self._update_seconds = time.perf_counter() - updating
        wait = min(max(max(totals.seconds) - own, 0.0), adding)
        compute = computed - begun - inside + self._update_seconds
        return Taken(samples, totals, compute, wait, adding - wait, skipped)

    def _compute(self, batch: Batch, seed: tuple[int, ...], private: bool) -> tuple[int, float, int]:
        """Gradients of this rank's samples, summed. :return: samples, sum of losses, correct"""
        images, labels = torch.as_tensor(batch.images), torch.as_tensor(batch.labels)
        samples = len(labels)
        self.gradients.begin(self.group)
        if not samples:
            if not batchnorm.synchronised(self.model):
                return 0, 0.0, 0
            images, labels = torch.zeros(1, *self.spec.image), torch.zeros(1, dtype=torch.int64)
        seed_all(*seed)
        self.bond.ghost = not samples
        with blamed("the model", private=private):
            outputs = self.model(images)
            _check_labels(outputs, labels)
            loss = self.loss(outputs, labels)
            (loss * samples).backward()  # the mean's gradient, times n: the sum's
        if not samples:
            return 0, 0.0, 0
        return samples, float(loss.detach()) * samples, correct(outputs, labels)

    def _update(self, private: bool) -> bool:
        with self.gradients.applied(), blamed("the optimizer", private=private):
            if self.spec.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.gradients.parameters, self.spec.clip)
            self.optimizer.step()
        return False

    def _refuse(self, totals: Totals) -> bool:
        if self.on_nonfinite == "fail":
            raise self.gradients.blame(totals)
        self._buffers.restore()  # statistics of a step that does not count
        return True


def _check_labels(outputs: Any, labels: torch.Tensor) -> None:
    """Before the loss says it, for what the loss says quotes the label."""
    scores = main_output(outputs)
    if isinstance(scores, torch.Tensor) and scores.dim() == 2 and not labels.is_floating_point() and len(labels):
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= scores.shape[1]:
            raise ModelFailed(
                f"the model tells {scores.shape[1]} classes apart and the data has more; give the factory the number "
                "of classes (num_classes, with most)"
            )
