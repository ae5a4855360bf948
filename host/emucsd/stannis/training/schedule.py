"""The learning rate of a step, from the run's description and the global batch alone.

Linear scaling and gradual warm-up after Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour"
(2017): a global batch ``k`` times the base batch takes ``k`` times the learning rate (section 2.1), reached from the
unscaled one in equal increments a step (section 2.2). Their momentum correction (section 3) is for updates that hold
the rate inside of the momentum; PyTorch's SGD does not.
"""

from __future__ import annotations

import math

from emucsd.stannis.spec import Spec


def scaled_lr(spec: Spec, global_batch: int) -> float:
    """The learning rate after warm-up and before decay: ``lr * global_batch / base_batch``."""
    return spec.lr * global_batch / spec.base_batch


def learning_rate(spec: Spec, global_batch: int, epoch: float, epochs: float) -> float:
    """The learning rate at a point of the run.

    :param global_batch: samples of a full step over all ranks, as planned; a short last step changes nothing
    :param epoch: where the step begins, in epochs from the run's begin: 2.5 is the middle of the third
    :param epochs: the run's length; where steps end it earlier, less than ``spec.epochs``
    """
    top = scaled_lr(spec, global_batch)
    if epoch < spec.warmup_epochs:
        # a global batch below the base batch has nothing to warm up to
        start = min(spec.lr, top)
        return start + (top - start) * epoch / spec.warmup_epochs
    if spec.decay == "milestones":
        return top * spec.gamma ** sum(epoch >= milestone for milestone in spec.milestones)
    if spec.decay == "cosine":  # Loshchilov and Hutter, SGDR (2016), equation 5, one period, down to 0
        length = max(epochs - spec.warmup_epochs, 1e-12)
        return top * 0.5 * (1 + math.cos(math.pi * min((epoch - spec.warmup_epochs) / length, 1.0)))
    return top
