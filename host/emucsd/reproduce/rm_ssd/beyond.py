"""What each thing beyond the paper buys: lookups a second over our own RM-SSD, same flash, same harness, virtual time.

Five workloads (``beyond_workloads``), each mechanism alone, then all together. Placements are learnt from the first
half of a trace, and caches warmed on it; the second half is measured, all its batches in flight. A ratio is always to
the same lookups on the same drive with nothing switched on. FP32 sums are checked to the bit against NumPy's.

Parameters stand here and in ``beyond_workloads``, each once with its reason; none differs between figures.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np

from emucsd.baselines.costs import load_costs
from emucsd.baselines.host import mlp_ns
from emucsd.drive import Drive
from emucsd.reproduce.rm_ssd.beyond_workloads import (
    AMAZON_BATCH,
    AMAZON_DIM,
    DTYPES,
    RMC_BATCH,
    RMC_ROWS,
    Asked,
    Dtype,
    Order,
    Workload,
    make_workloads,
)
from emucsd.reproduce.rm_ssd.stand import WrongAnswer
from emucsd.rm.model import Model
from emucsd.sharding import Fleet, ShardedTable, ShardedTables, spread
from emucsd.table import Rows, Table, lookup_many

Progress = Callable[[str, float], None]

PROFILE = "rmssd"
CACHE_BYTES = 1 << 20
LARGE_CACHE = 64 << 20
ONE_READ_NS, READ_NS = 20_000, 1_000
REASONS = (
    ("cache_bytes", CACHE_BYTES, "bytes", "of the hot cache: what the small FPGA (XC7A200T: 1.6 MB of block RAM) has "
     "left beside RMC1's weights. Its places are as wide as a row of 64 elements: 4,096 of FP32 (a sixth of the Amazon "
     "table), 14,563 of INT8; narrower rows get as many"),
    ("large_cache_bytes", LARGE_CACHE, "bytes", "a small part of a drive's DRAM: what changes when a whole table fits"),
    ("amazon_batch", AMAZON_BATCH, "users", "a history has 9 items: some 600 lookups, as one sample of RMC1"),
    ("rmc_batch", RMC_BATCH, "samples", "in the middle of what the papers sweep, 1 to 128"),
    ("rmc_rows", RMC_ROWS, "rows a table", "instead of millions: without a cache a lookup takes as long in any table; "
     "no new row of a half comes round again, and two rows in flight seldom share a page by chance"),
    ("one_read_ns", ONE_READ_NS, "ns", "a prefetch of one row, as the host reckons: 14.2 us and its command"),
    ("read_ns", READ_NS, "ns", "each further row of a prefetch: 14.2 us over 16 dies, rounded up"),
)  # fmt: skip
WANTED = {"speedup": 2.0, "on": 2, "of": 5, "lowest": 0.98}

Way = Literal["in flight", "one by one", "prefetch", "two drives"]


class Mechanism(NamedTuple):
    """Something that is switched on.

    :ivar dtype: that rows are stored as
    :ivar order: of the rows in their table
    :ivar cache: bytes of the drive's hot cache
    :ivar register: ``lookup.page_register``
    :ivar way: all batches in flight; or one after the other, with the host at work in between
    :ivar versus: the mechanism that it is compared to; empty: this is one that others are compared to
    :ivar counted: False: a side view (another cache, another way of asking, more drives), not one of the mechanisms
    """

    name: str
    about: str
    dtype: Dtype = "float32"
    order: Order = "id"
    cache: int = 0
    register: bool = False
    way: Way = "in flight"
    versus: str = "RM-SSD"
    counted: bool = True


MECHANISMS = (
    Mechanism("RM-SSD", "as published: FP32 rows in the order of their ids, an array read for each", versus=""),
    Mechanism("FP16 rows", "half the bytes leave the page register", dtype="float16"),
    Mechanism("INT8 rows", "a byte an element, scale and bias a row", dtype="int8"),
    Mechanism("INT4 rows", "half a byte an element, scale and bias a row", dtype="int4"),
    Mechanism("hot cache", "1 MiB of rows in the drive", cache=CACHE_BYTES),
    Mechanism("placement", "hot rows dealt to all dies", order="spread"),
    Mechanism("page register", "a page that a die has in its register, or in work, costs no array read", register=True),
    Mechanism("register, by frequency", "and hot rows share pages", order="frequency", register=True),
    Mechanism("register, by co-access", "and rows of the same bags share pages", order="co-access", register=True),
    Mechanism(
        "all together", "INT8 rows, cache, page register, rows by frequency",
        dtype="int8", order="frequency", cache=CACHE_BYTES, register=True,
    ),
    Mechanism(
        "all, FP32 rows", "the same, without quantised rows: sums to the bit",
        order="frequency", cache=CACHE_BYTES, register=True,
    ),
    Mechanism(
        "all, 64 MiB cache", "the whole Amazon table fits in",
        dtype="int8", order="frequency", cache=LARGE_CACHE, register=True, counted=False,
    ),
    Mechanism(
        "one by one", "with the cache; one batch at a time, the host runs RMC3's layers in between",
        cache=CACHE_BYTES, way="one by one", versus="", counted=False,
    ),
    Mechanism(
        "prefetch", "and rows of the next batch come into the cache meanwhile, as many as there is time for",
        cache=CACHE_BYTES, way="prefetch", versus="one by one", counted=False,
    ),
    Mechanism("two drives", "tables over two drives, with nothing else switched on", way="two drives", counted=False),
)  # fmt: skip


class Counted(NamedTuple):
    """Vectors read from flash, those of them that cost an array read, and those that the cache had."""

    flash_reads: int
    array_reads: int
    hits: int


class Measured(NamedTuple):
    """One mechanism on one workload."""

    ns: int
    counted: Counted
    sums: list[Rows]  # of each table, all batches


def run_beyond(*, seed: int = 1, progress: Progress | None = None, quick: bool = False) -> dict[str, Any]:
    """Measure every mechanism on every workload.

    :param seed: of made traces, of rows, and of the order of users
    :param progress: called with what goes on and how much of all is done, 0 to 1
    :param quick: few samples and small tables: for tests, figures of no weight
    :returns: ``workloads``, ``mechanisms``, ``rows`` (one for each pair: ``lookups_per_s``, ``ratio`` to ``versus``,
        ``flash_reads``, ``array_reads`` (those of them that no page register had) and ``cache_hits`` as shares of the
        lookups, ``error``: the largest relative error of a sum),
        ``floor`` (what is wanted, what was reached), ``parameters``, ``seconds``
    :raises WrongAnswer: a sum differs
    """
    began = time.perf_counter()
    tell = progress or (lambda _text, _done: None)
    tell("making traces", 0.0)
    workloads = make_workloads(seed, quick=quick)
    found: dict[tuple[str, str], Measured] = {}
    groups = list(_groups(workloads))
    for number, (settings, pairs) in enumerate(groups):
        with ExitStack() as stack:
            count = 2 if pairs[0][1].way == "two drives" else 1
            drives = [stack.enter_context(_start(settings, workloads)) for _ in range(count)]
            stage = Stage(drives, stack)
            for turn, (workload, mechanism) in enumerate(pairs):
                tell(f"{workload.name}: {mechanism.name}", (number + turn / len(pairs)) / len(groups))
                found[workload.name, mechanism.name] = stage.measure(workload, mechanism)
    rows = [_row(w, m, found) for w in workloads for m in MECHANISMS if (w.name, m.name) in found]
    tell("done", 1.0)
    return {
        "workloads": [workload.told() for workload in workloads],
        "mechanisms": [
            {"name": m.name, "about": m.about, "versus": m.versus or None, "counted": m.counted} for m in MECHANISMS
        ],
        "rows": rows,
        "floor": _floor(rows),
        "parameters": [{"name": n, "value": v, "unit": unit, "reason": why} for n, v, unit, why in REASONS],
        "seconds": round(time.perf_counter() - began, 1),
    }


def _groups(workloads: Sequence[Workload]) -> Iterator[tuple[dict[str, Any], list[tuple[Workload, Mechanism]]]]:
    """Pairs that one drive can answer one after the other: those of the same settings."""

    def key(pair: tuple[Workload, Mechanism]) -> tuple[int, bool, bool]:
        mechanism = pair[1]
        rows = mechanism.cache // DTYPES[mechanism.dtype](AMAZON_DIM)
        return rows, mechanism.register, mechanism.way == "two drives"

    for (rows, register, _), group in itertools.groupby(sorted(itertools.product(workloads, MECHANISMS), key=key), key):
        yield {"lookup.cache_rows": rows, "lookup.page_register": register}, list(group)


def _start(settings: dict[str, Any], workloads: Sequence[Workload]) -> Drive:
    size = sum({id(w.data): w.nbytes for w in workloads}.values())  # those of each K share their tables
    room = 5 * size  # four sets of tables, or one in each row type; what is not written takes none
    return Drive.start(PROFILE, size=(room >> 20) + 64 << 20, clock="virtual", settings=settings)


class Stage:
    """A drive, or two, with the tables that were needed so far."""

    def __init__(self, drives: list[Drive], stack: ExitStack) -> None:
        self.drives, self.drive, self._stack = drives, drives[0], stack
        self._tables: dict[tuple[int | str, Dtype], list[Table]] = {}

    def measure(self, workload: Workload, mechanism: Mechanism) -> Measured:
        """Warm up on the first half, measure the second. :raises WrongAnswer: FP32 sums that are not NumPy's"""
        two = mechanism.way == "two drives"
        measured = self._two_drives(workload) if two else self._one_drive(workload, mechanism)
        if mechanism.dtype == "float32":
            for number, (mine, right) in enumerate(
                zip(measured.sums, workload.wanted(mechanism.order, mechanism.dtype), strict=True)
            ):
                if not two and not np.array_equal(mine.view(np.uint32), right.view(np.uint32)):
                    raise WrongAnswer(
                        f"{workload.name}, {mechanism.name}: sums of table {number} are not NumPy's; this is a bug"
                    )
        return measured

    def _one_drive(self, workload: Workload, mechanism: Mechanism) -> Measured:
        # what one workload leaves in the cache is not to be found by another one that looks up in the same rows
        tables = self._stored(workload, mechanism.dtype, workload.name if mechanism.cache else id(workload.data))
        train = workload.asked(workload.train, mechanism.order, mechanism.dtype)
        test = workload.asked(workload.test, mechanism.order, mechanism.dtype)
        _in_flight(tables, train)
        before, began = self._counted(tables), self.drive.clock.now
        if mechanism.way == "in flight":
            sums = _in_flight(tables, test)
        else:
            sums = self._one_by_one(workload, tables, test, ahead=mechanism.way == "prefetch")
        return self._measured(self.drive.clock.now - began, before, tables, sums)

    def _one_by_one(self, workload: Workload, tables: list[Table], asked: Asked, *, ahead: bool) -> list[Rows]:
        """Batch after batch; the host runs layers after each, and may have the next one's rows fetched meanwhile.

        It asks for as many rows as the drive reads while the layers run: a row that is still on its way when its lookup
        comes would be read twice.
        """
        work = round(sum(mlp_ns(load_costs(), Model.rmc3(), workload.batch)))
        room = int((work - ONE_READ_NS) / READ_NS / len(tables))
        found: list[list[Rows]] = []
        for number, batch in enumerate(asked):
            found.append([sums.copy() for sums in lookup_many(tables, batch)])
            if ahead and number + 1 < len(asked):
                for table, (ids, _) in zip(tables, asked[number + 1], strict=True):
                    table.prefetch(ids[:room])
            self.drive.clock.think(work)
        return [np.concatenate(sums) for sums in zip(*found, strict=True)]

    def _two_drives(self, workload: Workload) -> Measured:
        """One table is dealt to both by rows, several by whole tables."""
        with Fleet(self.drives) as fleet, ExitStack() as stack:
            if len(workload.data) == 1:
                bags = workload.test.lookups[0].bags
                wide = ShardedTable.create(fleet, workload.name, workload.data[0])
                stack.callback(ShardedTable.drop, fleet, workload.name)
                stack.enter_context(wide)
                tables = wide.shards
                before, began = self._counted(tables), fleet.now
                sums = [wide.lookup(*bags.pair)]
            else:
                places = spread([some.bags.indices.size for some in workload.test.lookups], len(fleet))
                tables = self._shards(workload, places)
                spread_tables = ShardedTables(fleet, tables)
                before, began = self._counted(tables), fleet.now
                parts = spread_tables.lookup_batches(workload.asked(workload.test, "id", "float32"))
                sums = [np.concatenate(of_table) for of_table in zip(*parts, strict=True)]
            return self._measured(fleet.now - began, before, tables, sums)

    def _measured(self, ns: int, before: Counted, tables: Sequence[Table], sums: list[Rows]) -> Measured:
        after = self._counted(tables)
        return Measured(ns, Counted(*(b - a for a, b in zip(before, after, strict=True))), sums)

    def _counted(self, tables: Sequence[Table]) -> Counted:
        """So far."""
        stats = [table.stats for table in tables]
        reads = sum(some.flash_reads for some in stats)
        saved = sum(sum(drive.control.stats()["nand"]["page_register"].values()) for drive in self.drives)
        return Counted(reads, reads - saved, sum(some.hits for some in stats))

    def _shards(self, workload: Workload, places: Sequence[int]) -> list[Table]:
        key: tuple[int | str, Dtype] = (id(workload.data), "float32")
        if key not in self._tables:
            made = []
            for number, (rows, place) in enumerate(zip(workload.data, places, strict=True)):
                made.append(self._stack.enter_context(Table.create(self.drives[place], f"t{number}", rows)))
            self._tables[key] = made
        return self._tables[key]

    def _stored(self, workload: Workload, dtype: Dtype, whose: int | str) -> list[Table]:
        """The workload's tables of a row type, made when they are first needed. :param whose: who shares them"""
        key = (whose, dtype)
        if key not in self._tables:
            names = [f"{len(self._tables)}.{number}" for number in range(len(workload.data))]
            self._tables[key] = [
                self._stack.enter_context(Table.create(self.drive, name, rows, dtype=dtype))
                for name, rows in zip(names, workload.data, strict=True)
            ]
        return self._tables[key]


