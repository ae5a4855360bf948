"""Ids with a locality that is chosen: RecSSD's generator, and facebookresearch/dlrm's distribution files.

Both draw stack distances from a distribution and turn them into lines by an LRU stack (``stack``); a distance of 0 is a
new line, the one that was not used for longest. While fewer lines than the largest distance have been new, only
distances up to their number are drawn, as facebookresearch/dlrm does.

RecSSD's distribution: a histogram of 1000 samples of Exp(1) in 50 bins, whose first bin grows by int(K times the sum of
all bins), so that a larger K means less locality: at K = 0, 0.3, 1, 2 about 14, 29, 55 and 71 % of the references are
new. A distance never exceeds 49. Twice the length is made, and its first half thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.traces.bags import Bags, Ids, Lookups
from emucsd.traces.errors import TraceFormat
from emucsd.traces.stack import LruStack
from emucsd.traces.trace import Recorded

LOCALITIES = (0.0, 0.3, 1.0, 2.0)  # the K that are published

_SAMPLES, _BINS = 1000, 50
PUBLISHED_STRIDE, PUBLISHED_ROWS = 128, 1_000_000
_AHEAD = 1024  # distances drawn at a time while their support grows


class Distances(NamedTuple):
    """How likely each stack distance is.

    :ivar values: distances, rising from 0
    :ivar cumulative: probability of each value or a smaller one; the last is 1
    """

    values: Ids
    cumulative: NDArray[np.float64]

    @property
    def new(self) -> float:
        """Probability of a new line."""
        return float(self.cumulative[0])

    @property
    def deepest(self) -> int:
        return int(self.values[-1])

    def draw(self, count: int, rng: np.random.Generator) -> Ids:
        """``count`` distances, one for each uniform number that ``rng`` gives, in order."""
        uniform = rng.random(count)
        found = np.empty(count, np.int64)
        done = lines = 0
        while lines < self.deepest and done < count:
            support = self.cumulative[np.searchsorted(self.values, lines, "right") - 1]
            some = self._at(uniform[done : done + _AHEAD] * support)
            new = np.flatnonzero(some == 0)
            used = int(new[0]) + 1 if len(new) else len(some)  # the next one has a larger support
            found[done : done + used] = some[:used]
            done += used
            lines += bool(len(new))
        found[done:] = self._at(uniform[done:])
        return found

    def _at(self, uniform: NDArray[np.float64]) -> Ids:
        at = np.searchsorted(self.cumulative, uniform, "left")
        return self.values[np.minimum(at, len(self.values) - 1)]


def recssd_distances(locality: float, rng: np.random.Generator) -> Distances:
    """RecSSD's distribution for its parameter K. :raises InvalidArgument: K is negative"""
    if locality < 0:
        raise InvalidArgument(f"K = {locality:g}; it is 0 or more (published: {LOCALITIES})")
    bins, _ = np.histogram(rng.exponential(size=_SAMPLES), bins=_BINS, density=True)
    bins[0] += int(bins.sum() * locality)
    return Distances(np.arange(_BINS), np.cumsum(bins) / bins.sum())


