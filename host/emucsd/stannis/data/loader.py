"""The loader: a thread that reads and decodes ahead, and batches in the plan's order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from emucsd.stannis.data.errors import DataFormat, Lost, ShardDamaged, ShardMissing, about
from emucsd.stannis.data.source import Payload, Source, classes_of
from emucsd.stannis.data.transform import Function, Transform, pool_key

Policy = Literal["fail", "skip"]
_JOIN_SECONDS = 10.0


class Batch(NamedTuple):
    """One step's samples of one rank; there may be none.

    :ivar images: f32[n, C, H, W], normalised
    :ivar labels: i64[n], indices into the run's class list
    :ivar wanted: samples that the order had for this step: ``n`` plus those that were skipped
    :ivar seconds: that the loader's thread read and decoded for it
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    wanted: int
    seconds: float

    @property
    def skipped(self) -> int:
        """Samples that could not be had."""
        return self.wanted - len(self.labels)

    def tensors(self) -> tuple[Any, Any]:
        """Images and labels as torch tensors, in the same memory."""
        import torch

        return torch.from_numpy(self.images), torch.from_numpy(self.labels)


class Loader:
    """Batches of an order; iterate it once, and close it (a ``with`` does). The sources stay open.

    :param sources: by the pool's name
    :param order: (pool, index) of each step's samples; may be without end
    :param transform: ``standard``, ``flip``, ``none``, a name or a function: ``transform.Transform``
    :param seed: of augmentation, with ``epoch``
    :param prefetch: batches that are ready, at most, before one is asked for; one more is in the making
    :param image: (C, H, W)
    :param classes: the run's class list; None: all classes of these sources, in order
    :param policy: ``fail``: a sample that can't be had ends the run; ``skip``: it is left out and counted
    :param mean, std: of normalisation, per channel
    :ivar skipped: samples left out so far, by pool; ``first_error`` is the first of them
    :ivar seconds: that the thread has read and decoded so far; ``waited``: that the consumer waited for it
    :raises DataFormat: a pool has a class that ``classes`` lacks
    :raises FactoryFailed: there is no such transform
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        order: Iterable[Sequence[tuple[str, int]]],
        transform: str | Function = "standard",
        seed: int = 0,
        prefetch: int = 2,
        *,
        image: tuple[int, int, int],
        epoch: int = 0,
        classes: Sequence[str] | None = None,
        policy: Policy = "fail",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        if policy not in ("fail", "skip") or prefetch < 1:
            raise DataFormat(f"policy {policy!r}, prefetch {prefetch}: 'fail' or 'skip', and at least 1")
        self.classes = tuple(classes) if classes is not None else classes_of(list(sources.values()))
        self.image, self.seed, self.epoch, self.policy = image, seed, epoch, policy
        self.skipped: dict[str, int] = dict.fromkeys(sources, 0)
        self.first_error: Lost | None = None
        self.seconds = self.waited = 0.0
        self._sources, self._order, self._prefetch = dict(sources), order, prefetch
        self._transform = Transform(transform, image, mean, std)
        self._labels = {name: labels_in(self.classes, name, source) for name, source in sources.items()}
        self._keys = {name: pool_key(name) for name in sources}
        self._ready: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._stopped = self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    # -- the consumer ------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next step's batch.

        :raises ShardMissing, ShardDamaged: policy ``fail``, at the step that needs the sample
        :raises DriveGone, FactoryFailed, DecoderMissing, DataFormat: under either policy
        """
        began = time.monotonic()
        with self._changed:
            while not self._ready and not self._ended and not self._stopped:
                self._changed.wait()
            self.waited += time.monotonic() - began
            if self._stopped or not self._ready:
                failure, self._failure = self._failure, None
                if failure is not None:
                    raise failure
                raise StopIteration
            batch = self._ready.popleft()
            self._changed.notify_all()
            return batch

    def close(self) -> None:
        """End the thread: it finishes the sample that it is at. Harmless when repeated, and while another thread waits
        for a batch, which then ends."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for wanted in self._order:
                batch = self._make(wanted)
                with self._changed:
                    while len(self._ready) >= self._prefetch and not self._stopped:
                        self._changed.wait()
                    if self._stopped or batch is None:
                        return
                    self._ready.append(batch)
                    self._changed.notify_all()
        except BaseException as problem:  # handed to the consumer, at its place among the batches
            self._failure = problem
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _make(self, wanted: Sequence[tuple[str, int]]) -> Batch | None:
        """:returns: None when stopped in between"""
        began = time.monotonic()
        images = np.zeros((len(wanted), *self.image), np.float32)
        labels = np.zeros(len(wanted), np.int64)
        count = 0
        for place, payload in enumerate(self._read(wanted)):
            if self._stopped:
                return None
            pool, index = wanted[place]
            if self._put(payload, images[count], pool, index):
                labels[count] = self._labels[pool][self._sources[pool].labels[index]]
                count += 1
        seconds = time.monotonic() - began
        self.seconds += seconds
        return Batch(images[:count], labels[:count], len(wanted), seconds)

    def _read(self, wanted: Sequence[tuple[str, int]]) -> list[Payload | Lost]:
        """Payloads in the order wanted; each pool is asked once, so that it can read neighbours together."""
        places: dict[str, list[int]] = {}
        for place, (pool, _) in enumerate(wanted):
            places.setdefault(pool, []).append(place)
        found: list[Payload | Lost] = [b""] * len(wanted)
        for pool, some in places.items():
            source = self._sources.get(pool)
            if source is None:
                raise DataFormat(f"the order has pool {pool!r}; this loader has {', '.join(self._sources)}")
            for place, payload in zip(some, source.samples([wanted[place][1] for place in some]), strict=True):
                found[place] = payload
        return found

    def _put(self, payload: Payload | Lost, out: NDArray[np.float32], pool: str, index: int) -> bool:
        """Decode one. :returns: False when it was skipped"""
        source, where = self._sources[pool], ""
        problem = payload if isinstance(payload, Lost) else None
        if not isinstance(payload, Lost):
            try:
                self._transform(payload, out, self.seed, self.epoch, self._keys[pool], index, source.private)
            except (ShardMissing, ShardDamaged) as found:
                problem, where = found, source.where(index)
        if problem is None:
            return True
        told = about(problem, pool, index, where)
        if self.policy == "fail":
            raise told
        out[...] = 0
        self.skipped[pool] += 1
        self.first_error = self.first_error or told
        return False


def labels_in(classes: Sequence[str], pool: str, source: Source) -> NDArray[np.int64]:
    """For each label of a source, the label in a class list. :raises DataFormat: it lacks one"""
    place = {name: index for index, name in enumerate(classes)}
    lacking = [name for name in source.classes if name not in place]
    if lacking:
        raise DataFormat(
            f"pool {pool!r} has the class {lacking[0]!r} ({len(lacking)} such), and the run's {len(classes)} classes "
            "lack it; inspect all pools before the run and give the union of their classes"
        )
    return np.array([place[name] for name in source.classes], np.int64)