def _in_flight(tables: list[Table], asked: Asked) -> list[Rows]:
    """All batches, sent one after the other and under way together; sums of each table."""
    sums = lookup_many(tables * len(asked), [pair for batch in asked for pair in batch])
    return [np.concatenate(sums[number :: len(tables)]) for number in range(len(tables))]


# -- what is told


def _row(workload: Workload, mechanism: Mechanism, found: dict[tuple[str, str], Measured]) -> dict[str, Any]:
    mine, lookups = found[workload.name, mechanism.name], workload.test.ids
    base = found[workload.name, mechanism.versus or mechanism.name]
    return {
        "workload": workload.name,
        "mechanism": mechanism.name,
        "virtual_ns": mine.ns,
        "lookups_per_s": round(1e9 * lookups / mine.ns),
        "ratio": round(base.ns / mine.ns, 3),
        "versus": mechanism.versus or None,
        "counted": mechanism.counted,
        "flash_reads": round(mine.counted.flash_reads / lookups, 4),
        "array_reads": round(mine.counted.array_reads / lookups, 4),
        "cache_hits": round(mine.counted.hits / lookups, 4),
        "error": _error(mine.sums, workload.wanted(mechanism.order, mechanism.dtype)),
    }


def _error(sums: Sequence[Rows], wanted: Sequence[Rows]) -> float:
    """The largest difference of an element, as a share of the largest element of its sum."""
    worst = 0.0
    for mine, right in zip(sums, wanted, strict=True):
        size = np.abs(right).max(axis=1)
        off = np.abs(mine - right).max(axis=1)
        worst = max(worst, float((off[size > 0] / size[size > 0]).max(initial=0)))
    return float(f"{worst:.3g}")


def _floor(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is wanted of everything together, what was reached, and which mechanisms cost something alone."""
    together = {row["workload"]: row["ratio"] for row in rows if row["mechanism"] == "all together"}
    fast = sorted(name for name, ratio in together.items() if ratio >= WANTED["speedup"])
    slower = [row for row in rows if row["counted"] and row["ratio"] < WANTED["lowest"]]
    return {
        "wanted": WANTED,
        "all_together": together,
        "fast_enough": fast,
        "met": len(fast) >= WANTED["on"] and min(together.values()) >= WANTED["lowest"],
        "slower_alone": [f"{row['mechanism']}, {row['workload']}: {row['ratio']}" for row in slower],
    }
