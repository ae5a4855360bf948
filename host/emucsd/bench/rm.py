"""`emucsd bench rm`: whole models inferred inside the drive, as one JSON object.

    from emucsd.bench.rm import run_rm_bench
    print(json.dumps(run_rm_bench(seconds=2), indent=2))

RMC1, RMC2 and RMC3 of DeepRecSys, with fewer rows so that their tables fit this machine's memory twice: once in the
drive, once for PyTorch. Every row is as likely. Profile ``rmssd`` in virtual time: each vector is timed on its die and
channel, each layer on the engine. What is measured is wall time: the same batches through a Session in the drive, and
through the same model in PyTorch with one thread and its tables in memory, in turn in the same run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from emucsd.bench.environment import environment, scratch_folder
from emucsd.drive import Drive
from emucsd.errors import InvalidArgument
from emucsd.rm.model import Model
from emucsd.rm.session import Session
from emucsd.rm.weights import Weights

MODELS = ("rmc1", "rmc2", "rmc3")
BATCHES = (1, 16, 64)
TABLE_BYTES = 512 << 20  # of a model's tables, where the caller does not say
KEYS = (
    "environment",
    *(f"{name}_{what}" for name in MODELS for what in ("inferences_per_s", "torch_ratio")),
    "bit_equal",
    "worst_difference",
)
_CALLS = 16  # different batches, in turn
_ROUNDS = 3  # of drive and torch in turn; the median counts
_SEED = 1

Rows = NDArray[np.float32]
Batch = tuple[Rows, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]
Infer = Callable[[Iterable[Batch]], Iterator[Rows]]


class Found(NamedTuple):
    """One model at one batch size: samples a wall second in the drive, and in PyTorch where that is installed."""

    drive: float
    torch: float | None


class Peer(NamedTuple):
    """The model in PyTorch: answers of batches in turn, and the tables' sums of one."""

    infer: Infer
    sums: Callable[[Batch], Rows]


