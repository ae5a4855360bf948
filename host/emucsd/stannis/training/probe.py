"""How long a step takes on this engine, how much memory it needs, and which batch does not fit.

    probe = Probe(spec, memory_bytes=6_000_000_000)
    probe(16)               # Measured(batch=16, seconds=5.2, memory_bytes=610_000_000)
    probe(4096)             # MemoryExceeded, before anything was allocated for it

A step is a real one: the run's model, loss and optimizer, forward, backward and update, on generated images.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Self

import numpy as np
import torch

from emucsd.stannis.errors import DoesNotFit, FactoryFailed, MemoryExceeded
from emucsd.stannis.plan.measured import Measured
from emucsd.stannis.spec import Spec
from emucsd.stannis.training import memory
from emucsd.stannis.training.collective import Alone
from emucsd.stannis.training.factory import build_model, is_memory
from emucsd.stannis.training.step import Stepper

READY_BATCHES = 3  # a loader has so many in memory beside the one that is trained on
_GROWTH = 4  # from a batch that was measured to the next, while memory is limited
_MARGIN = 1.05  # predictions are believed up to a twentieth


@dataclass(frozen=True)
class _Point:
    """A batch that was run, and the process's peak with it."""

    batch: int
    peak: int


class Probe:
    """A benchmark of one run on this engine: calling it with a batch is the tuner's ``Bench``.

    Memory is found out from below. Small batches are measured, the line through them tells what the next one needs, and
    what would pass the limit is refused before it is tried. Should a prediction be wrong, the kernel refuses the
    allocation (RLIMIT_DATA) and the process lives on.

    :param memory_bytes: this process's limit; None: what system and control group leave
    :param steps: are timed after one that is not; the median counts
    :param seconds: no further step is begun once so much time was spent on a batch
    :param least: seconds that steps are timed for at least; then the mean counts. Of an engine that is held to a share
        of its processor, single steps are fast or wait for their turn, and only many of them tell its speed
    :raises FactoryFailed: model, loss or optimizer can't be made
    :raises DoesNotFit: not even the model fits
    """

    def __init__(
        self, spec: Spec, *, memory_bytes: int | None = None, steps: int = 3, seconds: float = 30.0, least: float = 0.0
    ) -> None:
        self.spec = replace(spec, sync_batchnorm=False)  # alone there is nobody to synchronise with
        self.limit = memory_bytes if memory_bytes is not None else memory.available()
        self.steps, self.seconds, self.least = steps, seconds, least
        self._points: dict[int, _Point] = {}
        memory.release()
        now = memory.status()
        # private memory that is reserved but never touched (stacks, arenas) does not count against the limit
        self._ceiling = self.limit + max(now["VmData"] - now["VmRSS"], 0)
        self._begun = now["VmRSS"]
        try:
            with memory.ceiling(self._ceiling):
                model = build_model(self.spec)
                self._stepper = Stepper(self.spec, model, Alone(), on_nonfinite="skip")
        except (MemoryExceeded, MemoryError, RuntimeError) as problem:
            if isinstance(problem, MemoryExceeded) or is_memory(problem):  # of the model, or of its gradients
                raise DoesNotFit(self._text("the model itself", 0, 0), 0, 0, self.limit) from None
            raise
        self._model = memory.resident()
        if self._model > self.limit:
            raise DoesNotFit(self._text("the model itself", 0, self._model), 0, self._model, self.limit)

    def __call__(self, batch: int) -> Measured:
        """Measure a batch.

        :raises MemoryExceeded: it passes the limit; ``needed`` and ``missing`` say by how much. ``DoesNotFit`` if the
            smallest batch does
        :raises FactoryFailed: the model raised, on images of the run's shape
        """
        if batch < 1:
            raise FactoryFailed(f"a batch of {batch}: at least 1")
        self._grow(batch)
        begun = time.perf_counter()
        peak, times = 0, list[float]()
        batches = self._batches(batch, batch)
        with memory.Peak() as seen:
            while len(times) <= self.steps or sum(times[1:]) < self.least:
                times.append(self._step(batches, batch))
                if time.perf_counter() - begun > self.seconds and len(times) > 1:
                    break
        peak = seen.bytes
        del batches
        self._points[batch] = _Point(batch, peak)
        memory.release()
        middle = statistics.fmean if self.least else statistics.median
        return Measured(batch, middle(times[1:] or times), peak)

    def close(self) -> None:
        """Give the model's memory back."""
        self._stepper.gradients.close()
        del self._stepper
        memory.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _grow(self, batch: int) -> None:
        """Run larger and larger batches below this one, until it is near enough to be predicted; refuse it if it is
        predicted to pass the limit."""
        while True:
            below = [b for b in self._points if b <= batch]
            if not below:
                size = min(batch, 2)  # one sample has no variance: a batch norm may refuse it
                self._step(self._batches(size, batch), batch)  # libraries and optimizer take once what they keep
                memory.release()
                self._model = memory.resident()
            else:
                size = min(batch, max(below) * _GROWTH)
                needed = self._predict(size)
                if needed > self.limit:
                    needed = max(self._predict(batch), needed)
                    raise MemoryExceeded(self._text("", batch, needed), batch, needed, self.limit)
                if size == batch:
                    return
            with memory.Peak() as peak:
                self._step(self._batches(size, batch), batch)
            self._points[size] = _Point(size, peak.bytes)
            memory.release()
            if size == batch:
                return

    def _predict(self, batch: int) -> int:
        """The process's peak with a batch, by the steepest line to the largest that was measured."""
        known = sorted(self._points.values(), key=lambda point: point.batch)
        if batch <= known[-1].batch:
            return min(point.peak for point in known if point.batch >= batch)
        *before, last = known
        # a near neighbour's difference would be noise for the most part
        far = [point for point in before if point.batch <= last.batch // 2] or [_Point(0, self._model)]
        slope = max((last.peak - point.peak) / (last.batch - point.batch) for point in far)
        return int(last.peak + _MARGIN * max(slope, 0.0) * (batch - last.batch))

    def _batches(self, batch: int, asked: int) -> list[SimpleNamespace]:
        """What a loader would have in memory.

        :param asked: the batch on whose way this one is
        """
        chance = np.random.default_rng(self.spec.seed)
        try:
            with memory.ceiling(self._ceiling):
                return [
                    SimpleNamespace(
                        images=torch.from_numpy(chance.standard_normal((batch, *self.spec.image), np.float32)),
                        labels=torch.zeros(batch, dtype=torch.int64),
                    )
                    for _ in range(READY_BATCHES + 1)
                ]
        except (MemoryError, RuntimeError):
            raise self._refused(asked) from None

    def _step(self, batches: list[SimpleNamespace], asked: int) -> float:
        """Seconds of a step; weights stay, for the learning rate is 0."""
        batches.append(batches.pop(0))
        try:
            with memory.ceiling(self._ceiling):
                return self._stepper.take(batches[0], lr=0.0).compute
        except MemoryExceeded:
            raise self._refused(asked) from None

    def _refused(self, asked: int) -> MemoryExceeded:
        """The kernel said no, though the prediction did not: the limit is too low by an amount that nobody knows."""
        memory.release(cycles=True)
        if not self._points:
            return DoesNotFit(self._text("the smallest batch", asked, 0), asked, 0, self.limit)
        needed = self._predict(asked)
        if needed <= self.limit:
            needed = 0
        return MemoryExceeded(self._text("", asked, needed), asked, needed, self.limit)

    def _text(self, what: str, batch: int, needed: int) -> str:
        what = what or f"a batch of {batch}"
        short = f"{needed} bytes, {needed - self.limit} too many" if needed else "more memory than there is"
        return (
            f"{self.spec.factory}: {what} needs {short}; the limit is {self.limit} bytes, of which Python and torch "
            f"take {self._begun}. Take a smaller batch, a smaller model, or leave this engine out"
        )
