"""Locality that is chosen: RecSSD's K, facebookresearch/dlrm's distribution files, and the stack behind both."""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.traces import (
    Distances,
    Distribution,
    LruStack,
    TraceError,
    TraceFormat,
    load_distribution,
    make_from_distributions,
    make_locality,
    recssd_distances,
    save_distribution,
)


def plain(lines: list[int], distances: list[int]) -> list[int]:
    """The generator as it is published: one list of all lines, the bottom first."""
    stack, found = list(lines), []
    for distance in distances:
        line = stack.pop(-distance if distance else 0)
        stack.append(line)
        found.append(line)
    return found


def plain_distances(law: Distances, uniform: NDArray[np.float64]) -> list[int]:
    """Distances one by one, their support growing with each new line."""
    new, found = 0, []
    for u in uniform:
        if new < law.deepest:
            u = u * law.cumulative[np.flatnonzero(law.values <= new)[-1]]
        found.append(int(law.values[np.flatnonzero(law.cumulative >= u)[0]]))
        new += found[-1] == 0
    return found


@settings(max_examples=60)
@given(st.data())
def test_stack_equals_plain_loop(data: st.DataObject) -> None:
    """Window and queue give the lines of one long list, whatever the distances, also when lines come round again."""
    count = data.draw(st.integers(1, 60))
    deepest = data.draw(st.integers(0, count))
    distances = data.draw(st.lists(st.integers(0, deepest), max_size=300))
    stack = LruStack(np.arange(count) * 7, deepest)
    cut = len(distances) // 2
    found = [*stack.refer(distances[:cut]), *stack.refer(distances[cut:])]
    assert found == plain([7 * n for n in range(count)], distances)


def test_deep_stack_equals_plain_loop() -> None:
    """Distances far beyond a block give the same lines."""
    rng = np.random.default_rng(0)
    distances = np.where(rng.random(20_000) < 0.3, 0, rng.integers(0, 5000, 20_000)).tolist()
    assert LruStack(np.arange(6000), 5000).refer(distances).tolist() == plain(list(range(6000)), distances)


@pytest.mark.parametrize("locality", [0.0, 0.3, 2.0])
def test_distances_equal_plain_loop(locality: float) -> None:
    """Distances drawn in one go are those drawn one by one from the same uniform numbers."""
    law = recssd_distances(locality, np.random.default_rng(5))
    found = law.draw(4000, np.random.default_rng(6))
    assert found.tolist() == plain_distances(law, np.random.default_rng(6).random(4000))


@pytest.mark.parametrize(("locality", "new"), [(0.0, 0.14), (0.3, 0.29), (1.0, 0.55), (2.0, 0.71)])
def test_locality_is_the_published(locality: float, new: float) -> None:
    """The share of new lines is that of the public generator, and its mean over seeds lies within 5 points."""
    shares = [recssd_distances(locality, np.random.default_rng(seed)).new for seed in range(40)]
    assert abs(float(np.mean(shares)) - new) < 0.05


def hit_rate(ids: NDArray[np.int64], entries: int) -> float:
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in ids.tolist():
        hits += row in cache
        cache[row] = None
        cache.move_to_end(row)
        if len(cache) > entries:
            cache.popitem(last=False)
    return hits / len(ids)


def test_forms() -> None:
    """The published form has 7,812 lines, one a 16 KiB page; the other reaches every row with the same hit rate."""
    published = make_locality(0.3, 300, tables=2, rows=4_000_000, form="published", seed=3)
    whole = make_locality(0.3, 300, tables=2, rows=4_000_000, seed=3)
    for trace in (published, whole):
        assert (trace.samples, len(trace.tables), trace.ids) == (300, 2, 300 * 2 * 80)
    ids = published.lookups[0].bags.indices
    assert not (ids % 128).any()
    assert ids.max() < 1_000_000
    spread = whole.lookups[0].bags.indices
    assert len(np.unique(spread // 1_000_000)) == 4
    rates = [hit_rate(some, 64) for some in (ids, spread)]
    assert abs(rates[0] - rates[1]) < 0.03
    assert abs(rates[0] - 0.70) < 0.07


def test_every_row_takes_part() -> None:
    """In a table smaller than the trace, the whole form refers to each of its rows."""
    trace = make_locality(1.0, 100, tables=1, rows=900, lookups=40)
    assert set(trace.lookups[0].bags.indices.tolist()) == set(range(900))


def test_seeded() -> None:
    """The same seed gives the same ids, another seed and another K give others."""
    first, again, other = (make_locality(1.0, 20, tables=1, seed=seed).lookups[0].bags.indices for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    for arguments in ({"samples": 0}, {"samples": 1, "form": "short"}, {"samples": 1, "rows": 30}):
        with pytest.raises(InvalidArgument):
            make_locality(1.0, **arguments)
    with pytest.raises(InvalidArgument, match="K = -1"):
        make_locality(-1.0, 1)


def test_a_million_ids() -> None:
    """A million references over four million lines take seconds, not the hours of a list of all lines."""
    law = recssd_distances(0.3, np.random.default_rng(0))
    began = time.process_time()
    ids = LruStack(np.arange(4_000_000), law.deepest).refer(law.draw(1_000_000, np.random.default_rng(1)).tolist())
    assert len(ids) == 1_000_000
    assert time.process_time() - began < 20


# -- distribution files


def test_distribution_file(tmp_path: Path) -> None:
    """A file's three lines come back as they were written, and its ids are the plain loop's."""
    law = Distances(np.array([0, 1, 2, 5]), np.array([0.4, 0.6, 0.8, 1.0]))
    lines = np.array([9, 4, 7, 1, 30, 2])
    path = tmp_path / "dist_emb_0.log"
    save_distribution(path, Distribution(lines, law))
    found = load_distribution(path)
    assert path.read_text().splitlines()[0] == "9, 4, 7, 1, 30, 2"
    assert found.lines.tolist() == lines.tolist()
    assert found.distances.cumulative.tolist() == law.cumulative.tolist()
    ids = found.ids(500, np.random.default_rng(2))
    assert ids.tolist() == plain(lines.tolist(), plain_distances(law, np.random.default_rng(2).random(500)))
    trace = make_from_distributions([path, path], [31, 40], 6)
    assert [some.bags.count for some in trace.lookups] == [6, 6]
    with pytest.raises(TraceError, match="rows are 0 to 29"):
        make_from_distributions([path], [30], 100)
    with pytest.raises(InvalidArgument, match="one each"):
        make_from_distributions([path], [30, 30], 100)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1, 2\n0, 1\n", None),
        ("1, x\n0, 1\n0.5, 1.0\n", 1),
        ("1, 1\n0, 1\n0.5, 1.0\n", 1),
        ("1, 2\n0, 3\n0.5, 1.0\n", 1),
        ("1, 2\n1, 2\n0.5, 1.0\n", 2),
        ("1, 2\n0, 1.5\n0.5, 1.0\n", 2),
        ("1, 2\n0, 1\n0.5\n", 3),
        ("1, 2\n0, 1\n0.5, 0.4\n", 3),
        ("1, 2\n0, 1\n0.5, 0.9\n", 3),
    ],
)
def test_distribution_malformed(tmp_path: Path, text: str, line: int | None) -> None:
    """What is wrong with a distribution file is named with its line."""
    path = tmp_path / "dist_emb_1.log"
    path.write_text(text)
    with pytest.raises(TraceFormat, match=r"dist_emb_1\.log") as caught:
        load_distribution(path)
    assert caught.value.line == line
