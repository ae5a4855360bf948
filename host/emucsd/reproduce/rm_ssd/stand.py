"""The stand that baselines are measured on: a drive in virtual time with a model's tables, and one way to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from emucsd.baselines import Baseline, BufferedFiles, HostMlp, InDrive
from emucsd.bench.environment import scratch_folder
from emucsd.drive import Drive
from emucsd.errors import EmucsdError
from emucsd.reproduce.rm_ssd.points import Point
from emucsd.reproduce.rm_ssd.settings import CACHE_ENTRIES
from emucsd.rm.model import Model
from emucsd.rm.weights import Weights
from emucsd.table import Rows
from emucsd.traces import Batch, Recorded, make_locality, sums_in_order

PAGE = 4096
STREAMED = 8  # batches, at least, where they overlap: twice as many as are under way together
Check = Callable[[Baseline, Batch, Rows], None]
TOLERANCE = 1e-5  # relative, of outputs; sums are equal bit for bit


class WrongAnswer(EmucsdError):
    """A baseline gave other numbers than NumPy: a bug, and never to be shown as a result."""


class Stand:
    """A drive with the tables of one model after the other.

    :param table_bytes: of each model's tables
    """

    def __init__(self, drive: Drive, table_bytes: int, seed: int) -> None:
        self.drive, self.table_bytes, self.seed = drive, table_bytes, seed
        self._stored: dict[str, Model] = {}
        self._rows: tuple[str, list[Rows]] = ("", [])
        self._weights: dict[str, Weights] = {}

    def model(self, name: str) -> Model:
        """A published model with tables of this stand's size, stored on the drive."""
        if name not in self._stored:
            shape = Model.named(name)
            row_bytes = sum(4 * table.dim for table in shape.tables)
            model = shape.with_rows(self.table_bytes // row_bytes)
            self._stored[name] = model
            self._weights[name] = model.random_weights(self.seed)
            for table in model.create_tables(self.drive, self.seed, tables=self.rows(model)):
                table.close()
        return self._stored[name]

    def rows(self, model: Model) -> list[Rows]:
        """What the tables hold; kept for the last model asked for."""
        if self._rows[0] != model.name:
            self._rows = (model.name, [model.random_table(number, self.seed) for number in range(len(model.tables))])
        return self._rows[1]

    def weights(self, model: Model) -> Weights:
        """Of the layers."""
        return self._weights[model.name]

    def trace(self, model: Model, samples: int, locality: float) -> tuple[Recorded, Recorded]:
        """A log that fills any page cache of half the tables, and ``samples`` that follow it."""
        pages = self.table_bytes // PAGE
        lookups = model.lookups
        # of the references some 14 to 71 % are new; half of all pages are touched after 0.7 new ones a page
        before = -(-5 * pages // lookups)
        table = model.tables[0]
        log = make_locality(
            locality,
            before + samples,
            tables=len(model.tables),
            rows=table.rows,
            lookups=table.lookups,
            seed=self.seed,
        )
        dense = np.random.default_rng((self.seed, 3)).random((before + samples, model.dense), np.float32)
        whole = Recorded(log.name, log.lookups, dense)
        return whole.part(0, before), whole.part(before, before + samples)


@contextmanager
def stand(
    table_bytes: int, models: int, seed: int, settings: dict[str, Any] | None = None, tell: Any = None
) -> Iterator[Stand]:
    """A fresh drive in virtual time, for the tables of so many models."""
    size = models * table_bytes
    room = (int(1.15 * size) >> 20) + 64 << 20
    settings = {"recssd.cache_entries": CACHE_ENTRIES, **(settings or {})}
    with (
        scratch_folder(2 * size) as folder,
        Drive.start(
            "rmssd",
            size=room,
            store=folder,
            clock="virtual",
            memory=table_bytes + (160 << 20),
            settings=settings,
            tell=tell,
        ) as drive,
    ):
        yield Stand(drive, table_bytes, seed)


def measure(
    bench: Stand, kind: type[Baseline], model: Model, trace: tuple[Recorded, Recorded], batches: dict[int, int]
) -> list[Point]:
    """One baseline on batches of several sizes, one size after the other along the trace; its answers are checked.

    :param trace: what went before, and enough samples for all batches
    :param batches: size -> how many
    :raises WrongAnswer: its outputs are not NumPy's
    """
    before, log = trace
    baseline = kind()
    weights = bench.weights(model)
    baseline.prepare(bench.drive, model, weights, before)
    try:
        points, at = [], 0
        for size, count in batches.items():
            part = list(log.part(at, at + size * count).batches(size))
            points.append(run_batches(baseline, part, partial(check_outputs, bench)))
            at += size * count
        check_sums(bench, baseline, part[-1])
        return points
    finally:
        baseline.close()


def run_batches(baseline: Baseline, batches: Sequence[Batch], check: Check) -> Point:
    """A prepared baseline on batches of one size. :param check: is given an answer for each way they were asked"""
    clock, model, count = baseline.drive.clock, baseline.model, len(batches)
    files = baseline if isinstance(baseline, BufferedFiles) else None
    before = files.misses if files else 0
    spent, sls = dict(baseline.spent), baseline.sls_ns if isinstance(baseline, HostMlp) else 0
    began = clock.now
    answers = [baseline.infer(batch) for batch in batches]
    passed = clock.now - began
    kinds = {name: (ns - spent.get(name, 0)) / count for name, ns in baseline.spent.items()}
    kinds["drive"] = passed / count - sum(kinds.values())
    check(baseline, batches[0], answers[0])
    misses = (files.misses - before) / count if files else None
    streamed = float(passed)
    if baseline.overlaps:
        more = -(-STREAMED // count)
        began = clock.now
        answers = list(baseline.stream(list(batches) * more))
        streamed = (clock.now - began) / more
        check(baseline, batches[-1], answers[-1])
    lookups = sum(len(bags.indices) for batch in batches for bags in batch.bags) // count
    return Point(
        baseline.name,
        model.name,
        batches[0].samples,
        passed / count,
        sum(batch.samples for batch in batches) / streamed * 1e9,
        (baseline.sls_ns - sls) / count if isinstance(baseline, HostMlp) else None,
        lookups,
        kinds,
        misses,
        _stages(baseline),
    )


def _stages(baseline: Baseline) -> dict[str, int] | None:
    if not isinstance(baseline, InDrive):
        return None
    info = baseline.session.info
    return {name: int(getattr(info, name)) for name in ("minibatch", "embedding_ns", "bottom_ns", "top_ns")}


def check_outputs(bench: Stand, baseline: Baseline, batch: Batch, outputs: Rows) -> None:
    """:raises WrongAnswer: they are not NumPy's within ``TOLERANCE``"""
    model = baseline.model
    assert batch.dense is not None
    right = model.reference(baseline.weights, bench.rows(model), batch.dense, batch.sparse)
    if outputs.shape != right.shape or not np.allclose(outputs, right, rtol=TOLERANCE, atol=TOLERANCE / 10):
        worst = float(np.abs(outputs - right).max()) if outputs.shape == right.shape else float("nan")
        raise WrongAnswer(f"{baseline.name} on {model.name}: outputs differ from NumPy's by {worst:g}; this is a bug")


def check_sums(bench: Stand, baseline: Baseline, batch: Batch) -> None:
    """:raises WrongAnswer: a bit of a sum is not NumPy's in index order"""
    rows = bench.rows(baseline.model)
    right = np.concatenate([sums_in_order(r, bags) for r, bags in zip(rows, batch.bags, strict=True)], axis=1)
    sums = baseline.sls(batch)
    if not baseline.ordered and np.allclose(sums, right, rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(right).max())):
        return
    if not np.array_equal(sums.view(np.uint32), right.view(np.uint32)):
        raise WrongAnswer(f"{baseline.name} on {baseline.model.name}: sums are not NumPy's, bit for bit; this is a bug")
