"""Runs in the host machine, as root: a session over Linux's own nvme driver, its tables fragmented files of ext4.

    rm_worker.py /dev/nvme0 CASE.npz

The case has `rows` (FP32[tables, rows, dim]), layers (`weight0`, `bias0` and so on), `dense`, `ids0`, `offsets0` and so
on. The last line is JSON: extents of each table, outputs as hex, what came of two faults. Overwrites the namespace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from emucsd import Drive, Table
from emucsd.baselines.recssd import RecSsdTables
from emucsd.linux import nodes
from emucsd.rm import EmbeddingTable, Model, Session
from emucsd.rm.errors import IndexOutOfRangeOfTable, SessionClosed
from emucsd.rm.shape import stack
from emucsd.rm.weights import LayerWeights, Weights

MOUNT = Path("/run/rm_worker")
FILE_SYSTEM = "32M"
HOLE = 16 << 10  # bytes between two files that stay
PIECES = 4  # at least, of each table
NOT_HERE = ("numba", "llvmlite", "rich", "msgspec", "torch")


def model_of(rows: int, dim: int, tables: int) -> Model:
    """The model of the case: the test makes the same one."""
    kinds = tuple(EmbeddingTable(rows, dim, 8, "sum") for _ in range(tables))
    width = dim * (tables + 1)
    return Model("guest", 12, stack((12, 32, dim)), kinds, "cat", stack((width, 40, 2), last="sigmoid"))


def weights_of(model: Model, case: Any) -> Weights:
    """The case's layers."""
    layers = [LayerWeights(case[f"weight{n}"], case[f"bias{n}"]) for n in range(len(model.layers))]
    return Weights.of(model, layers)


def sparse_of(case: Any) -> list[tuple[Any, Any]]:
    """The case's ids."""
    return [(case[f"ids{n}"], case[f"offsets{n}"]) for n in range(len(case["rows"]))]


def shell(*words: str) -> None:
    """Run a program. :raises RuntimeError: it fails"""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.returncode} {done.stderr}")


@contextmanager
def fragmented(device: str) -> Iterator[Path]:
    """A fresh ext4 whose free space is in holes of HOLE bytes."""
    shell("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", device, FILE_SYSTEM)
    MOUNT.mkdir(exist_ok=True)
    shell("mount", "-t", "ext4", device, str(MOUNT))
    try:
        made = 0
        with suppress(OSError):
            while True:
                with open(MOUNT / f"fill-{made}", "wb") as file:
                    file.write(b"x" * HOLE)
                made += 1
                if made % 64 == 0:
                    os.sync()  # places are given when it is written out
        os.sync()
        for number in range(0, made, 2):
            (MOUNT / f"fill-{number}").unlink()
        os.sync()
        yield MOUNT
    finally:
        shell("umount", str(MOUNT))
        MOUNT.rmdir()


def table_in_pieces(drive: Drive, path: Path, rows: Any) -> Table:
    """A table's file; one that found a larger hole stays as a decoy and fills it."""
    for attempt in range(16):
        table = Table.create_file(path, rows, drive=drive)
        if len(table.info.extents) >= PIECES:
            break
        table.close()
        path.rename(path.with_name(f"decoy-{attempt}-{path.name}"))
    return table


def infer(drive: Drive, tables: list[Table], case: Any) -> dict[str, Any]:
    """The session's outputs; a bad id between two batches; a session closed in flight."""
    rows = case["rows"]
    model, sparse = model_of(rows.shape[1], rows.shape[2], len(rows)), sparse_of(case)
    found: dict[str, Any] = {"max_samples": 0}
    with Session.open(drive, model, tables=tables, weights=weights_of(model, case)) as session:
        found["max_samples"] = session.max_samples
        found["outputs"] = session.infer(case["dense"], sparse).tobytes().hex()
        batches = [(case["dense"], sparse)] * 6
        found["stream"] = all(out.tobytes().hex() == found["outputs"] for out in session.stream(batches))
        bad = sparse[0][0].copy()
        bad[5] = rows.shape[1]
        try:
            session.infer(case["dense"], [(bad, sparse[0][1]), *sparse[1:]])
        except IndexOutOfRangeOfTable as error:
            found["bad"] = [error.table, error.position, error.value]
        found["after_bad"] = session.infer(case["dense"], sparse).tobytes().hex()
        ticket = session.send(case["dense"], sparse)
    try:
        ticket.read()
    except SessionClosed:
        found["closed"] = True
    with Session.open(drive, model, tables=tables, weights=weights_of(model, case)) as session:
        found["again"] = session.infer(case["dense"], sparse).tobytes().hex()
    return found


def recssd(drive: Drive, rows: Any, sparse: list[tuple[Any, Any]]) -> list[str]:
    """RecSSD's sums of the case's tables, over the raw namespace, as hex; the drive was told to take its commands."""
    device = RecSsdTables(drive, [table.shape for table in rows], enable=False)
    for number, table in enumerate(rows):
        device.load(number, table)
    device.keep_rows(0, [1, 2, 3])
    return [sums.tobytes().hex() for sums in device.lookup(sparse)]


def main(node: Path, path: Path) -> int:
    (space,) = nodes.namespaces(node.name)
    case = np.load(path)
    with fragmented(str(space.block)) as folder, ExitStack() as stack_:
        drive = stack_.enter_context(Drive.open(node))
        tables = [
            stack_.enter_context(table_in_pieces(drive, folder / f"table-{n}", rows))
            for n, rows in enumerate(case["rows"])
        ]
        found = infer(drive, tables, case)
        found["extents"] = [len(table.info.extents) for table in tables]
        found["loaded"] = [name for name in NOT_HERE if name in sys.modules]
    with Drive.open(node) as drive:
        found["recssd"] = recssd(drive, case["rows"], sparse_of(case))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
