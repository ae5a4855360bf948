"""Row types of tables: FP32 to what a drive stores, and back, in NumPy; ``emucsd_wire.vendor`` has the layouts.

INT8 and INT4 are quantised row by row, affinely, between the row's least and greatest element, by the formulas of
FBGEMM's fused row-wise operators, which PyTorch's quantised embedding bags use. With lo, hi of a row, in FP32:

- INT8: ``scale = (hi - lo) / 255``, ``bias = lo``, ``q = rint((x - lo) * (255 / (hi - lo + 1e-8)))``;
- INT4: ``bias = half(lo)``, ``scale = half((hi - bias) / 15)`` (1 where that is 0 or has no inverse),
  ``q = rint((x - bias) * (1 / scale))``, held within 0 and 15; half() rounds to FP16.

Either way an element comes back as ``q * scale + bias``, within half a step (a ``scale``) of what it was, or for INT4
within the rounding of its FP16 scale and bias. Rows of a generated table are made here as the drive makes them.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd_wire.vendor import Dtype, content_bytes

Rows = NDArray[np.float32]
Stored = NDArray[np.uint8]

DTYPES = {"float32": Dtype.FP32, "float16": Dtype.FP16, "int8": Dtype.INT8, "int4": Dtype.INT4}
NAMES = {kind: name for name, kind in DTYPES.items()}
PAGE = 4096  # the smallest flash page: a row that lies within one of these lies within a page of any drive
_GOLDEN64, _GOLDEN32 = 0x9E3779B97F4A7C15, 0x9E3779B9
_EPSILON = np.float32(1e-8)


class Generated(NamedTuple):
    """A table's rows as a seed: ``Table.create(drive, name, generated(seed, rows, dim))``."""

    seed: int
    rows: int
    dim: int


def generated(seed: int, rows: int, dim: int) -> Generated:
    """Rows that exist without being stored, as FP32 in [-1, 1): ``generated_rows`` says what they are.

    :param seed: 0 to 2**64 - 1
    """
    if not 0 <= seed < 1 << 64:
        raise InvalidArgument(f"seed {seed}: 0 to 2**64 - 1")
    return Generated(int(seed), int(rows), int(dim))


def dtype_of(name: str) -> Dtype:
    """:raises InvalidArgument: no row type of this name"""
    try:
        return DTYPES[name]
    except KeyError:
        raise InvalidArgument(f"dtype {name!r}: a table's rows are {', '.join(DTYPES)}") from None


def stride_of(dtype: Dtype, dim: int) -> int:
    """Bytes from one row to the next where nobody says: FP32 lies packed, so that a table is a plain array in its file;
    other types' rows stay within pages: the content's, up to the next power of two.

    Rows above 4096 bytes lie packed: they cross pages of 4096 bytes anyway.
    """
    content = content_bytes(dtype, dim)
    return 1 << (content - 1).bit_length() if dtype != Dtype.FP32 and content <= PAGE else content


def encode(rows: Rows, dtype: Dtype) -> Stored:
    """uint8[rows, content bytes] as a drive stores FP32[rows, dim].

    :raises InvalidArgument: a quantised row with an element that is not finite
    """
    _little_endian()
    rows = np.ascontiguousarray(rows, np.float32)
    if dtype == Dtype.FP32:
        return rows.view(np.uint8)
    if dtype == Dtype.FP16:
        with np.errstate(over="ignore"):
            return rows.astype(np.float16).view(np.uint8)
    if not np.isfinite(rows).all():
        raise InvalidArgument(f"rows of {NAMES[dtype]} hold finite numbers only; use float16 or float32")
    return _encode_int8(rows) if dtype == Dtype.INT8 else _encode_int4(rows)


def _encode_int8(rows: Rows) -> Stored:
    low = rows.min(axis=1, keepdims=True)
    span = rows.max(axis=1, keepdims=True) - low
    steps = np.rint((rows - low) * (np.float32(255) / (span + _EPSILON)))
    tail = np.hstack([span / np.float32(255), low]).astype(np.float32)
    return np.hstack([np.clip(steps, 0, 255).astype(np.uint8), tail.view(np.uint8)])


def _encode_int4(rows: Rows) -> Stored:
    with np.errstate(over="ignore", divide="ignore"):
        bias = rows.min(axis=1, keepdims=True).astype(np.float16)
        low = bias.astype(np.float32)
        span = rows.max(axis=1, keepdims=True) - low
        scale = np.where(span == 0, np.float32(1), span / np.float32(15)).astype(np.float16)
        inverse = np.float32(1) / scale.astype(np.float32)
    unusable = (scale == 0) | np.isinf(inverse)
    scale, inverse = np.where(unusable, np.float16(1), scale), np.where(unusable, np.float32(1), inverse)
    steps = np.clip(np.rint((rows - low) * inverse), 0, 15).astype(np.uint8)
    if steps.shape[1] % 2:
        steps = np.hstack([steps, np.zeros((len(steps), 1), np.uint8)])
    tail = np.hstack([scale, bias]).astype(np.float16)
    return np.hstack([steps[:, ::2] | steps[:, 1::2] << 4, tail.view(np.uint8)])


def decode(stored: Stored, dtype: Dtype, dim: int) -> Rows:
    """FP32[rows, dim] of uint8[rows, content bytes]: the very elements that a drive adds."""
    _little_endian()
    stored = np.ascontiguousarray(stored)
    if dtype == Dtype.FP32:
        return stored.view(np.float32)
    if dtype == Dtype.FP16:
        return stored.view(np.float16).astype(np.float32)
    if dtype == Dtype.INT8:
        tail = np.ascontiguousarray(stored[:, dim:]).view(np.float32)
        steps = stored[:, :dim]
    else:
        half = (dim + 1) // 2
        tail = np.ascontiguousarray(stored[:, half:]).view(np.float16).astype(np.float32)
        steps = np.empty((len(stored), 2 * half), np.uint8)
        steps[:, ::2], steps[:, 1::2] = stored[:, :half] & 15, stored[:, :half] >> 4
        steps = steps[:, :dim]
    product: Rows = steps.astype(np.float32) * tail[:, :1]
    return product + tail[:, 1:]


def generated_rows(seed: int, ids: NDArray[np.int64], dim: int) -> Rows:
    """FP32[ids, dim]: those rows of a generated table, bit for bit as the drive makes them."""
    with np.errstate(over="ignore"):
        key = np.uint64(seed) + (np.asarray(ids).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
        key ^= key >> np.uint64(31)
        low, high = key.astype(np.uint32)[:, None], (key >> np.uint64(32)).astype(np.uint32)[:, None]
        h = low + np.arange(dim, dtype=np.uint32) * np.uint32(_GOLDEN32)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B) + high
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
    elements: Rows = (h.view(np.int32) >> 8).astype(np.float32) * np.float32(2.0**-23)
    return elements


def _little_endian() -> None:
    assert sys.byteorder == "little", "tables are little-endian; this machine is not"
