"""A batch's inputs, in one form, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.rm.errors import InputError

if TYPE_CHECKING:
    from emucsd.rm.shape import Shape

Ids = NDArray[Any]  # whole numbers of any width
Floats = NDArray[np.float32]
SparseLike = (
    Any  # array [samples, tables, n]; or for each table (indices, offsets[, weights]) or [samples, n]; or Sparse
)


@dataclass(frozen=True)
class Sparse:
    """The ids of a batch.

    :ivar ids: for each table, the ids of all its bags, in one row; None where ``cube`` has them
    :ivar cube: [samples, tables, n]: bags of one length; None: see ``ids``
    :ivar bounds: int64[tables, samples + 1]: bag ``s`` of table ``t`` is ``ids[t][bounds[t, s]:bounds[t, s + 1]]``
    :ivar weights: for each table a factor for every id, or None
    """

    samples: int
    bounds: NDArray[np.int64]
    ids: list[Ids] | None = None
    cube: Ids | None = None
    weights: list[Floats] | None = None

    def table(self, number: int) -> Ids:
        """The ids of one table, in one row."""
        if self.ids is not None:
            return self.ids[number]
        assert self.cube is not None
        return self.cube[:, number, :].reshape(-1)

    @property
    def lookups(self) -> int:
        """Ids, over all tables."""
        return int(self.bounds[:, -1].sum())

    @classmethod
    def of(cls, tables: int, sparse: SparseLike, samples: int | None = None) -> Sparse:
        """Any of the forms, checked.

        :param tables: how many the model has
        :param samples: how many are wanted; None: as many as come
        :raises InputError: another number of tables or samples, no whole numbers, offsets that fall, do not start
            at 0 or pass the ids
        """
        if isinstance(sparse, Sparse):
            found = sparse
        elif not isinstance(sparse, list | tuple) and np.ndim(sparse) == 3:
            found = _from_cube(np.asarray(sparse))
        else:
            found = _from_tables(list(sparse), samples)
        if len(found.bounds) != tables:
            raise InputError(f"ids for {len(found.bounds)} tables; the model has {tables}")
        if samples is not None and found.samples != samples:
            raise InputError(f"ids of {found.samples} samples, dense features of {samples}")
        return found


def _from_cube(cube: Ids) -> Sparse:
    _check_whole(cube, "ids")
    samples, tables, length = cube.shape
    bounds = np.broadcast_to(np.arange(samples + 1, dtype=np.int64) * length, (tables, samples + 1))
    return Sparse(samples, bounds, cube=cube)


def _from_tables(tables: Sequence[Any], samples: int | None) -> Sparse:
    ids: list[Ids] = []
    bounds: NDArray[np.int64] | None = None
    weights: list[Floats] = []
    for number, item in enumerate(tables):
        pair = isinstance(item, list | tuple) and len(item) in (2, 3) and np.ndim(item[0]) == 1
        indices = np.asarray(item[0] if pair else item)
        _check_whole(indices, f"table {number}: indices")
        if pair:
            offsets = np.asarray(item[1])
        elif indices.ndim == 2:
            offsets = np.arange(len(indices) + 1, dtype=np.int64) * indices.shape[1]
            indices = indices.reshape(-1)
        else:
            raise InputError(f"table {number}: give (indices, offsets), or indices [samples, n]")
        if indices.ndim != 1 or offsets.ndim != 1 or (offsets.size and offsets.dtype.kind not in "iu"):
            raise InputError(f"table {number}: indices and offsets are each one row of whole numbers")
        if samples is None:
            samples = len(offsets) - (not pair)
        if bounds is None:
            bounds = np.empty((len(tables), samples + 1), np.int64)
        _fill_row(bounds[number], number, offsets, samples, indices.size)
        ids.append(indices)
        if pair and len(item) == 3 and item[2] is not None:
            weights.append(_weights(number, item[2], indices.size))
    if weights and len(weights) != len(ids):
        raise InputError(f"weights for {len(weights)} of {len(ids)} tables; give them for all, or for none")
    if bounds is None or samples is None:
        raise InputError("no ids: give (indices, offsets) for each table of the model")
    _check_rising(bounds, ids)
    return Sparse(samples, bounds, ids=ids, weights=weights or None)


def _fill_row(row: NDArray[np.int64], number: int, offsets: Ids, samples: int, size: int) -> None:
    """Offsets with their end."""
    if len(offsets) == samples:
        row[:samples], row[samples] = offsets, size
    elif len(offsets) == samples + 1:
        row[:] = offsets
    else:
        raise InputError(
            f"table {number}: {len(offsets)} offsets for {samples} samples; give one each, or the end as well"
        )


def _check_rising(bounds: NDArray[np.int64], ids: Sequence[Ids]) -> None:
    sizes = [len(row) for row in ids]
    if not bounds[:, 0].any() and bounds[:, -1].tolist() == sizes and not (bounds[:, 1:] < bounds[:, :-1]).any():
        return
    for number, row in enumerate(bounds):
        falls = np.flatnonzero(np.diff(row) < 0)
        at = 0 if row[0] else int(falls[0]) + 1 if len(falls) else len(row) - 1
        if row[0] or len(falls) or row[-1] != sizes[number]:
            raise InputError(
                f"table {number}: offsets[{at}] = {int(row[at])}; they rise from 0 and end at {sizes[number]} ids"
            )


def _check_whole(ids: Ids, name: str) -> None:
    if ids.size and ids.dtype.kind not in "iu":
        raise InputError(f"{name} are {ids.dtype}; row ids are whole numbers")


def _weights(number: int, weights: ArrayLike, size: int) -> Floats:
    factors = np.asarray(weights)
    if factors.shape != (size,) or factors.dtype.kind != "f":
        raise InputError(
            f"table {number}: weights {factors.dtype}{list(factors.shape)}; one FP32 for each of {size} ids"
        )
    return np.asarray(factors, np.float32)


def dense_of(model: Shape, dense: ArrayLike | None, samples: int | None = None) -> Floats | None:
    """FP32[samples, dense], or None where the model takes none. :raises InputError: another shape or dtype"""
    if dense is None:
        if model.dense:
            raise InputError(f"{model.name} takes {model.dense} dense features a sample; none were given")
        return None
    array = np.asarray(dense)
    if array.dtype != np.float32:
        raise InputError(f"dense features are {array.dtype}; give float32, .astype(np.float32)")
    if array.ndim != 2 or array.shape[1] != model.dense or (samples is not None and len(array) != samples):
        raise InputError(f"dense features are {list(array.shape)}; {model.name} takes [samples, {model.dense}]")
    return array


def checked(model: Shape, dense: ArrayLike | None, sparse: SparseLike) -> tuple[Floats | None, Sparse]:
    """Both, of as many samples. :raises InputError: they do not fit the model, or each other"""
    features = dense_of(model, dense)
    samples = len(features) if features is not None and model.dense else None
    return features, Sparse.of(len(model.tables), sparse, samples)


def random_batch(
    model: Shape, samples: int, seed: int
) -> tuple[Floats, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
    """See ``Model.random_batch``."""
    rng = np.random.default_rng((seed, 2))
    dense = rng.random((samples, model.dense), np.float32)
    sparse = []
    for table in model.tables:
        offsets = np.arange(samples, dtype=np.int64) * table.lookups
        sparse.append((rng.integers(0, table.rows, samples * table.lookups), offsets))
    return dense, sparse
