"""One thing varied at a time: lookups a bag, samples a batch, locality, dies a channel; and the kernel search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emucsd.baselines import Baseline, EmbVectorSum, RecSsd, RmSsd, SsdS
from emucsd.reproduce.rm_ssd.points import Point
from emucsd.reproduce.rm_ssd.settings import LOCALITY, Settings
from emucsd.reproduce.rm_ssd.stand import Stand, measure, stand
from emucsd.rm.session import Session

Tell = Callable[[str, float], None]
RECSSD_WITH_CACHES = {  # cycles where loads and stores hit caches: docs/recssd.md
    "recssd.pair_cycles": 120,
    "recssd.vector_cycles": 60,
    "recssd.element_cycles": 16,
    "recssd.copy_cycles": 0,
}
RESOURCES = ("lut", "ff", "bram", "dsp")


@dataclass(frozen=True)
class Sweep:
    """:ivar name: what is varied
    :ivar points: (its value, the point)
    """

    name: str
    about: str
    points: Sequence[tuple[float, Point]]

    def of(self, baseline: str, model: str) -> list[Point]:
        """The points of one line, in order."""
        return [point for _, point in self.points if point.baseline == baseline and point.model == model]

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        points = [{self.name: value, **asdict(point)} for value, point in self.points]
        return {"about": self.about, "points": points}


def sweep_lookups(bench: Stand, settings: Settings, kinds: Sequence[type[Baseline]], tell: Tell) -> Sweep:
    """RMC1 with other bags."""
    points = []
    size = min(16, settings.sweep_samples)
    for turn, lookups in enumerate(settings.lookups):
        tell(f"{lookups} lookups a bag", turn / len(settings.lookups))
        model = bench.model("rmc1").with_lookups(lookups)
        batches = {size: -(-settings.sweep_samples // size)}
        trace = bench.trace(model, sum(n * count for n, count in batches.items()), LOCALITY)
        for kind in kinds:
            points += [(lookups, point) for point in measure(bench, kind, model, trace, batches)]
    return Sweep("lookups_a_bag", f"RMC1, batches of {size}, K = {LOCALITY}", points)


def sweep_batches(bench: Stand, settings: Settings, kinds: Sequence[type[Baseline]], tell: Tell) -> Sweep:
    """Samples a batch."""
    points = []
    steps = len(settings.sweep_models) * len(kinds)
    for number, name in enumerate(settings.sweep_models):
        model = bench.model(name)
        batches = {size: max(settings.sweep_samples // size, 2) for size in settings.sweep_batches}
        trace = bench.trace(model, sum(n * count for n, count in batches.items()), LOCALITY)
        for turn, kind in enumerate(kinds):
            tell(f"{name}, {kind.name}", (number * len(kinds) + turn) / steps)
            points += [(point.batch, point) for point in measure(bench, kind, model, trace, batches)]
    return Sweep("samples_a_batch", f"{' and '.join(settings.sweep_models).upper()}, K = {LOCALITY}", points)


def sweep_locality(bench: Stand, settings: Settings, kinds: Sequence[type[Baseline]], tell: Tell) -> Sweep:
    """RecSSD's K, on RMC1."""
    points = []
    model = bench.model("rmc1")
    size = min(16, settings.sweep_samples)
    batches = {size: -(-settings.sweep_samples // size)}
    for turn, locality in enumerate(settings.localities):
        tell(f"K = {locality:g}", turn / len(settings.localities))
        trace = bench.trace(model, sum(n * count for n, count in batches.items()), locality)
        for kind in kinds:
            points += [(locality, point) for point in measure(bench, kind, model, trace, batches)]
    return Sweep("k", f"RMC1, batches of {size}", points)


def sweep_dies(settings: Settings, table_bytes: int, seed: int, tell: Tell) -> Sweep:
    """Dies a channel, published nowhere: a fresh drive for each."""
    points = []
    size = min(16, settings.sweep_samples)
    for turn, dies in enumerate(settings.dies):
        tell(f"{dies} dies a channel", turn / len(settings.dies))
        with stand(table_bytes, 1, seed, {"geometry.dies": dies}) as bench:
            model = bench.model("rmc1")
            trace = bench.trace(model, size, LOCALITY)
            for kind in (SsdS, EmbVectorSum, RmSsd):
                points += [(dies, point) for point in measure(bench, kind, model, trace, {size: 1})]
    return Sweep("dies_a_channel", f"RMC1, batches of {size}, K = {LOCALITY}", points)


def sweep_processor(settings: Settings, table_bytes: int, seed: int, tell: Tell) -> Sweep:
    """RecSSD's processor as its published firmware sets it up, and with caches over the memory of its buffers.

    The second is no published design. It is here because those costs decide who wins, and are derived, not measured.
    """
    points = []
    size = min(16, settings.sweep_samples)
    variants: tuple[dict[str, int], ...] = ({}, RECSSD_WITH_CACHES)
    for turn, changed in enumerate(variants):
        tell("RecSSD's processor", turn / len(variants))
        with stand(table_bytes, 1, seed, changed) as bench:
            for name in settings.sweep_models:
                model = bench.model(name)
                trace = bench.trace(model, size, LOCALITY)
                for kind in (RecSsd, RmSsd):
                    points += [(float(bool(changed)), point) for point in measure(bench, kind, model, trace, {size: 1})]
    return Sweep("with_caches", f"RecSSD's processor, batches of {size}, K = {LOCALITY}", points)


def fitted(times: dict[int, float]) -> tuple[float, float, float]:
    """A line through points by least squares. :returns: its slope, its start, and R squared"""
    x, y = np.array(list(times), np.float64), np.array(list(times.values()))
    slope, start = np.polyfit(x, y, 1)
    rest = float(((y - slope * x - start) ** 2).sum())
    whole = float(((y - y.mean()) ** 2).sum())
    return float(slope), float(start), 1 - rest / whole


# -- the kernel search


@dataclass(frozen=True)
class Search:
    """A session with the kernel search and one without, all else being equal.

    :ivar plain: what the FPGA gives to the kernels without it: lut, ff, bram, dsp
    :ivar searched: and with it
    :ivar layers: of both, as they are mapped
    :ivar faster: throughput with it over that without, less one
    """

    model: str
    fpga: str
    plain: dict[str, int]
    searched: dict[str, int]
    plain_layers: list[dict[str, Any]]
    searched_layers: list[dict[str, Any]]
    faster: float

    def saved(self, kind: str) -> float:
        """Share of a resource."""
        return 1 - self.searched[kind] / self.plain[kind]

    @property
    def multipliers(self) -> tuple[int, int]:
        """Of all kernels, without the search and with it."""
        both = (self.plain_layers, self.searched_layers)
        plain, searched = (sum(layer["kr"] * layer["kc"] for layer in layers) for layers in both)
        return plain, searched

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        saved = {kind: round(self.saved(kind), 4) for kind in RESOURCES}
        return {**asdict(self), "saved": saved}


def search_kernels(bench: Stand, name: str = "rmc3", samples: int = 64, batches: int = 4) -> Search:
    """Open a model both ways and run some batches through each."""
    model = bench.model(name)
    log = bench.trace(model, batches * samples, LOCALITY)[1]
    inputs = [(batch.dense, batch.sparse) for batch in log.batches(samples)]
    tables = model.open_tables(bench.drive)
    found = []
    try:
        for search in (False, True):
            weights = bench.weights(model)
            with Session.open(bench.drive, model, tables=tables, weights=weights, search=search) as session:
                began = bench.drive.clock.now
                for _ in session.stream(inputs):
                    pass
                found.append((session.info, bench.drive.clock.now - began))
    finally:
        for table in tables:
            table.close()
    (plain, before), (searched, after) = found
    used = [{kind: info.resources[kind].used for kind in RESOURCES} for info in (plain, searched)]
    layers = [[layer._asdict() for layer in info.layers] for info in (plain, searched)]
    return Search(name, searched.fpga, used[0], used[1], layers[0], layers[1], before / after - 1)
