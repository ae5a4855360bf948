"""The samples that lie at one node: opened once, read by every plan's loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from emucsd.stannis.data import source
from emucsd.stannis.data.loader import Batch, Loader
from emucsd.stannis.data.source import Source
from emucsd.stannis.plan.order import order
from emucsd.stannis.plan.plan import Plan
from emucsd.stannis.spec import Spec


class Samples:
    """Pools to train on, and pools to evaluate on.

    :ivar classes: of the run, in the order of labels; the coordinator says them once it knows all pools
    """

    def __init__(self, spec: Spec, node: str) -> None:
        self.spec, self.node = spec, node
        self.classes: tuple[str, ...] = ()
        self.readers: dict[str, list[str]] = {}
        self._pools: dict[str, Source] = {}
        self._tests: dict[str, Source] = {}

    def open(self, pools: Mapping[str, Any], tests: Mapping[str, Any]) -> dict[str, Any]:
        """Open what lies here and say what it is: counts, sizes and names of classes.

        :param pools: name -> location, private
        :raises DataError: as ``data.source.open``
        """
        return {"pools": self._open(self._pools, pools), "tests": self._open(self._tests, tests)}

    def _open(self, into: dict[str, Source], places: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, place in places.items():
            if name not in into:
                into[name] = source.open(place["location"], private=place["private"])
            one = into[name]
            found[name] = {
                "count": one.count,
                "classes": list(one.classes),
                "sample_bytes": round(int(one.sizes.sum()) / one.count) if one.count else 0,
                "digest": None if place["private"] else source.digest(one),
            }
        return found

    def close(self) -> None:
        """Let everything go."""
        for one in (*self._pools.values(), *self._tests.values()):
            one.close()
        self._pools, self._tests = {}, {}

    # -- what the trainer asks for

    def loader(self, plan: Plan, rank: int, epoch: int, first_step: int) -> Loader:
        """This rank's batches of the rest of an epoch. ``training.trainer.Loaders``."""
        return Loader(
            self._pools,
            order(plan, epoch, rank, first_step),
            self.spec.transform,
            self.spec.seed,
            image=self.spec.image,
            epoch=epoch,
            classes=self.classes,
            policy=self.spec.on_damage,
            mean=self.spec.mean or None,
            std=self.spec.std or None,
        )

    def test(self, plan: Plan) -> Iterator[Batch]:
        """This rank's part of the test set: each pool is dealt to those that can read it, in proportion to speed."""
        with Loader(
            self._tests,
            self._test_order(plan),
            "none",
            self.spec.seed,
            image=self.spec.image,
            classes=self.classes,
            mean=self.spec.mean or None,
            std=self.spec.std or None,
        ) as batches:
            yield from batches

    def _test_order(self, plan: Plan) -> Iterable[list[tuple[str, int]]]:
        batch = plan.share(self.node).batch
        for name, one in self._tests.items():
            ranks = [share for share in plan.shares if share.node in self.readers.get(name, [self.node])]
            ends = list(accumulate(share.rate or 1.0 for share in ranks))
            at = next(number for number, share in enumerate(ranks) if share.node == self.node)
            first, end = (round(one.count * (ends[n] if n >= 0 else 0.0) / ends[-1]) for n in (at - 1, at))
            for begin in range(first, end, batch):
                yield [(name, index) for index in range(begin, min(begin + batch, end))]

    @property
    def tested(self) -> bool:
        """Whether there is a test set at all, here or elsewhere: then every rank joins an evaluation."""
        return bool(self.readers)
