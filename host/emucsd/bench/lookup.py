"""`emucsd bench lookup`: embedding lookups inside the drive, as one JSON object.

from emucsd.bench.lookup import run_lookup_bench
print(json.dumps(run_lookup_bench(seconds=3), indent=2))

One table of RMC1 (DeepRecSys): 4 M rows of 32 FP32, bags of 80 ids, every row as likely. Profile ``rmssd`` in virtual
time: each vector is timed on its die and channel. What is measured is wall time, of the same bags in the drive and in
``torch.nn.EmbeddingBag`` with one thread and the table in memory, in turn in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from emucsd.bench.environment import environment, scratch_folder
from emucsd.drive import Drive
from emucsd.errors import InvalidArgument
from emucsd.table import Table
from emucsd.traces import Bags, bags_of, sums_in_order

KEYS = ("environment", "vectors_per_s", "torch_ratio", "bit_equal")
ROWS, DIM, LENGTH = 4_000_000, 32, 80
_BAGS = 4096  # of one call
_CALLS = 8  # different ones, in turn
_ROUNDS = 3  # of drive and torch in turn; the median counts

Rows = NDArray[np.float32]


class _Timed(NamedTuple):
    """Vectors looked up, in how many wall seconds, and the sums of the first call."""

    vectors: int
    seconds: float
    sums: Rows

    @property
    def rate(self) -> float:
        """Vectors a second."""
        return self.vectors / self.seconds


def run_lookup_bench(
    *,
    seconds: float = 3.0,
    rows: int = ROWS,
    dim: int = DIM,
    length: int = LENGTH,
    profile: str = "rmssd",
    clock: str = "virtual",
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure on a drive with a store of its own that is removed again.

    :param seconds: that each side is measured for
    :returns: exactly ``KEYS``: ``vectors_per_s`` of the drive; ``torch_ratio`` to PyTorch's (None without PyTorch);
        ``bit_equal``: the first call's sums against NumPy's in index order, and PyTorch's. What was done is in
        ``environment["lookup"]``
    :raises InvalidArgument: no time to measure in
    """
    if seconds <= 0:
        raise InvalidArgument(f"{seconds} s: measure for some time above 0")
    shown = console or Console(stderr=True)
    with (
        Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
            console=shown, transient=True, disable=not shown.is_terminal,
        ) as progress,
        scratch_folder(2 * rows * dim * 4, on_disk=True) as folder,
    ):  # fmt: skip
        task = progress.add_task("bench lookup", total=None)
        machine = environment(folder)
        rng = np.random.default_rng(1)
        table = rng.standard_normal((rows, dim), np.float32)
        lengths = np.full(_BAGS, length, np.int64)
        calls = [bags_of(lengths, rng.integers(0, rows, _BAGS * length)) for _ in range(_CALLS)]
        found, told = _measure(
            folder, table, calls, profile, clock, seconds, lambda t: progress.update(task, description=t)
        )
    machine["lookup"] = {"rows": rows, "dim": dim, "length": length, "profile": profile, "clock": clock, **told}
    return {"environment": machine, **found}


def _measure(
    folder: Path, table: Rows, calls: list[Bags], profile: str, clock: str, seconds: float, tell: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    rows, dim = table.shape
    tell(f"storing {rows} rows of {dim}")
    with (
        Drive.start(profile, size=(2 * table.nbytes >> 20) + 64 << 20, store=folder, clock=clock) as drive,
        Table.create(drive, "bench", table) as stored,
    ):
        out = drive.alloc((calls[0].count, dim), np.float32)
        peer = _torch_bag(table)
        inside: list[_Timed] = []
        beside: list[_Timed] = []
        for turn in range(_ROUNDS):
            tell(f"looking up in the drive, {turn + 1} of {_ROUNDS}")
            inside.append(_timed(lambda bags: _look_up(stored, bags, out), calls, seconds / _ROUNDS))
            if peer is not None:
                tell(f"and in torch.nn.EmbeddingBag, {turn + 1} of {_ROUNDS}")
                beside.append(_timed(peer, calls, seconds / _ROUNDS))
        began = drive.clock.now
        _look_up(stored, calls[0], out)
        modelled = len(calls[0].indices) * 1e9 / (drive.clock.now - began)
        stats = stored.stats
    tell("checking")
    rate = float(np.median([timed.rate for timed in inside]))
    others = float(np.median([timed.rate for timed in beside])) if beside else None
    answers = [inside[0].sums, *(timed.sums for timed in beside[:1])]
    wanted = sums_in_order(table, calls[0])
    found = {
        "vectors_per_s": round(rate),
        "torch_ratio": None if others is None else round(rate / others, 4),
        "bit_equal": all(np.array_equal(a.view(np.uint32), wanted.view(np.uint32)) for a in answers),
    }
    told = {
        "torch_vectors_per_s": None if others is None else round(others),
        "rates": [round(timed.rate) for timed in inside],
        "flash_reads": stats.flash_reads,
        "modelled_vectors_per_s": round(modelled),
        "bags_a_call": calls[0].count,
    }
    return found, told


def _timed(call: Callable[[Bags], Rows], calls: list[Bags], seconds: float) -> _Timed:
    """The rate over at least ``seconds``, after one call to warm up; the sums are those of the first call."""
    sums = call(calls[0]).copy()
    vectors, began = 0, time.perf_counter()
    turn = 0
    while (elapsed := time.perf_counter() - began) < seconds or turn == 0:
        bags = calls[turn % len(calls)]
        call(bags)
        vectors += len(bags.indices)
        turn += 1
    return _Timed(vectors, elapsed, sums)


def _look_up(table: Table, bags: Bags, out: Rows) -> Rows:
    return table.lookup(bags.indices, bags.offsets, out=out, include_last_offset=True)


def _torch_bag(table: Rows) -> Callable[[Bags], Rows] | None:
    """The same lookup in PyTorch, on one thread; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    module = torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(table), mode="sum", include_last_offset=True)

    def call(bags: Bags) -> Rows:
        with torch.no_grad():
            sums: Rows = module(torch.from_numpy(bags.indices), torch.from_numpy(bags.offsets)).numpy()
        return sums

    return call
