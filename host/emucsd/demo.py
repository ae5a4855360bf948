"""Three ways to the same sums, over the same flash, in the same virtual time.

1. *host*: pages are read to the host and summed there, with a DRAM page cache of a quarter of the tables; once with one
   read at a time, as the published baseline does it, and once with many in flight;
2. *page*: the drive sums, its dies give up whole pages;
3. *vector*: the drive sums, its dies give up only the vectors asked for (RM-SSD).

Two workloads: users' histories of items (Amazon's interactions, or made ones of the same skew), and samples of
Criteo's shape, one id in each of 26 tables. Every sum is checked against NumPy in index order, and against PyTorch's
where that is installed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.baselines.pagecache import HostLookup
from emucsd.bench.environment import environment, scratch_folder
from emucsd.drive import Drive
from emucsd.errors import EmucsdError
from emucsd.table import Rows, Table, lookup_many
from emucsd.traces import (
    AMAZON_FILE,
    AMAZON_ITEMS,
    AMAZON_USERS,
    CRITEO_ROWS,
    Bags,
    Lookups,
    load_amazon,
    make_amazon,
    make_criteo,
    sums_in_order,
)

ITEM_DIM, CRITEO_DIM = 64, 32
MANY = 32  # page reads in flight, where the host does not read one by one
_LARGE_MEMORY = 8 << 30  # bytes of RAM from which tables have up to a million rows

Tell = Callable[[str, float], None]
Batch = list[tuple[int, Bags]]


class Way(NamedTuple):
    """One way of answering a batch: (number of the table, bags) -> sums."""

    name: str
    about: str
    answer: Callable[[Batch], list[Rows]]


class DemoFailed(EmucsdError):
    """A way gave other sums than NumPy: a bug, and never to be shown as a result."""


class _Tables(NamedTuple):
    """A workload's tables, stored, and what they hold."""

    stored: list[Table]
    rows: list[Rows]


