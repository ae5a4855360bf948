"""Logs of interactions and Meta's tensors, in their own formats, right and wrong."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from emucsd.errors import InvalidArgument
from emucsd.traces import TraceError, TraceFormat, load_amazon, load_meta, load_ratings
from emucsd.traces.bags import Lookups, bags_of
from emucsd.traces.files import pieces
from emucsd.traces.trace import Recorded


def written(folder: Path, text: str, name: str = "log.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_amazon_file(tmp_path: Path) -> None:
    """A user's lines are one bag, in the file's order, also where users alternate."""
    name, rows, bags = load_amazon(written(tmp_path, "2 5\n1 3\n2 1\n1 3\n2 4\n"))
    assert (name, rows, bags.count) == ("items", 5, 2)
    assert bags.indices.tolist() == [2, 2, 4, 0, 3]
    assert bags.offsets.tolist() == [0, 2, 5]


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("1 2\n1 2 3\n", 2, None),
        ("1\n1 2 3\n", 1, None),
        ("1 1\n1 x\n", 2, "item"),
        ("0 1\n", 1, "user"),
        ("", None, None),
    ],
)
def test_amazon_malformed(tmp_path: Path, text: str, line: int | None, field: str | None) -> None:
    """What is wrong with a file of another format is named: file, line and field."""
    with pytest.raises(TraceFormat, match=r"log\.txt") as caught:
        load_amazon(written(tmp_path, text))
    assert (caught.value.line, caught.value.field) == (line, field)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


RATINGS = {
    "ratings.dat": "7::31::5::300\n7::50::3::100\n2::31::4::50\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n7,31,5.0,300\n7,50,3.0,100\n2,31,4.0,50\n",
    "amazon.csv": "A7,B31,5.0,300\nA7,B50,3.0,100\nA2,B31,4.0,50\n",
    "u.data": "7\t31\t5\t300\n7\t50\t3\t100\n2\t31\t4\t50\n",
    "amazon2023.csv": "rating,user_id,parent_asin,timestamp\n5,A7,B31,300\n3,A7,B50,100\n4,A2,B31,50\n",
}


@pytest.mark.parametrize("name", RATINGS)
def test_ratings(tmp_path: Path, name: str) -> None:
    """MovieLens' and Amazon's ratings give a bag a user, in the order of time, whatever separates the fields."""
    trace = load_ratings(written(tmp_path, RATINGS[name], name))
    assert (trace.samples, trace.tables[0].rows) == (2, 2)
    bags = trace.lookups[0].bags
    assert bags.indices.tolist() == [1, 0, 0]
    assert bags.offsets.tolist() == [0, 2, 3]


def test_ratings_packed_and_named(tmp_path: Path) -> None:
    """gzip is unpacked on the way; columns may be named where there is no header; progress ends at the file's size."""
    path = tmp_path / "r.csv.gz"
    path.write_bytes(gzip.compress(b"B1,A7,5,2\r\nB2,A7,5,1"))
    told: list[tuple[int, int]] = []
    trace = load_ratings(
        path, columns=("item", "user", "rating", "time"), progress=lambda done, size: told.append((done, size))
    )
    assert trace.lookups[0].bags.indices.tolist() == [1, 0]
    assert told[-1] == (path.stat().st_size,) * 2


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("1,2,3,4\n1,2,3\n", 2, None),
        ("1,2,3,4\n1,,3,4\n", 2, "item"),
        ("user,item,rating,time\n1,2,3,soon\n", 2, "time"),
        ("a,b,rating,time\n1,2,3,4\n", 1, None),
        ("", None, None),
    ],
)
def test_ratings_malformed(tmp_path: Path, text: str, line: int | None, field: str | None) -> None:
    """A wrong line of ratings is named with its field."""
    with pytest.raises(TraceFormat) as caught:
        load_ratings(written(tmp_path, text))
    assert (caught.value.line, caught.value.field) == (line, field)


