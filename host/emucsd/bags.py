"""A lookup's arguments, as ``torch.nn.functional.embedding_bag`` takes them, as ids, offsets and weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.errors import InvalidArgument

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]


class BagArguments(NamedTuple):
    """Ids in one row, bags + 1 rising offsets, and a weight for each id or None."""

    ids: Ids
    offsets: Ids
    weights: Weights | None


def bags_of(
    indices: ArrayLike,
    offsets: ArrayLike | None,
    *,
    include_last_offset: bool = False,
    per_sample_weights: ArrayLike | None = None,
    padding_idx: int | None = None,
    rows: int = 0,
) -> BagArguments:
    """:param rows: of the table: a negative ``padding_idx`` counts from there
    :raises InvalidArgument: no whole numbers, offsets that fall or pass the ids, weights of another shape
    """
    given = np.asarray(indices)
    if given.size and given.dtype.kind not in "iu":
        raise InvalidArgument(f"indices are {given.dtype}; row ids are whole numbers")
    if given.dtype == np.uint64 and given.size and int(given.max()) >> 63:
        raise InvalidArgument("indices of 2**63 and more name no row of any table")
    bounds = _bounds(given, offsets, include_last_offset)
    ids = np.ascontiguousarray(given.reshape(-1), np.int64)
    weights = None
    if per_sample_weights is not None:
        weights = np.ascontiguousarray(per_sample_weights, np.float32)
        if weights.shape != given.shape:
            raise InvalidArgument(f"per_sample_weights have shape {list(weights.shape)}, indices {list(given.shape)}")
        weights = weights.reshape(-1)
    if padding_idx is None:
        return BagArguments(ids, bounds, weights)
    return _without(padding_idx + rows if padding_idx < 0 else padding_idx, ids, bounds, weights)


def _without(padding: int, ids: Ids, bounds: Ids, weights: Weights | None) -> BagArguments:
    """The bags without an id that stands for nothing: it is in no sum, and no mean counts it."""
    kept = ids != padding
    if kept.all():
        return BagArguments(ids, bounds, weights)
    before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    return BagArguments(ids[kept], before[bounds], None if weights is None else weights[kept])


def _bounds(ids: NDArray[np.generic], offsets: ArrayLike | None, include_last_offset: bool) -> Ids:
    if offsets is None:
        if ids.ndim != 2:
            raise InvalidArgument(f"indices of shape {list(ids.shape)} without offsets; give [bags, n], or offsets")
        even: Ids = np.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[1]
        return even
    starts = np.asarray(offsets)
    if ids.ndim != 1 or starts.ndim != 1 or (starts.size and starts.dtype.kind not in "iu"):
        raise InvalidArgument("with offsets, indices and offsets are each one row of whole numbers")
    bounds = starts.astype(np.int64)
    if not include_last_offset:
        bounds = np.append(bounds, ids.size)
    _check_bounds(bounds, ids.size)
    return bounds


def _check_bounds(bounds: Ids, size: int) -> None:
    """Offsets must rise from 0 to the number of ids: requests are cut along them, before the drive sees any."""
    if not len(bounds):
        raise InvalidArgument("offsets are empty; with include_last_offset there is at least the last one")
    wrong = np.flatnonzero(np.diff(bounds) < 0)
    if bounds[0] != 0 or bounds[-1] != size or len(wrong):
        at = 0 if bounds[0] != 0 else int(wrong[0]) + 1 if len(wrong) else len(bounds) - 1
        raise InvalidArgument(
            f"offsets[{at}] = {int(bounds[at])}: offsets rise from 0 and end at {size} ids at the most"
        )
