"""Where a table's rows go: orders learnt from a trace.

A drive reads pages; a row that shares a page with others that are asked for at the same time comes with them
(``lookup.page_register``), and a page of rows that nobody asks for is never read. Three orders, each from the bags of a
*training* trace:

- ``by_frequency``: rows by how often they are asked for, so hot rows share pages;
- ``by_coaccess`` (``coaccess``): rows that come in the same bags share pages;
- ``by_spread``: hot rows on different pages and dies. For a drive that reads the array for each row anyway, packed hot
  rows would queue at one die.

Pages of equal heat are dealt to the dies there and back again, since a table's pages lie on the dies in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import EmucsdError, InvalidArgument
from emucsd.traces.bags import Bags, Ids

Map = NDArray[np.unsignedinteger[Any]]


class PlacementError(EmucsdError):
    """A placement cannot be used: it is no permutation, or of another table."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A permutation of a table's rows.

    :ivar places: u32[rows] (u64 from 2**32 rows on): where each row id lies in the stored table
    :ivar method: how it was found, for reports
    """

    places: Map
    method: str

    @classmethod
    def of(cls, order: Ids, method: str) -> Placement:
        """:param order: row ids as they are to be stored, each once"""
        places: Map = np.empty(len(order), np.dtype("u4" if len(order) <= 1 << 32 else "u8"))
        places[order] = np.arange(len(order))
        return cls(places, method)

    @property
    def rows(self) -> int:
        return len(self.places)

    @property
    def nbytes(self) -> int:
        """What the map costs the host: 4 bytes a row."""
        return self.places.nbytes

    @property
    def order(self) -> Ids:
        """The row id at each place: the map's inverse."""
        order = np.empty(self.rows, np.int64)
        order[self.places] = np.arange(self.rows)
        return order

    def bags(self, bags: Bags) -> Bags:
        """The same bags by places."""
        return Bags(self.places[bags.indices].astype(np.int64), bags.offsets)

    def check(self) -> Placement:
        """:raises PlacementError: not each place once"""
        seen = np.zeros(self.rows, np.bool_)
        if self.rows and int(self.places.max()) < self.rows:
            seen[self.places] = True
        if not seen.all():
            raise PlacementError(f"a map of {self.rows} rows that leaves {int((~seen).sum())} places empty")
        return self

    def save(self, path: str | Path) -> None:
        """As NumPy's ``.npz``."""
        with open(path, "wb") as file:
            np.savez(file, places=self.places, method=np.array(self.method))

    @classmethod
    def load(cls, path: str | Path) -> Placement:
        """:raises PlacementError: another kind of file, or no permutation"""
        try:
            with np.load(path) as found:
                return cls(found["places"], str(found["method"])).check()
        except (ValueError, KeyError, EOFError, IndexError) as error:
            raise PlacementError(f"{path} holds no placement: {error}") from error


Order = Callable[[Bags, int, int, int], Placement]


def heat(bags: Bags, rows: int) -> Ids:
    """How often each row is asked for. :raises InvalidArgument: an id is no row"""
    ids = bags.indices
    if rows < 1 or (len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= rows)):
        raise InvalidArgument(f"ids {ids.min(initial=0)} to {ids.max(initial=0)} of a table of {rows} rows")
    return np.bincount(ids, minlength=rows).astype(np.int64)


def by_frequency(bags: Bags, rows: int, per_page: int, dies: int = 1) -> Placement:
    """Rows by falling frequency; rows that the trace never asks for stay in the order of their ids.

    :param per_page: rows of a flash page
    :param dies: of the drive
    """
    _check(per_page, dies)
    order = np.argsort(-heat(bags, rows), kind="stable")
    return Placement.of(striped(order, per_page, dies), "frequency")


def by_spread(bags: Bags, rows: int, per_page: int, dies: int = 1) -> Placement:
    """Rows by falling frequency, dealt to all pages in turn: each page, and each die, gets its share of hot rows."""
    _check(per_page, dies)
    pages = -(-rows // per_page)
    full = rows - (pages - 1) * per_page  # rows of the last page; only the others get the rest
    ranks = np.arange(rows)
    page = np.where(ranks < full * pages, ranks % pages, (ranks - full * pages) % max(pages - 1, 1))
    slot = np.where(ranks < full * pages, ranks // pages, full + (ranks - full * pages) // max(pages - 1, 1))
    odd = (slot & 1) == 1  # there and back again: the hottest page of one turn is the coldest of the next
    last = np.where(slot < full, pages, pages - 1)
    page = np.where(odd, last - 1 - page, page)
    order = np.empty(rows, np.int64)
    order[page * per_page + slot] = np.argsort(-heat(bags, rows), kind="stable")
    return Placement.of(order, "spread")


def striped(order: Ids, per_page: int, dies: int) -> Ids:
    """Whole pages of ``order``, hottest first, dealt to the dies there and back again."""
    pages = len(order) // per_page // (2 * dies) * 2 * dies
    if dies == 1 or not pages:
        return order
    number = np.arange(pages).reshape(-1, 2, dies)
    number[:, 1] = number[:, 1, ::-1]
    head = order[: pages * per_page].reshape(pages, per_page)[number.reshape(-1)]
    return np.concatenate([head.reshape(-1), order[pages * per_page :]])


def pages_read(bags: Bags, places: Placement | None, per_page: int, window: int) -> float:
    """Distinct pages among ``window`` lookups that follow each other, as a share of the lookups.

    What is left to read where each page is read once for all lookups in flight; ``window`` is how many those are.
    """
    ids = bags.indices if places is None else places.places[bags.indices].astype(np.int64)
    count = len(ids) // window * window
    if not count:
        raise InvalidArgument(f"{len(ids)} lookups make no window of {window}")
    pages = np.sort((ids[:count] // per_page).reshape(-1, window), axis=1)
    return float((np.diff(pages, axis=1) != 0).sum() + len(pages)) / count


def _check(per_page: int, dies: int) -> None:
    if per_page < 1 or dies < 1:
        raise InvalidArgument(f"{per_page} rows a page, {dies} dies; each at least 1")
