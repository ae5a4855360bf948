"""Criteo's display-advertising log: a label, 13 numbers and 26 categories a line.

The 24 day files (``day_0`` to ``day_23``, plain or ``.gz``) and the Kaggle set's ``train.txt`` are parted by tabs, with
no header; samples of it go around as CSV with one. A category is 32 bits in hexadecimal; any field may be empty. Each
category is a table, and a sample looks up one row of each, or none where its field is empty. Numbers become
log(1 + x), negative and missing ones 0, as facebookresearch/dlrm prepares them.

A file is read some MB at a time, by NumPy over all lines of a piece at once, so a day's tens of GB never lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.traces.bags import bags_of
from emucsd.traces.errors import TraceFormat
from emucsd.traces.files import Progress, pieces
from emucsd.traces.trace import Batch, TableShape, Trace

NUMBERS, CATEGORIES = 13, 26
FIELDS = 1 + NUMBERS + CATEGORIES
NAMES = ("label", *(f"I{n + 1}" for n in range(NUMBERS)), *(f"C{n + 1}" for n in range(CATEGORIES)))

# table sizes as MLPerf's DLRM uses them (its 40 M rows a table are the most): facebookresearch/dlrm
CRITEO_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10,
    2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip

_TAB, _COMMA, _LINE = ord("\t"), ord(","), ord("\n")
_DIGITS = 15  # of a number, at most: exact in float64
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_HEX[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


class _Lines(NamedTuple):
    """Fields of a piece: where each starts and ends, [lines, 40]."""

    text: Bytes
    start: Places
    end: Places


class _Parsed(NamedTuple):
    """A piece as numbers: FP32[n], FP32[n, 13], u32[n, 26] and which of those are there."""

    labels: NDArray[np.float32]
    dense: NDArray[np.float32]
    values: NDArray[np.uint32]
    present: NDArray[np.bool_]


def load_criteo(
    paths: str | Path | Sequence[str | Path],
    rows: Sequence[int] = CRITEO_ROWS,
    *,
    ids: Literal["hash", "modulo"] = "hash",
    progress: Progress | None = None,
) -> Trace:
    """The log as a trace of 26 tables, 13 numbers and a label; files are read while one goes over its batches.

    :param paths: one file, or several that follow each other
    :param rows: of each table
    :param ids: how 32 bits become a row: ``hash``, other in each column, spreads them; ``modulo`` is what
        facebookresearch/dlrm's ``--max-ind-range`` does
    :param progress: called with the bytes read of the current file, and its size
    :raises InvalidArgument: not 26 table sizes, or an unknown ``ids``
    :raises TraceFormat: while reading: the file, line and field that are at fault
    """
    if len(rows) != CATEGORIES or min(rows) < 1:
        raise InvalidArgument(f"{len(rows)} table sizes; Criteo's log has {CATEGORIES} categories, each > 0 rows")
    if ids not in ("hash", "modulo"):
        raise InvalidArgument(f"ids {ids!r}: 'hash' or 'modulo'")
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    sizes = np.array(rows, np.uint64)

    def source(size: int) -> Iterator[Batch]:
        waiting: list[_Parsed] = []
        count = 0
        for path in files:
            for parsed in _parsed(path, progress):
                waiting.append(parsed)
                count += len(parsed.labels)
                if count >= size:
                    whole = _joined(waiting)
                    for first in range(0, count - count % size, size):
                        yield _batch(whole, first, first + size, sizes, ids)
                    done, count = count - count % size, count % size
                    waiting = [
                        _Parsed(whole.labels[done:], whole.dense[done:], whole.values[done:], whole.present[done:])
                    ]
        if count:
            yield _batch(_joined(waiting), 0, count, sizes, ids)

    tables = [TableShape(f"C{n + 1}", size) for n, size in enumerate(rows)]
    return Trace("criteo", tables, source, dense=NUMBERS)


def _joined(parts: list[_Parsed]) -> _Parsed:
    if len(parts) == 1:
        return parts[0]
    labels, dense, values, present = zip(*parts, strict=True)
    return _Parsed(np.concatenate(labels), np.concatenate(dense), np.concatenate(values), np.concatenate(present))


def _batch(parsed: _Parsed, first: int, last: int, rows: NDArray[np.uint64], ids: str) -> Batch:
    values, present = parsed.values[first:last], parsed.present[first:last]
    found = (_hashed(values) if ids == "hash" else values.astype(np.uint64)) % rows
    bags = tuple(
        bags_of(there.astype(np.int64), column[there].astype(np.int64))
        for column, there in zip(found.T, present.T, strict=True)
    )
    return Batch(parsed.dense[first:last], bags, parsed.labels[first:last])


def _hashed(values: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Well-mixed 64 bits of each value, other in every column: SplitMix64's finaliser (Steele, Lea and Flood, 2014)."""
    column = np.arange(values.shape[1], dtype=np.uint64) << np.uint64(32)
    mixed = (values + column) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return hashed


