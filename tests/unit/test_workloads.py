"""Workloads: logs in their own formats, and inputs made with the same skew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emucsd.errors import InvalidArgument
from emucsd.workloads import (
    AMAZON,
    AMAZON_ITEMS,
    CRITEO,
    CRITEO_ROWS,
    Bags,
    bags_of,
    draw,
    load_amazon,
    load_criteo,
    make_amazon,
    make_criteo,
    make_uniform,
    sums_in_order,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_amazon_file(tmp_path: Path) -> None:
    """A user's lines are one bag, in the file's order, also where users alternate."""
    path = tmp_path / "log.txt"
    path.write_text("2 5\n1 3\n2 1\n1 3\n2 4\n")
    name, rows, bags = load_amazon(path)
    assert (name, rows, bags.count) == ("items", 5, 2)
    assert bags.indices.tolist() == [2, 2, 4, 0, 3]
    assert bags.offsets.tolist() == [0, 2, 5]


@pytest.mark.parametrize("text", ["1 2 3\n", "1\n", "1 x\n", "1 0\n"])
def test_amazon_malformed(tmp_path: Path, text: str) -> None:
    """A file of another format is named and refused."""
    path = tmp_path / "log.txt"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"log\.txt"):
        load_amazon(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data folder beside the project is not here")
def test_amazon_skew() -> None:
    """The made histories have the real ones' size, lengths and popularity, within a few percent."""
    real, made = load_amazon(SHARED / "amazon-video-games.txt"), make_amazon()
    assert real.rows == made.rows == AMAZON_ITEMS
    assert real.bags.count == made.bags.count
    assert abs(len(made.bags.indices) / len(real.bags.indices) - 1) < 0.1
    assert np.median(np.diff(real.bags.offsets)) in (6, 7)
    for top in (237, 2371):
        shares = []
        for _, rows, bags in (real, made):
            counts = np.sort(np.bincount(bags.indices, minlength=rows))[::-1]
            shares.append(counts[:top].sum() / counts.sum())
        assert abs(shares[0] - shares[1]) < 0.04


def criteo_text(separator: str, header: bool) -> str:
    names = ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    rows = [["0", *["1"] * 13, *["05db9164"] * 25, ""], ["1", *[""] * 13, *["68fd1e64"] * 26]]
    return "\n".join(separator.join(row) for row in ([names] if header else []) + rows) + "\n"


@pytest.mark.parametrize(("separator", "header"), [(",", True), ("\t", False)])
def test_criteo_file(tmp_path: Path, separator: str, header: bool) -> None:
    """Both forms of the log give 26 tables; an empty field is an empty bag; a text has another row in each column."""
    path = tmp_path / "log"
    path.write_text(criteo_text(separator, header))
    tables = load_criteo(path, [1000] * 26)
    assert len(tables) == 26
    assert [t.bags.offsets.tolist() for t in tables] == [[0, 1, 2]] * 25 + [[0, 0, 1]]
    assert all((t.bags.indices < 1000).all() for t in tables)
    assert len({int(t.bags.indices[0]) for t in tables[:25]}) > 20


def test_criteo_malformed(tmp_path: Path) -> None:
    """A short line and a wrong number of table sizes are named."""
    path = tmp_path / "log"
    path.write_text("0,1,2\n")
    with pytest.raises(InvalidArgument, match="3 fields"):
        load_criteo(path, [10] * 26)
    with pytest.raises(InvalidArgument, match="25 table sizes"):
        load_criteo(path, [10] * 25)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data folder beside the project is not here")
def test_criteo_sample() -> None:
    """The real sample's 200 rows load, with the missing fields that it has."""
    tables = load_criteo(SHARED / "criteo_sample.txt", CRITEO_ROWS)
    assert {t.bags.count for t in tables} == {200}
    assert len(tables[21].bags.indices) == 200 - 159


def test_made_is_repeatable() -> None:
    """The same seed gives the same input, another seed another; ids stay below the table's rows."""
    assert np.array_equal(make_amazon(100, seed=3).bags.indices, make_amazon(100, seed=3).bags.indices)
    assert not np.array_equal(make_uniform(9, 9, 99, 1).bags.indices, make_uniform(9, 9, 99, 2).bags.indices)
    for lookups in make_criteo(500, (1, 2, 3, 1000, 10**6)):
        assert lookups.bags.indices.min() >= 0
        assert lookups.bags.indices.max() < lookups.rows


@pytest.mark.parametrize("law", [AMAZON, CRITEO])
def test_draw_reaches_every_row(law: tuple[float, float]) -> None:
    """Scattering loses no row: a small table's every row is drawn."""
    ids = draw(type(AMAZON)(*law), 50, 20_000, np.random.default_rng(0))
    assert set(ids.tolist()) == set(range(50))


def test_bags_parts() -> None:
    """Parts and batches of bags keep their ids and start at offset 0."""
    bags = bags_of(np.array([2, 0, 3]), np.arange(5))
    assert bags.part(1, 3).offsets.tolist() == [0, 0, 3]
    assert [b.indices.tolist() for b in bags.batches(2)] == [[0, 1], [2, 3, 4]]


def test_sums_in_order() -> None:
    """The reference adds FP32 in index order from zero, and an empty bag is zeros."""
    table = np.array([[1e8], [1.0], [-1e8]], np.float32)
    bags = Bags(np.array([0, 1, 2, 0, 2, 1]), np.array([0, 3, 3, 6]))
    assert sums_in_order(table, bags).tolist() == [[0.0], [0.0], [1.0]]