def run_demo(
    out: Path | None = None,
    *,
    data: Path | None = None,
    profile: str = "rmssd",
    most_rows: int | None = None,
    users: int = AMAZON_USERS,
    samples: int = 4096,
    batch: int = 64,
    seed: int = 1,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Store the tables, answer both workloads each way, check every sum.

    :param out: folder for ``demo.json`` and ``demo.png``; None writes neither
    :param data: folder with ``amazon-video-games.txt`` (see ``find_data``); None: made histories
    :param profile: of the drive; flash pages of 4 KiB
    :param most_rows: of a Criteo-shaped table; None: a million, or a quarter of that where memory is small
    :param users: histories in use, half of them to warm the host's cache up
    :param samples: of Criteo's shape, after as many to warm up
    :param batch: bags (or samples) that are asked for at once
    :param tell: called with what goes on and how much of all is done, 0 to 1
    :returns: ``environment``, ``profile``, ``workloads`` (each with ``tables`` and ``ways``), ``files``, ``seconds``
    :raises DemoFailed: a sum differs
    """
    began = time.perf_counter()
    tell = tell or (lambda _text, _done: None)
    workloads = _workloads(data, users, samples, _most_rows() if most_rows is None else most_rows, seed)
    size = sum(workload.size for workload in workloads)
    with scratch_folder(2 * size) as folder, ExitStack() as stack:
        tell("starting the drive", 0.0)
        room = (int(1.2 * size) >> 20) + 64 << 20
        drive = stack.enter_context(Drive.start(profile, size=room, store=folder, clock="virtual"))
        rng = np.random.default_rng(seed)
        found, done = [], 0.0
        for workload in workloads:
            found.append(
                _answer(drive, workload, batch, rng, stack, _part_of(tell, workload.name, done, workload.share))
            )
            done += workload.share
        result: dict[str, Any] = {
            "environment": environment(folder),
            "profile": profile,
            "clock": "virtual",
            "workloads": found,
        }
    result["files"] = [] if out is None else write_files(out, result)
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def _most_rows() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 1_000_000 if memory >= _LARGE_MEMORY else 250_000


def _part_of(tell: Tell, name: str, start: float, share: float) -> Tell:
    """Tells of a part of the work as of the whole."""
    return lambda text, done: tell(f"{name}: {text}", start + share * done)


# -- workloads and their tables


class Workload(NamedTuple):
    """Tables of one width, and bags of which the first ``warm`` only warm the host's cache up."""

    name: str
    about: str
    lookups: list[Lookups]
    dim: int
    warm: int
    share: float  # of the demo's time, about

    @property
    def size(self) -> int:
        """Bytes of all tables."""
        return 4 * self.dim * sum(lookups.rows for lookups in self.lookups)


def _workloads(data: Path | None, users: int, samples: int, most_rows: int, seed: int) -> list[Workload]:
    items = load_amazon(data / AMAZON_FILE) if data is not None else make_amazon(users, AMAZON_ITEMS, seed)
    histories = items._replace(bags=items.bags.part(0, min(users, items.bags.count)))
    criteo = make_criteo(2 * samples, [min(rows, most_rows) for rows in CRITEO_ROWS], seed)
    log = "Amazon video games" if data is not None else "made, with the skew of Amazon's video games"
    about = f"users' histories of items ({log}): one bag each"
    return [
        Workload("items", about, [histories], ITEM_DIM, histories.bags.count // 2, 0.3),
        Workload("criteo", "samples of Criteo's shape: one id in each of 26 tables", criteo, CRITEO_DIM, samples, 0.7),
    ]


def _store(drive: Drive, workload: Workload, rng: np.random.Generator, stack: ExitStack, tell: Tell) -> _Tables:
    """Rows as an untrained embedding has them, on the drive and here."""
    stored, kept = [], []
    total, before = sum(lookups.rows for lookups in workload.lookups), 0
    for number, lookups in enumerate(workload.lookups):
        tell("storing tables", before / total)
        rows = rng.standard_normal((lookups.rows, workload.dim), np.float32)
        stored.append(stack.enter_context(Table.create(drive, f"{lookups.name}-{number}", rows)))
        kept.append(rows)
        before += lookups.rows
    return _Tables(stored, kept)


# -- the comparison


def _answer(
    drive: Drive, workload: Workload, size: int, rng: np.random.Generator, stack: ExitStack, tell: Tell
) -> dict[str, Any]:
    """Store a workload's tables and answer its bags all ways; those that only warm up are left out."""
    tables = _store(drive, workload, rng, stack, lambda text, done: tell(text, 0.5 * done))
    bags = [lookups.bags for lookups in workload.lookups]
    before = [(number, some.part(0, workload.warm)) for number, some in enumerate(bags)]
    batches = list(_batches(bags, workload.warm, size))
    wanted = [[sums_in_order(tables.rows[number], some) for number, some in batch] for batch in batches]
    equal_to = ["numpy"]
    peers = [torch_sums(tables.rows, batch) for batch in batches]
    for peer, right in zip(peers, wanted, strict=True):
        if peer is not None:
            equal_to = ["numpy", "torch"]
            _check("PyTorch", peer, right)
    found = []
    for turn, way in enumerate(_ways(drive, tables.stored, before)):
        tell(way.about, 0.5 + turn / 8)
        found.append(_run(drive, way, batches, wanted))
    return {
        "name": workload.name,
        "about": workload.about,
        "tables": len(tables.stored),
        "rows": sum(len(rows) for rows in tables.rows),
        "bytes": workload.size,
        "bags": sum(some.count for batch in batches for _, some in batch),
        "vectors": sum(len(some.indices) for batch in batches for _, some in batch),
        "bags_a_batch": size,
        "equal_to": equal_to,
        "ways": _with_ratios(found),
    }


def _batches(bags: list[Bags], first: int, size: int) -> Iterator[Batch]:
    for at in range(first, bags[0].count, size):
        yield [(number, some.part(at, min(at + size, some.count))) for number, some in enumerate(bags)]


def _ways(drive: Drive, stored: list[Table], before: Batch) -> Iterator[Way]:
    for depth, name in ((1, "host"), (MANY, "host-async")):
        host = HostLookup(drive, stored, depth=depth)
        host.warm(before)
        about = "pages to the host, one by one" if depth == 1 else f"pages to the host, {depth} in flight"
        yield Way(name, about, host.lookup)
        del host
    yield Way("page", "summed in the drive, page reads", lambda batch: _in_drive(stored, batch, "page"))
    yield Way("vector", "summed in the drive, vector reads", lambda batch: _in_drive(stored, batch, "vector"))


def _in_drive(stored: list[Table], batch: Batch, grain: Any) -> list[Rows]:
    return lookup_many([stored[n] for n, _ in batch], [(b.indices, b.offsets[:-1]) for _, b in batch], grain)


def _run(drive: Drive, way: Way, batches: list[Batch], wanted: list[list[Rows]]) -> dict[str, Any]:
    """Answer every batch, one after the other; check every sum; count."""
    before, began = _counters(drive), drive.clock.now
    answers = [[sums.copy() for sums in way.answer(batch)] for batch in batches]
    passed, after = drive.clock.now - began, _counters(drive)
    for sums, right in zip(answers, wanted, strict=True):
        _check(way.about, sums, right)
    return {
        "name": way.name,
        "about": way.about,
        "virtual_ns": passed,
        **{name: after[name] - before[name] for name in after},
    }


def _check(whose: str, sums: list[Rows], right: list[Rows]) -> None:
    for number, (mine, theirs) in enumerate(zip(sums, right, strict=True)):
        if not np.array_equal(mine.view(np.uint32), theirs.view(np.uint32)):
            bag = int(np.flatnonzero((mine.view(np.uint32) != theirs.view(np.uint32)).any(axis=1))[0])
            raise DemoFailed(f"{whose}: bag {bag} of table {number} is not NumPy's sum; this is a bug of the drive")


def torch_sums(rows: list[Rows], batch: Batch) -> list[Rows] | None:
    """The same by PyTorch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    found = []
    for number, bags in batch:
        ids, offsets = torch.from_numpy(bags.indices), torch.from_numpy(bags.offsets)
        weight = torch.from_numpy(rows[number])
        sums = torch.nn.functional.embedding_bag(ids, weight, offsets, mode="sum", include_last_offset=True)
        found.append(sums.numpy())
    return found


def _counters(drive: Drive) -> dict[str, int]:
    """What crossed the link and what left the dies, as the drive counts it."""
    stats = drive.control.stats()
    port, flash = stats["ports"][drive.port], stats["nand"]["classes"]
    return {
        "link_bytes": int(port["link_in"]) + int(port["link_out"]),
        "flash_reads": sum(int(flash[name]["reads"]) for name in ("block", "lookup")),
        "flash_bytes": sum(int(flash[name]["nbytes"]) for name in ("block", "lookup")),
    }


def _with_ratios(ways: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times less than the first way: time and bytes over the link."""
    base = ways[0]
    for way in ways:
        way["speedup"] = round(base["virtual_ns"] / max(way["virtual_ns"], 1), 3)
        way["link_saving"] = round(base["link_bytes"] / max(way["link_bytes"], 1), 3)
    return ways


# -- files


def write_files(out: Path, result: dict[str, Any]) -> list[str]:
    """``demo.json``, and ``demo.png`` where matplotlib is installed. :returns: what was written"""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "demo.json"]
    written[0].write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if draw_chart(out / "demo.png", result):
        written.append(out / "demo.png")
    return [str(path) for path in written]


def draw_chart(path: Path, result: dict[str, Any]) -> bool:
    """Bytes over the link and virtual time, a bar for each way. :returns: False without matplotlib"""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 3.2 * len(result["workloads"])), layout="constrained")
    FigureCanvasAgg(figure)
    grid: NDArray[Any] = figure.subplots(len(result["workloads"]), 2, squeeze=False)
    for row, workload in zip(grid, result["workloads"], strict=True):
        names = [way["about"] for way in workload["ways"]]
        for axes, key, scale, unit in (
            (row[0], "link_bytes", 1e6, "MB over the link"),
            (row[1], "virtual_ns", 1e6, "ms of virtual time"),
        ):
            values = [way[key] / scale for way in workload["ways"]]
            bars = axes.barh(names, values, color=["#9aa5b1", "#9aa5b1", "#5b8db8", "#1f5f99"])
            axes.bar_label(bars, labels=[f"{value:,.3g}" for value in values], padding=3)
            axes.set(title=f"{workload['name']}: {unit}", xlim=(0, 1.15 * max(values)))
            axes.invert_yaxis()
            axes.spines[["top", "right"]].set_visible(False)
        row[1].set_yticklabels([])
    figure.savefig(path, dpi=150)
    return True
