"""Loss and accuracy on a test set, split over the ranks or on one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from emucsd.stannis.training.collective import Collective
from emucsd.stannis.training.factory import blamed, main_output


class Batch(Protocol):
    """Samples of one step; an array of NumPy's or a tensor.

    :ivar images: FP32 [n, C, H, W]
    :ivar labels: INT64 [n]
    """

    @property
    def images(self) -> Any: ...

    @property
    def labels(self) -> Any: ...


@dataclass(frozen=True)
class Evaluation:
    """:ivar loss: mean over the samples
    :ivar accuracy: 0 .. 1
    """

    samples: int
    loss: float
    accuracy: float
    seconds: float


def part(count: int, rank: int, size: int) -> range:
    """The rank's indices of ``count`` test samples: every ``size``-th, so that a sorted set is mixed."""
    return range(rank, count, size)


def evaluate(
    model: torch.nn.Module,
    loss: Callable[[Any, torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    group: Collective,
    *,
    private: bool = False,
) -> Evaluation:
    """Evaluate on all ranks' batches together; every rank calls it, also one that has none.

    :param loss: (outputs, labels) -> mean over the batch
    :param private: the text of the model's exceptions is kept back
    :raises ModelFailed: the model or its loss raised
    :raises PeerLost: a rank is gone
    """
    begun = time.perf_counter()
    sums = torch.zeros(3, dtype=torch.float64)  # samples, loss, correct
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), blamed("evaluation", private=private):
            for batch in batches:
                images, labels = torch.as_tensor(batch.images), torch.as_tensor(batch.labels)
                outputs = model(images)
                sums[0] += len(labels)
                sums[1] += float(loss(outputs, labels)) * len(labels)
                sums[2] += correct(outputs, labels)
    finally:
        model.train(was_training)
    group.all_reduce(sums)
    samples = int(sums[0])
    return Evaluation(
        samples=samples,
        loss=float(sums[1]) / max(samples, 1),
        accuracy=float(sums[2]) / max(samples, 1),
        seconds=time.perf_counter() - begun,
    )


def correct(outputs: Any, labels: torch.Tensor) -> int:
    """Samples whose largest output is the label's; 0 where outputs are no classes."""
    scores = main_output(outputs)
    if scores.dim() != 2 or labels.dim() != 1:
        return 0
    return int((scores.argmax(1) == labels).sum())