def run_rm_bench(
    *,
    seconds: float = 2.0,
    models: Sequence[str] = MODELS,
    batches: Sequence[int] = BATCHES,
    table_bytes: int = TABLE_BYTES,
    profile: str = "rmssd",
    clock: str = "virtual",
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure on drives with stores of their own that are removed again.

    :param seconds: that each side is measured for, at each batch size
    :param batches: sizes; the figures are those of the largest, the others are in ``environment["rm"]``
    :param table_bytes: of each model's tables: what fits memory twice
    :returns: exactly ``KEYS`` (None for a model that was left out): inferences a wall second; the ratio to PyTorch's
        (None without it); ``bit_equal``: the tables' sums against PyTorch's and NumPy's; ``worst_difference`` of an
        answer from NumPy's, relative
    :raises InvalidArgument: no time to measure in, or no model
    """
    if seconds <= 0 or not models or not batches or min(batches) < 1:
        raise InvalidArgument(f"{seconds} s, models {list(models)}, batches {list(batches)}: give each, above 0")
    shown = console or Console(stderr=True)
    result: dict[str, Any] = dict.fromkeys(KEYS)
    told: dict[str, Any] = {"profile": profile, "clock": clock, "seconds": seconds}
    equal, worst = [], []
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=shown, transient=True, disable=not shown.is_terminal,
    ) as progress, scratch_folder(table_bytes, on_disk=True) as folder:  # fmt: skip
        task = progress.add_task("bench rm", total=None)
        machine = environment(folder)
        for name in models:
            model = sized(name, table_bytes)

            def tell(text: str, name: str = name) -> None:
                progress.update(task, description=f"{name}: {text}")

            run = _Run(model, folder / name, profile, clock, seconds, tell)
            found, about = run.measure(sorted(batches))
            last = found[max(found)]
            result[f"{name}_inferences_per_s"] = round(last.drive)
            result[f"{name}_torch_ratio"] = None if last.torch is None else round(last.drive / last.torch, 4)
            equal.append(about.pop("bit_equal"))
            worst.append(about["worst_difference"])
            told[name] = about
    machine["rm"] = told
    return {**result, "environment": machine, "bit_equal": all(equal), "worst_difference": max(worst)}


def sized(name: str, table_bytes: int) -> Model:
    """A published model whose tables take about this much, and no more rows than published."""
    model = Model.named(name)
    rows = table_bytes // sum(4 * table.dim for table in model.tables)
    return model.with_rows([max(1, min(rows, table.rows)) for table in model.tables])


class _Run:
    """One model on a drive of its own and beside it."""

    def __init__(
        self, model: Model, folder: Path, profile: str, clock: str, seconds: float, tell: Callable[[str], None]
    ) -> None:
        self.model, self.folder, self.profile, self.clock = model, folder, profile, clock
        self.seconds, self.tell = seconds, tell
        self.weights = model.random_weights(_SEED)

    def measure(self, sizes: Sequence[int]) -> tuple[dict[int, Found], dict[str, Any]]:
        """Each batch size, and what else is to be told."""
        self.tell("making tables")
        rows = [self.model.random_table(number, _SEED) for number in range(len(self.model.tables))]
        room = sum(table.nbytes for table in rows)
        self.tell(f"storing {room >> 20} MiB")
        with Drive.start(self.profile, size=(2 * room >> 20) + 64 << 20, store=self.folder, clock=self.clock) as drive:
            tables = self.model.create_tables(drive, tables=rows)
            peer = torch_peer(self.model, self.weights, rows)
            with Session.open(drive, self.model, tables=tables, weights=self.weights) as session:
                found = {size: self._at(session, peer, size, drive) for size in sizes}
                about = self._told(session, found)
                about["worst_difference"] = self._difference(session, rows, sizes[-1])
            about["bit_equal"] = self._sums_equal(drive, peer, sizes[-1])
            for table in tables:
                table.close()
        return found, about

    def _batches(self, size: int) -> list[Batch]:
        return [self.model.random_batch(size, seed) for seed in range(_CALLS)]

    def _at(self, session: Session, peer: Peer | None, size: int, drive: Drive) -> Found:
        batches = self._batches(size)
        inside: list[float] = []
        beside: list[float] = []
        for turn in range(_ROUNDS):
            self.tell(f"batch {size} in the drive, {turn + 1} of {_ROUNDS}")
            inside.append(rate(session.stream, batches, self.seconds / _ROUNDS))
            if peer is not None:
                self.tell(f"batch {size} in PyTorch, {turn + 1} of {_ROUNDS}")
                beside.append(rate(peer.infer, batches, self.seconds / _ROUNDS))
        return Found(float(np.median(inside)), float(np.median(beside)) if beside else None)

    def _told(self, session: Session, found: dict[int, Found]) -> dict[str, Any]:
        drive, info = session.drive, session.info
        batches = self._batches(max(found))
        began = drive.clock.now
        for _ in session.stream(batches):
            pass
        modelled = max(found) * len(batches) * 1e9 / max(drive.clock.now - began, 1)
        return {
            "rows": self.model.tables[0].rows,
            "tables": len(self.model.tables),
            "table_mib": self.model.table_bytes >> 20,
            "batches": {
                str(size): {
                    "inferences_per_s": round(f.drive),
                    "torch_inferences_per_s": None if f.torch is None else round(f.torch),
                    "torch_ratio": None if f.torch is None else round(f.drive / f.torch, 4),
                }
                for size, f in found.items()
            },
            "depth": session.depth,
            "modelled_inferences_per_s": round(modelled),
            "minibatch": info.minibatch,
        }

    def _difference(self, session: Session, rows: list[Rows], size: int) -> float:
        """The worst relative difference of an answer from NumPy's."""
        self.tell("checking")
        dense, sparse = self._batches(size)[0]
        wanted = self.model.reference(self.weights, rows, dense, sparse)
        return float(np.max(np.abs(session.infer(dense, sparse) - wanted) / np.abs(wanted)))

    def _sums_equal(self, drive: Drive, peer: Peer | None, size: int) -> bool:
        """Sums of a batch in the drive, bit for bit as NumPy's (and PyTorch's) in index order."""
        from emucsd.rm.inputs import Sparse
        from emucsd.rm.reference import bag_sums

        dense, sparse = self._batches(size)[0]
        with Session.open(drive, self.model, mlp=False) as bare:
            ours = bare.infer(None, sparse)
            ids = Sparse.of(len(sparse), sparse)
            numpys = [bag_sums(n, table.read_rows(), ids) for n, table in enumerate(bare.tables)]
        answers = [np.concatenate(numpys, axis=1)]
        if peer is not None:
            answers.append(peer.sums((dense, sparse)))
        return all(np.array_equal(ours.view(np.uint32), answer.view(np.uint32)) for answer in answers)


def rate(infer: Infer, batches: Sequence[Batch], seconds: float) -> float:
    """Samples a second over at least ``seconds``, after a round to warm up."""
    for _ in infer(batches):
        pass
    samples, began = 0, time.perf_counter()
    stop = began + seconds

    def fed() -> Iterator[Batch]:
        for batch in itertools.cycle(batches):
            yield batch
            if time.perf_counter() >= stop:
                return

    for answer in infer(fed()):
        samples += len(answer)
    return samples / (time.perf_counter() - began)


def torch_peer(model: Model, weights: Weights, rows: Sequence[Rows]) -> Peer | None:
    """The same model in PyTorch, on one thread; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    bags = [torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(table), mode="sum") for table in rows]
    layers = [tuple(torch.from_numpy(part) for part in layer) for layer in weights.layers]
    activations = {"relu": torch.relu_, "sigmoid": torch.sigmoid_, "none": lambda values: values}

    def run(values: Any, first: int, last: int) -> Any:
        for number in range(first, last):
            values = torch.nn.functional.linear(values, *layers[number])
            values = activations[model.layers[number].activation](values)
        return values

    def sums(batch: Batch) -> list[Any]:
        pairs = zip(bags, batch[1], strict=True)
        return [bag(torch.from_numpy(ids), torch.from_numpy(offsets)) for bag, (ids, offsets) in pairs]

    def infer(batches: Iterable[Batch]) -> Iterator[Rows]:
        for batch in batches:
            with torch.inference_mode():
                bottom = run(torch.from_numpy(batch[0]), 0, len(model.bottom))
                joined = torch.cat([bottom, *sums(batch)], dim=1)
                answer: Rows = run(joined, len(model.bottom), len(model.layers)).numpy()
            yield answer

    def all_sums(batch: Batch) -> Rows:
        with torch.inference_mode():
            joined: Rows = torch.cat(sums(batch), dim=1).numpy()
        return joined

    return Peer(infer, all_sums)