# -- from text, all lines of a piece at once


def _parsed(path: str | Path, progress: Progress | None) -> Iterator[_Parsed]:
    line = 1
    separator = 0
    for piece in pieces(path, progress):
        if separator == 0:
            head = piece[: piece.find(b"\n")]
            separator = _TAB if b"\t" in head else _COMMA
            if head.startswith(b"label"):
                piece = piece[len(head) + 1 :]
                line += 1
        if not piece:
            continue
        lines = _fields(path, piece, separator, line)
        label, numbers = _numbers(path, lines, slice(0, 1), line), _numbers(path, lines, slice(1, 1 + NUMBERS), line)
        values, present = _categories(path, lines, line)
        yield _Parsed(
            label[:, 0].astype(np.float32), np.log1p(np.maximum(numbers, 0)).astype(np.float32), values, present
        )
        line += len(values)


def _fields(path: str | Path, piece: bytes, separator: int, line: int) -> _Lines:
    """:raises TraceFormat: the first line that has not 40 fields"""
    text = np.frombuffer(piece, np.uint8)
    ends = np.flatnonzero((text == separator) | (text == _LINE))
    line_ends = np.flatnonzero(text[ends] == _LINE)
    counts = np.diff(line_ends, prepend=-1)
    wrong = np.flatnonzero(counts != FIELDS)
    if len(wrong):
        at = int(wrong[0])
        raise TraceFormat(
            path, f"{counts[at]} fields; a line has {FIELDS}: label, 13 numbers, 26 categories", line=line + at
        )
    start = np.concatenate([[0], ends[:-1] + 1])
    return _Lines(text, start.reshape(-1, FIELDS), ends.reshape(-1, FIELDS))


def _numbers(path: str | Path, lines: _Lines, columns: slice, line: int) -> NDArray[np.float64]:
    """Whole numbers, perhaps negative, perhaps written with '.0'; an empty field is 0."""
    text, start, end = lines.text, lines.start[:, columns], lines.end[:, columns]
    negative = (text[start] == ord("-")) & (end > start)
    first = start + negative
    length = end - first
    value = np.zeros(start.shape, np.float64)
    odd = (length > _DIGITS) | (negative & (length == 0))
    for at in range(min(int(length.max(initial=0)), _DIGITS)):
        inside = length > at
        digit = text[np.where(inside, first + at, 0)] - np.uint8(ord("0"))
        odd |= inside & (digit > 9)
        value = np.where(inside, value * 10 + digit, value)
    value = np.where(negative, -value, value)
    for row, column in np.argwhere(odd):  # few: what is no plain whole number
        field = bytes(text[start[row, column] : end[row, column]])
        try:
            value[row, column] = float(field)
        except ValueError:
            raise _wrong(path, field, "is no number", line + int(row), columns.start + int(column)) from None
    return value


def _categories(path: str | Path, lines: _Lines, line: int) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Values of the hexadecimal fields, and which of them are there."""
    text, start, end = lines.text, lines.start[:, 1 + NUMBERS :], lines.end[:, 1 + NUMBERS :]
    length = end - start
    value = np.zeros(start.shape, np.uint32)
    odd = length > 8
    for at in range(8):
        inside = length > at
        digit = _HEX[text[np.where(inside, start + at, 0)]]
        odd |= inside & (digit > 15)
        value = np.where(inside, value << np.uint32(4) | digit, value)
    if odd.any():
        row, column = (int(n) for n in np.argwhere(odd)[0])
        field = bytes(text[start[row, column] : end[row, column]])
        raise _wrong(path, field, "is no 32-bit value in hexadecimal", line + row, 1 + NUMBERS + column)
    return value, length > 0


def _wrong(path: str | Path, field: bytes, text: str, line: int, column: int) -> TraceFormat:
    shown: Any = field[:40].decode(errors="replace")
    return TraceFormat(path, f"{shown!r} {text}", line=line, field=NAMES[column])
