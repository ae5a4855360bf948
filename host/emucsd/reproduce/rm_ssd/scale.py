"""Tables as large as the paper's: rows made from a seed, read at the time of real ones, and no bytes stored.

They show that scaling the tables changes nothing for what reads vectors in the drive. What goes through files cannot
read them: there are no blocks with their rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emucsd.baselines import Baseline, EmbVectorSum, RmSsd
from emucsd.drive import Drive
from emucsd.reproduce.rm_ssd.points import Point
from emucsd.reproduce.rm_ssd.settings import LOCALITY, PAPER_TABLES, Settings
from emucsd.reproduce.rm_ssd.stand import WrongAnswer, run_batches
from emucsd.reproduce.rm_ssd.sweeps import Sweep, Tell
from emucsd.rm.model import Model
from emucsd.rowtypes import generated, generated_rows
from emucsd.table import Table
from emucsd.traces import Batch, Recorded, make_locality, sums_in_order

KINDS: tuple[type[Baseline], ...] = (EmbVectorSum, RmSsd)


def at_scale(settings: Settings, seed: int, tell: Tell) -> Sweep:
    """RMC1 over tables of the paper's size and of this run's, both generated.

    :raises WrongAnswer: sums are not those of the generated rows
    """
    points = []
    shape = Model.named("rmc1")
    row_bytes = sum(4 * table.dim for table in shape.tables)
    size = min(16, settings.sweep_samples)
    for turn, table_bytes in enumerate((settings.table_bytes, int(PAPER_TABLES))):
        tell(f"tables of {table_bytes / 1e9:.3g} GB, generated", turn / 2)
        model = replace(shape.with_rows(table_bytes // row_bytes), name="scale")
        log = make_locality(
            LOCALITY, settings.sweep_samples, tables=len(model.tables), rows=model.tables[0].rows, seed=seed
        )
        dense = np.random.default_rng((seed, 3)).random((settings.sweep_samples, model.dense), np.float32)
        trace = Recorded(log.name, log.lookups, dense)
        with Drive.start("rmssd", clock="virtual") as drive:
            for number, (name, table) in enumerate(zip(model.table_names(), model.tables, strict=True)):
                Table.create(drive, name, generated(seed + number, table.rows, table.dim)).close()
            for kind in KINDS:
                baseline = kind()
                baseline.prepare(drive, model, model.random_weights(seed), trace)
                batches = list(trace.batches(size))
                _check(baseline, batches[-1], seed)
                points.append((float(table_bytes), run_batches(baseline, batches, lambda *_: None)))
                baseline.close()
    return Sweep("table_bytes", f"RMC1, batches of {size}, generated rows", points)


def _check(baseline: Baseline, batch: Batch, seed: int) -> None:
    right = []
    for number, bags in enumerate(batch.bags):
        ids, places = np.unique(bags.indices, return_inverse=True)
        rows = generated_rows(seed + number, ids, baseline.tables[number].dim)
        right.append(sums_in_order(rows, replace(bags, indices=places)))
    if not np.array_equal(baseline.sls(batch).view(np.uint32), np.concatenate(right, axis=1).view(np.uint32)):
        raise WrongAnswer(f"{baseline.name}: sums of generated rows are not NumPy's, bit for bit; this is a bug")


def per_lookup(sweep: Sweep, baseline: str) -> list[float]:
    """ns a lookup, from the small to the large tables."""
    found: list[Point] = [point for _, point in sweep.points if point.baseline == baseline]
    return [point.latency_ns / point.lookups for point in found]
