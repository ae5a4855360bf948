"""Who took what: logs of users' interactions with items. A user's history, in time order, is one bag.

- ``user item`` lines, as Amazon's reviews are prepared for SASRec, in order already; both count from 1.
- ratings, plain or gzip: Amazon's CSV (``user,item,rating,time``, with a header or none), MovieLens' ``ratings.csv`` (a
  header), ``ratings.dat`` (fields parted by ``::``) and ``u.data`` (by tabs). Users and items are any text; items get
  rows in the order in which they first come.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.traces.bags import Bags, Lookups, bags_of
from emucsd.traces.errors import TraceFormat
from emucsd.traces.files import Progress, pieces
from emucsd.traces.trace import Recorded

# what headers call the columns: MovieLens; Amazon of 2023; Amazon's reviews as records
_HEADS = {
    "user": ("user", "userid", "user_id", "reviewerid"),
    "item": ("item", "movieid", "item_id", "itemid", "parent_asin", "asin"),
    "time": ("time", "timestamp", "unixreviewtime"),
}
COLUMNS = ("user", "item", "rating", "time")


def load_amazon(path: str | Path, *, progress: Progress | None = None) -> Lookups:
    """Histories from ``user item`` lines, in the file's order; items count from 1 in the file, rows from 0.

    :raises TraceFormat: a line is not two positive integers
    """
    parts, line = [], 1
    for piece in pieces(path, progress):
        parts.append(_pairs(path, piece, line))
        line += piece.count(b"\n")
    if not parts:
        raise TraceFormat(path, "no lines of 'user item'")
    pairs = np.concatenate(parts)
    bags = _histories(pairs[:, 0], pairs[:, 1] - 1)
    return Lookups("items", int(pairs[:, 1].max()), bags)


def _pairs(path: str | Path, piece: bytes, line: int) -> NDArray[np.int64]:
    count = piece.count(b"\n")
    try:
        pairs = np.array(piece.split(), np.int64)
    except (ValueError, OverflowError):
        pairs = np.zeros(0, np.int64)
    # two numbers a line on the average are not yet two on each
    if pairs.size == 2 * count and pairs.min() >= 1 and all(len(row.split()) == 2 for row in piece.splitlines()):
        return pairs.reshape(-1, 2)
    for number, row in enumerate(piece.splitlines(), line):
        fields = row.split()
        if len(fields) != 2:
            raise TraceFormat(path, f"{len(fields)} fields; every line must be 'user item'", line=number)
        for name, field in zip(("user", "item"), fields, strict=True):
            if not field.isdigit() or not 0 < int(field) < 1 << 62:
                shown = field[:40].decode(errors="replace")
                raise TraceFormat(path, f"{shown!r} is no integer from 1 on", line=number, field=name)
    raise AssertionError("a piece that is right line by line is right as a whole")


def load_ratings(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    separator: str | None = None,
    progress: Progress | None = None,
) -> Recorded:
    """Histories from ratings: a trace of one table, ``items``, with one bag a user, users by their first line.

    :param columns: what the fields are (``user`` and ``item`` among them; ``time`` sorts a history); None: the header
        says it, or without one user, item, rating, time. Amazon's CSV of 2018 has item, user, rating, time.
    :param separator: of fields; None: ``::``, tab or comma, whichever the first line has
    :raises InvalidArgument: ``columns`` without ``user`` or ``item``
    :raises TraceFormat: the file, line and field that are at fault
    """
    if columns is not None and not {"user", "item"} <= set(columns):
        raise InvalidArgument(f"columns {list(columns)} have no 'user' or no 'item'; name both")
    reader = _Ratings(path, None if columns is None else list(columns), separator)
    for piece in pieces(path, progress):
        reader.take(piece)
    if not reader.users:
        raise TraceFormat(path, "no ratings")
    users, items = np.array(reader.user_column, np.int64), np.array(reader.item_column, np.int64)
    if reader.times:
        order = np.argsort(np.array(reader.times), kind="stable")
        users, items = users[order], items[order]
    return Recorded(Path(path).name, [Lookups("items", len(reader.items), _histories(users, items))])


class _Ratings:
    """Columns of a ratings file, text replaced by numbers in the order of coming."""

    def __init__(self, path: str | Path, columns: list[str] | None, separator: str | None) -> None:
        self.path, self.columns, self.line = path, columns, 1
        self.separator = separator
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.user_column: list[int] = []
        self.item_column: list[int] = []
        self.times: list[float] = []

    def take(self, piece: bytes) -> None:
        """Lines that follow those before."""
        try:
            lines = piece.decode().splitlines()
        except UnicodeDecodeError as error:
            line = self.line + piece.count(b"\n", 0, error.start)
            raise TraceFormat(self.path, "is not UTF-8; is this a text file?", line=line) from error
        if self.separator is None or self.line == 1:
            lines = self._begin(lines)
        assert self.columns is not None
        assert self.separator is not None
        wanted = len(self.columns)
        user, item = self.columns.index("user"), self.columns.index("item")
        time = self.columns.index("time") if "time" in self.columns else -1
        for number, text in enumerate(lines, self.line):
            fields = text.split(self.separator)
            if len(fields) != wanted or not fields[user] or not fields[item]:
                self._refuse(number, fields)
            self.user_column.append(self.users.setdefault(fields[user], len(self.users)))
            self.item_column.append(self.items.setdefault(fields[item], len(self.items)))
            if time >= 0:
                try:
                    self.times.append(float(fields[time]))
                except ValueError:
                    raise TraceFormat(
                        self.path, f"{fields[time][:40]!r} is no time", line=number, field="time"
                    ) from None
        self.line += len(lines)

    def _begin(self, lines: list[str]) -> list[str]:
        """Take separator and columns from the first line; without it, where it is a header."""
        first = lines[0]
        if self.separator is None:
            self.separator = next((mark for mark in ("::", "\t", ",") if mark in first), ",")
        heads = [field.strip().strip('"').lower() for field in first.split(self.separator)]
        known = {head: name for name, others in _HEADS.items() for head in others}
        header = any(head in known for head in heads)
        if self.columns is None:
            named = [known.get(head, head) for head in heads]
            self.columns = named if header else list(COLUMNS[: len(heads)])
        if not {"user", "item"} <= set(self.columns):
            raise TraceFormat(self.path, f"{first[:80]!r} names no user or no item; say which by columns=", line=1)
        self.line += header
        return lines[1:] if header else lines

    def _refuse(self, number: int, fields: list[str]) -> None:
        assert self.columns is not None
        if len(fields) != len(self.columns):
            text = f"{len(fields)} fields; a line has {len(self.columns)}: {', '.join(self.columns)}"
            raise TraceFormat(self.path, text, line=number)
        name = "user" if not fields[self.columns.index("user")] else "item"
        raise TraceFormat(self.path, "is empty", line=number, field=name)


def _histories(users: NDArray[np.int64], items: NDArray[np.int64]) -> Bags:
    """One bag a user, by the user's number; items in the order in which they come."""
    order = np.argsort(users, kind="stable")
    return bags_of(np.unique(users, return_counts=True)[1].astype(np.int64), items[order])
