"""Runs in a machine: a table that is a file of the shared filesystem, looked up through this machine's port.

    ocfs2_table.py make FILE          write rows, look bags up
    ocfs2_table.py ask FILE           look bags up
    ocfs2_table.py change FILE ROW    other values for one row, in place, as any program would write a file

The last line printed is JSON: the bags' sums.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from emucsd.table import Table

SHAPE = (5000, 32)
INDICES = [[0, 1, 2, 3], [4999, 17, 17, 250]]


def rows() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Whole numbers: sums are exact in any order."""
    return (np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32) % 1009).reshape(SHAPE)


def change(path: Path, row: int) -> None:
    """Negative values."""
    size = SHAPE[1] * 4
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), (-rows()[row]).tobytes(), row * size)
        os.fsync(file.fileno())


def main(words: list[str]) -> None:
    """See the top."""
    path = Path(words[1])
    if words[0] == "change":
        change(path, int(words[2]))
        return
    with Table.create_file(path, rows()) if words[0] == "make" else Table.from_file(path) as table:
        print(json.dumps(np.asarray(table.lookup(np.array(INDICES))).sum(axis=1).tolist()))


if __name__ == "__main__":
    main(sys.argv[1:])
