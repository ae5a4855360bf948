"""What is run: sizes, batches, sweeps. Each value once, with its reason; two sets of them, the second for tests."""

from __future__ import annotations

from dataclasses import dataclass

from emucsd.baselines import (
    Baseline,
    Dram,
    EmbMmio,
    EmbPageSum,
    EmbVectorSum,
    RecSsd,
    RmSsd,
    RmSsdNaive,
    SsdM,
    SsdS,
)

BASELINES: tuple[type[Baseline], ...] = (
    Dram,
    SsdS,
    SsdM,
    EmbMmio,
    EmbPageSum,
    EmbVectorSum,
    RecSsd,
    RmSsdNaive,
    RmSsd,
)

MODELS = ("rmc1", "rmc2", "rmc3", "ncf", "wnd")
DLRM = ("rmc1", "rmc2", "rmc3")  # those that the paper's "DLRM models" are

LOCALITY = 0.3  # the published default of K
PAPER_TABLES = 30e9  # bytes of a model's tables, as recalled
CACHE_ENTRIES = 8192  # of RecSSD's row cache in the drive; see REASONS
PAPER_HITS = 0.65  # of the trace at K = 0.3, as recalled


@dataclass(frozen=True)
class Settings:
    """:ivar table_bytes: of a model's tables, all together
    :ivar batches: samples of a batch -> batches of that size that are measured
    :ivar lookups: ids a bag, of the sweep over RMC1
    :ivar sweep_batches: samples a batch, of the sweeps over RMC1 and RMC3
    :ivar localities: K
    :ivar dies: a channel, of the sweep that shows what the ratio hangs on
    :ivar sweep_samples: of each point of a sweep, at least
    """

    table_bytes: int
    batches: dict[int, int]
    lookups: tuple[int, ...]
    sweep_batches: tuple[int, ...]
    localities: tuple[float, ...]
    dies: tuple[int, ...]
    sweep_samples: int
    sweep_models: tuple[str, ...]


FULL = Settings(
    table_bytes=192 << 20,
    batches={1: 16, 16: 4, 64: 2},
    lookups=(1, 5, 10, 20, 40, 80, 120, 160),
    sweep_batches=(1, 2, 4, 8, 16, 32, 64, 128),
    localities=(0.0, 0.3, 1.0, 2.0),
    dies=(1, 2, 4, 8, 16),
    sweep_samples=32,
    sweep_models=("rmc1", "rmc3"),
)

QUICK = Settings(
    table_bytes=12 << 20,
    batches={1: 4, 8: 2},
    lookups=(5, 20, 80),
    sweep_batches=(1, 8),
    localities=(0.0, 0.3, 2.0),
    dies=(1, 4),
    sweep_samples=4,
    sweep_models=("rmc1",),
)

REASONS = {
    "table_bytes": "the paper's tables have 30 GB (recalled). Scaled: what the drive takes for a vector does not "
    "depend on how many rows there are, and a page cache's hits depend on its share of the tables, which is kept",
    "batches": "published nowhere. One sample for latency; 16 and 64 for throughput; RecSSD sweeps 1 to 128",
    "locality": "the published default of K",
    "trace": "RecSSD's generator over every row of the table, in a shuffled order: the published form's ids lie each "
    "in a page of its own, and all in 7,812 rows that any page cache holds",
    "page cache": "before anything is measured it holds what an LRU cache holds after as many lookups as it takes "
    "to fill it; then it goes on with the measured ones",
    "cache_entries": "of RecSSD's row cache in the drive: 2^20 as published, scaled with the tables to a power of two. "
    "As published it would hold most of the scaled tables",
    "ratios": "of a claim without a batch size: the geometric mean over the batch sizes; 'up to' and ranges: the "
    "extremes over models and batch sizes",
}