def make_locality(
    locality: float,
    samples: int,
    *,
    tables: int = 8,
    rows: int = PUBLISHED_ROWS,
    lookups: int = 80,
    form: Literal["published", "whole"] = "whole",
    seed: int = 1,
) -> Recorded:
    """RecSSD's lookups: tables of ``rows``, each asked for bags of ``lookups`` ids.

    :param locality: K
    :param form: ``published``: the public generator's 7,812 lines, ids 0, 128, 256, …: one id a 16 KiB page by
        construction, all in a table's first million rows. ``whole``: the same distances over every row of the table, in
        a shuffled order, so that neither pages nor dies see a pattern. Hit rates of any LRU cache below 7,812 lines are
        the same in both; larger ones hold all of the published form's lines.
    :raises InvalidArgument: counts below 1, or too few rows for 49 distances
    """
    if min(samples, tables, lookups) < 1:
        raise InvalidArgument(f"{samples} samples, {tables} tables, {lookups} lookups; each at least 1")
    if form not in ("published", "whole") or locality < 0:
        raise InvalidArgument(f"form {form!r}, K = {locality:g}: 'published' or 'whole', and a K of 0 or more")
    rng = np.random.default_rng([seed, round(1000 * locality)])
    distances = recssd_distances(locality, rng)
    count = 2 * samples * lookups
    found = []
    for table in range(tables):
        if form == "published":
            lines = np.arange(min(rows, PUBLISHED_ROWS) // PUBLISHED_STRIDE, dtype=np.int64) * PUBLISHED_STRIDE
        else:  # as many of the rows as references can reach
            lines = rng.choice(rows, min(rows, count + _BINS), replace=False).astype(np.int64)
        ids = LruStack(lines, distances.deepest).refer(distances.draw(count, rng).tolist())[count // 2 :]
        found.append(Lookups(f"table{table}", rows, _equal_bags(ids, lookups)))
    return Recorded(f"K = {locality:g}", found)


class Distribution(NamedTuple):
    """A distribution file of facebookresearch/dlrm: lines in the order of their first use, and their distances."""

    lines: Ids
    distances: Distances

    def ids(self, count: int, rng: np.random.Generator) -> Ids:
        """References to the lines, from a stack in which none was used yet."""
        return LruStack(self.lines, self.distances.deepest).refer(self.distances.draw(count, rng).tolist())


def load_distribution(path: str | Path) -> Distribution:
    """Read the three lines: unique accesses, stack distances, their cumulative distribution.

    :raises TraceFormat: the line that is not such numbers, or contradicts another
    """
    with open(path, encoding="utf-8") as file:
        text = file.read().splitlines()
    if len(text) < 3:
        raise TraceFormat(path, f"{len(text)} lines; three: unique accesses, stack distances, cumulative distribution")
    lines, values = _listed(path, text, 1).astype(np.int64), _listed(path, text, 2).astype(np.int64)
    cumulative = _listed(path, text, 3)
    if len(values) != len(cumulative):
        raise TraceFormat(path, f"{len(cumulative)} probabilities of {len(values)} distances", line=3)
    if values[0] != 0 or (np.diff(values) <= 0).any():
        raise TraceFormat(path, f"distances rise from 0 (a new line); the first is {values[0]}", line=2)
    if (np.diff(cumulative) < 0).any() or cumulative[0] <= 0 or abs(cumulative[-1] - 1) > 1e-3:
        raise TraceFormat(path, f"probabilities rise from above 0 to 1; the last is {cumulative[-1]:g}", line=3)
    if len(np.unique(lines)) != len(lines) or lines.min() < 0 or values[-1] > len(lines):
        raise TraceFormat(path, f"{len(lines)} accesses, each once, are to hold distances up to {values[-1]}", line=1)
    return Distribution(lines, Distances(values, cumulative))


def save_distribution(path: str | Path, distribution: Distribution) -> None:
    """Write what ``load_distribution``, and facebookresearch/dlrm, read."""
    lines, (values, cumulative) = distribution
    rows = ([str(n) for n in lines], [str(n) for n in values], [repr(float(p)) for p in cumulative])
    Path(path).write_text("".join(", ".join(row) + "\n" for row in rows), encoding="utf-8")


def make_from_distributions(
    paths: Sequence[str | Path], rows: Sequence[int], samples: int, *, lookups: int = 10, seed: int = 123
) -> Recorded:
    """Lookups with the locality that facebookresearch/dlrm's distribution files tell, one file a table.

    :param rows: of each table; a file's lines are ids of them
    :param lookups: ids a bag (``--num-indices-per-lookup``); unlike there, an id that comes twice stays twice
    :raises TraceFormat: see ``load_distribution``
    :raises TraceError: a file's line is no row of its table
    """
    if len(paths) != len(rows):
        raise InvalidArgument(f"{len(paths)} distribution files, {len(rows)} tables; give one each")
    rng = np.random.default_rng(seed)
    found = []
    for number, (path, size) in enumerate(zip(paths, rows, strict=True)):
        ids = load_distribution(path).ids(samples * lookups, rng)
        found.append(Lookups(f"table{number}", size, _equal_bags(ids, lookups)))
    return Recorded(Path(paths[0]).name, found)


def _equal_bags(ids: Ids, length: int) -> Bags:
    return Bags(ids, np.arange(0, len(ids) + 1, length, dtype=np.int64))


def _listed(path: str | Path, text: list[str], line: int) -> NDArray[np.float64]:
    numbers = []
    for position, field in enumerate(text[line - 1].split(","), 1):
        try:
            numbers.append(float(field))
        except ValueError:
            raise TraceFormat(path, f"{field.strip()[:40]!r} is no number", line=line, field=position) from None
    if line < 3 and any(not number.is_integer() for number in numbers):
        position = next(at for at, number in enumerate(numbers, 1) if not number.is_integer())
        raise TraceFormat(path, f"{numbers[position - 1]:g} is no whole number", line=line, field=position)
    return np.array(numbers)