def test_ratings_not_text(tmp_path: Path) -> None:
    """Bytes that are no text, a damaged gzip file and columns without an item are refused with their place."""
    path = tmp_path / "r.csv"
    path.write_bytes(b"1,2,3,4\n1,\xff\xfe,3,4\n")
    with pytest.raises(TraceFormat, match=r"r\.csv, line 2: is not UTF-8"):
        load_ratings(path)
    path.write_bytes(gzip.compress(b"1,2,3,4\n" * 100)[:-9])
    with pytest.raises(TraceFormat, match="gzip"):
        load_ratings(path)
    with pytest.raises(InvalidArgument, match="'item'"):
        load_ratings(path, columns=("user", "rating"))


def test_pieces_are_whole_lines(tmp_path: Path) -> None:
    """However a file is cut, pieces end at line ends and give the file's lines."""
    text = "".join(f"line {number}\n" for number in range(100)) + "last"
    path = written(tmp_path, text)
    for size in (9, 64, 1 << 20):
        found = list(pieces(path, size=size))
        assert all(piece.endswith(b"\n") for piece in found)
        assert b"".join(found).decode() == text + "\n"


def test_recorded_limits() -> None:
    """Ids that are no rows, and tables of different numbers of samples, make no trace."""
    bags = bags_of(np.array([1, 1]), np.array([0, 5]))
    with pytest.raises(TraceError, match="rows are 0 to 4"):
        Recorded("x", [Lookups("t", 5, bags)])
    with pytest.raises(TraceError, match="samples"):
        Recorded("x", [Lookups("t", 6, bags), Lookups("u", 6, bags.part(0, 1))])
    with pytest.raises(InvalidArgument, match="empty"):
        Recorded("x", [Lookups("t", 6, bags)]).split(0.01)
    with pytest.raises(InvalidArgument, match="at least 1"):
        Recorded("x", [Lookups("t", 6, bags)]).batches(0)


# -- Meta's


@pytest.mark.parametrize("packed", [False, True])
def test_meta(tmp_path: Path, packed: bool) -> None:
    """Tables are parted by lengths; chosen tables and samples are those of the whole file."""
    torch = pytest.importorskip("torch")
    lengths = torch.tensor([[2, 0, 1], [1, 3, 0]])
    offsets = torch.tensor([0, 2, 2, 3, 4, 7, 7])
    indices = torch.tensor([5, 1, 9, 0, 3, 3, 2])
    path = tmp_path / "tables.pt"
    torch.save((indices, offsets, lengths), path)
    if packed:
        path.with_suffix(".pt.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = path.with_suffix(".pt.gz")
    trace = load_meta(path)
    assert [(t.name, t.rows) for t in trace.tables] == [("t0", 10), ("t1", 4)]
    assert trace.samples == 3
    assert [some.bags.indices.tolist() for some in trace.lookups] == [[5, 1, 9], [0, 3, 3, 2]]
    part = load_meta(path, [1], samples=2)
    assert part.lookups[0].bags.offsets.tolist() == [0, 1, 4]
    assert part.tables[0].rows == 4
    with pytest.raises(InvalidArgument, match="table 2"):
        load_meta(path, [2])


def test_meta_malformed(tmp_path: Path) -> None:
    """Files that are no tensors, other tensors, and tensors that contradict each other are refused by name."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "tables.pt"
    path.write_bytes(b"no tensors at all")
    with pytest.raises(TraceFormat, match=r"tables\.pt"):
        load_meta(path)
    good = {"indices": torch.tensor([1, 2]), "offsets": torch.tensor([0, 2]), "lengths": torch.tensor([[2]])}
    bad = {
        "indices": torch.tensor([1.5, 2.0]),
        "offsets": torch.tensor([0, 1]),
        "lengths": torch.tensor([2]),
    }
    for name, tensor in bad.items():
        torch.save(tuple({**good, name: tensor}.values()), path)
        with pytest.raises(TraceFormat) as caught:
            load_meta(path)
        assert caught.value.field in (name, "offsets")
    torch.save((torch.tensor([1, -2]), good["offsets"], good["lengths"]), path)
    with pytest.raises(TraceFormat, match="-2 in table 0"):
        load_meta(path)
    torch.save({"a": 1}, path)
    with pytest.raises(TraceFormat, match="dict"):
        load_meta(path)
    with pytest.raises(FileNotFoundError):
        load_meta(tmp_path / "none.pt")
