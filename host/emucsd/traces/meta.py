"""Meta's ``dlrm_datasets``: embedding lookups with the reuse of production, as tensors of PyTorch.

A file (``.pt``, or ``.pt.gz`` as they are published) is what ``torch.save`` made of (indices, offsets, lengths):
``lengths[t, s]`` ids in sample s's bag of table t, and all ids one table after the other, sample after sample. It says
neither how many rows a table has nor how wide they are: the largest id of a table is taken for its last row.
"""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.traces.bags import Bags, Lookups
from emucsd.traces.errors import TraceFormat, TraceNeedsTorch
from emucsd.traces.trace import Recorded


def load_meta(path: str | Path, tables: Sequence[int] | None = None, *, samples: int | None = None) -> Recorded:
    """Some tables of a file as a trace; a table is named by its number, ``t17``.

    A plain ``.pt`` is mapped, so only the tables asked for are read; ``.pt.gz`` is unpacked into memory whole (the
    published ones have some GB: unpack them once).

    :param tables: their numbers; None: all
    :param samples: how many, from the first on; None: all
    :raises TraceFormat: not such tensors
    :raises TraceNeedsTorch: PyTorch is not installed
    :raises InvalidArgument: a table that the file does not have
    """
    indices, offsets, lengths = _tensors(path)
    count, bags = lengths.shape
    _check(path, indices, offsets, lengths)
    chosen = range(count) if tables is None else tables
    wrong = [table for table in chosen if not 0 <= table < count]
    if wrong:
        raise InvalidArgument(f"table {wrong[0]}: {path} has tables 0 to {count - 1}")
    bags = bags if samples is None else min(samples, bags)
    lookups = []
    for table in chosen:
        first = table * lengths.shape[1]
        bounds = offsets[first : first + bags + 1].astype(np.int64)
        everything = indices[offsets[first] : offsets[first + lengths.shape[1]]]
        ids = everything[: bounds[-1] - bounds[0]].astype(np.int64)
        if everything.min(initial=0) < 0:
            raise TraceFormat(path, f"{everything.min()} in table {table} is no row", field="indices")
        rows = int(everything.max(initial=0)) + 1
        lookups.append(Lookups(f"t{table}", rows, Bags(ids, bounds - bounds[0])))
    return Recorded(Path(path).name, lookups)


def _tensors(path: str | Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Indices, offsets (of every bag, and the end), lengths[tables, samples]."""
    try:
        import torch
    except ImportError as error:
        raise TraceNeedsTorch(f"{path} is PyTorch's; install the extra: pip install 'emucsd[torch]'") from error
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if packed:
            with gzip.open(path) as unpacked:
                found = torch.load(io.BytesIO(unpacked.read()), weights_only=True)
        else:
            found = torch.load(path, weights_only=True, mmap=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise TraceFormat(path, f"PyTorch can't load it: {str(error).splitlines()[0]}") from error
    names = ("indices", "offsets", "lengths")
    if not isinstance(found, tuple | list) or len(found) != 3:
        raise TraceFormat(path, f"holds {type(found).__name__}; wanted are three tensors: {', '.join(names)}")
    arrays = []
    for name, tensor, dims in zip(names, found, (1, 1, 2), strict=True):
        array = tensor.numpy() if isinstance(tensor, torch.Tensor) else np.zeros(0, "S1")
        if array.dtype.kind not in "iu" or array.ndim != dims:
            raise TraceFormat(path, f"is no {dims}-dimensional tensor of whole numbers", field=name)
        arrays.append(array)
    return arrays[0], arrays[1], arrays[2]


def _check(path: str | Path, indices: NDArray[Any], offsets: NDArray[Any], lengths: NDArray[Any]) -> None:
    """:raises TraceFormat: the three contradict each other"""
    if len(offsets) != lengths.size + 1:
        raise TraceFormat(
            path, f"{len(offsets)} of them, lengths are {list(lengths.shape)}; one a bag and the end", field="offsets"
        )
    if not np.array_equal(np.diff(offsets), lengths.reshape(-1)) or offsets[0] != 0 or (lengths < 0).any():
        raise TraceFormat(path, "do not rise by lengths from 0 on", field="offsets")
    if offsets[-1] != len(indices):
        raise TraceFormat(path, f"end at {offsets[-1]}, there are {len(indices)} indices", field="offsets")
