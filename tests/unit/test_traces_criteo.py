"""Criteo's log: both forms, its numbers and categories, streamed, and what is wrong with a file."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd.errors import InvalidArgument
from emucsd.traces import CRITEO_FILE, CRITEO_ROWS, TraceError, TraceFormat, find_data, load_criteo
from emucsd.traces import criteo as module

DATA = find_data(CRITEO_FILE)
NAMES = list(module.NAMES)


def text(samples: list[list[str]], separator: str = "\t", header: bool = False) -> str:
    return "".join(separator.join(row) + "\n" for row in ([NAMES] if header else []) + samples)


SAMPLES = [["0", *["1"] * 13, *["05db9164"] * 25, ""], ["1", *[""] * 13, *["68fd1e64"] * 26]]


@pytest.mark.parametrize(("separator", "header"), [(",", True), ("\t", False)])
@pytest.mark.parametrize("packed", [False, True])
def test_both_forms(tmp_path: Path, separator: str, header: bool, packed: bool) -> None:
    """Both forms give 26 tables; an empty field is an empty bag; a value has another row in each column."""
    path = tmp_path / "log"
    data = text(SAMPLES, separator, header).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    trace = load_criteo(path, [1000] * 26).collected()
    assert [some.bags.offsets.tolist() for some in trace.lookups] == [[0, 1, 2]] * 25 + [[0, 0, 1]]
    assert all((some.bags.indices < 1000).all() for some in trace.lookups)
    assert len({int(some.bags.indices[0]) for some in trace.lookups[:25]}) > 20
    assert trace.labels is not None
    assert trace.numbers is not None
    assert trace.labels.tolist() == [0, 1]
    assert trace.numbers.tolist() == [[np.float32(math.log(2))] * 13, [0] * 13]


FIELD = st.one_of(st.just(""), st.integers(-(10**6), 10**12).map(str), st.integers(0, 10**6).map(lambda n: f"{n}.0"))
VALUE = st.one_of(st.just(""), st.integers(0, 2**32 - 1).map(lambda n: f"{n:08x}"), st.sampled_from(["a", "0F", "ff"]))


@settings(max_examples=25)
@given(st.lists(st.tuples(*[FIELD] * 13, *[VALUE] * 26), min_size=1, max_size=7), st.integers(1, 9))
def test_equals_python(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], size: int) -> None:
    """Numbers and values are what Python makes of each field, however the file is cut into batches."""
    path = tmp_path_factory.mktemp("criteo") / "log"
    path.write_text(text([["1", *row] for row in rows]))
    batches = list(load_criteo(path, CRITEO_ROWS, ids="modulo").batches(size))
    assert [batch.samples for batch in batches] == [min(size, len(rows) - at) for at in range(0, len(rows), size)]
    dense = np.concatenate([batch.dense for batch in batches if batch.dense is not None])
    for row, numbers in zip(rows, dense, strict=True):
        wanted = [math.log1p(max(float(field or 0), 0)) for field in row[:13]]
        assert np.allclose(numbers, wanted, rtol=1e-6)
    for column in range(26):
        wanted_ids = [int(row[13 + column], 16) % CRITEO_ROWS[column] for row in rows if row[13 + column]]
        assert [i for batch in batches for i in batch.bags[column].indices.tolist()] == wanted_ids


def test_streams_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several day files follow each other, batches cross their borders, and little is read ahead."""
    monkeypatch.setattr("emucsd.traces.files.PIECE", 4096)
    paths = []
    for day in range(3):
        paths.append(tmp_path / f"day_{day}")
        paths[-1].write_text(text([[str(day % 2), *[str(n)] * 13, *[f"{n:08x}"] * 26] for n in range(70)]))
    told: list[int] = []
    trace = load_criteo(paths, [1 << 32] * 26, ids="modulo", progress=lambda done, _size: told.append(done))
    first = next(trace.batches(50))
    assert first.samples == 50
    assert len(told) <= 5  # of some 40 pieces
    batches = list(trace.batches(50))
    assert [batch.samples for batch in batches] == [50, 50, 50, 50, 10]
    assert np.concatenate([batch.bags[3].indices for batch in batches]).tolist() == list(range(70)) * 3
    assert trace.collected(75).samples == 75
    sparse = first.sparse
    assert sparse[0][1].tolist() == list(range(50))


@pytest.mark.parametrize(
    ("change", "line", "field"),
    [
        ((2, 1, "x"), 3, "I1"),
        ((1, 13, "-"), 2, "I13"),
        ((0, 14, "12345678a"), 1, "C1"),
        ((2, 39, "0x12"), 3, "C26"),
        ((1, 0, "no"), 2, "label"),
    ],
)
def test_malformed_field(tmp_path: Path, change: tuple[int, int, str], line: int, field: str) -> None:
    """A field that is no number, or no 32-bit hexadecimal value, is named with its line."""
    rows = [list(SAMPLES[1]) for _ in range(3)]
    rows[change[0]][change[1]] = change[2]
    path = tmp_path / "day_0"
    path.write_text(text(rows))
    with pytest.raises(TraceFormat, match=r"day_0, line") as caught:
        load_criteo(path).collected()
    assert (caught.value.line, caught.value.field) == (line, field)


def test_malformed_line(tmp_path: Path) -> None:
    """A short line, also after a header, wrong table sizes and an unknown way of hashing are named."""
    path = tmp_path / "log"
    path.write_text("0,1,2\n")
    with pytest.raises(TraceFormat, match="line 1: 3 fields"):
        load_criteo(path, [10] * 26).collected()
    path.write_text(text([SAMPLES[0], SAMPLES[1][1:]], ",", header=True))
    with pytest.raises(TraceFormat, match="line 3: 39 fields"):
        load_criteo(path, [10] * 26).collected()
    with pytest.raises(InvalidArgument, match="25 table sizes"):
        load_criteo(path, [10] * 25)
    with pytest.raises(InvalidArgument, match="'modulo'"):
        load_criteo(path, ids="md5")  # type: ignore[arg-type]


def test_no_lines(tmp_path: Path) -> None:
    """An empty file has no batches, and nothing to collect."""
    path = tmp_path / "log"
    path.write_text("")
    trace = load_criteo(path)
    assert list(trace.batches(5)) == []
    with pytest.raises(TraceError, match="no samples"):
        trace.collected()


@pytest.mark.skipif(DATA is None, reason="no folder with the real log: set EMUCSD_DATA")
def test_real_sample() -> None:
    """The real sample's 200 rows load, with the missing fields that it has."""
    assert DATA is not None
    trace = load_criteo(DATA / CRITEO_FILE).collected()
    assert trace.samples == 200
    assert len(trace.lookups[21].bags.indices) == 200 - 159
    assert trace.numbers is not None
    assert trace.numbers[0, :4] == pytest.approx([0, math.log1p(3), math.log1p(260), 0])
