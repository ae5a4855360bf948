"""A batch's inputs: every form means the same, what fits no model is refused, and commands carry it whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emucsd.rm import EmbeddingTable, InputError, Model, SampleTooLarge, Sparse
from emucsd.rm.errors import IndexOutOfRangeOfTable
from emucsd.rm.inputs import checked
from emucsd.rm.payload import Limits, Part, Writer, place_of
from emucsd.rm.shape import stack
from emucsd_wire.rm import RM_BATCH, RmBatchFlag, batch_layout


def model_of(tables: int, rows: int = 1000, dense: int = 3) -> Model:
    shape = tuple(EmbeddingTable(rows, 4, 2) for _ in range(tables))
    return Model("made", dense, (), shape, "cat", stack((dense + 4 * tables, 1), last="sigmoid"))


def payload_of(writer: Writer, dense: Any, sparse: Sparse, part: Part) -> dict[str, Any]:
    """What a command would carry, read back the way the wire describes it."""
    payload = np.full(writer.limits.size, 0xEE, np.uint8)
    filled = writer.write(payload, dense, sparse, part)
    assert filled.size <= writer.limits.size
    at = batch_layout(part.samples, filled.lookups, filled.flags, dense=writer.dense, tables=writer.tables)
    wide = bool(filled.flags & RmBatchFlag.WIDE_IDS)
    ids = payload[at.ids : at.ids + filled.lookups * (8 if wide else 4)].view(np.int64 if wide else np.uint32)
    bags = writer.tables * part.samples
    end = at.offsets + 4 * (bags + 1)
    assert not payload[end : at.ids].any()
    weighted = filled.flags & RmBatchFlag.WEIGHTED
    return {
        "dense": payload[at.dense : at.offsets].view(np.float32).reshape(part.samples, -1),
        "offsets": payload[at.offsets : end].view(np.uint32),
        "ids": ids,
        "weights": payload[at.weights : at.size].view(np.float32) if weighted else None,
    }


FORMS = ("cube", "pairs", "ends", "matrices", "int32")


def form(kind: str, cube: NDArray[np.int64]) -> Any:
    """The same ids in another form."""
    samples, tables, length = cube.shape
    starts = np.arange(samples) * length
    rows = [cube[:, table, :].reshape(-1) for table in range(tables)]
    match kind:
        case "cube":
            return cube
        case "pairs":
            return [(ids, starts) for ids in rows]
        case "ends":
            return [(ids, np.append(starts, len(ids))) for ids in rows]
        case "matrices":
            return [ids.reshape(samples, length) for ids in rows]
        case _:
            return [(ids.astype(np.int32), starts.tolist()) for ids in rows]


@pytest.mark.parametrize("kind", FORMS)
def test_forms(kind: str) -> None:
    """Every form of the same ids becomes the same command."""
    model = model_of(3)
    cube = np.random.default_rng(1).integers(0, 1000, (5, 3, 4))
    dense = np.arange(15, dtype=np.float32).reshape(5, 3)
    features, sparse = checked(model, dense, form(kind, cube))
    found = payload_of(Writer(model, Limits(4096, 100)), features, sparse, Part(0, 5))
    assert np.array_equal(found["ids"], cube.transpose(1, 0, 2).reshape(-1))
    assert np.array_equal(found["offsets"], np.arange(16) * 4)
    assert np.array_equal(found["dense"], dense)


@given(
    lengths=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=40),
    size=st.sampled_from([160, 256, 512, 4096]),
    samples=st.sampled_from([1, 3, 100]),
    weighted=st.booleans(),
)
def test_parts_carry_everything(lengths: list[list[int]], size: int, samples: int, weighted: bool) -> None:
    """However bags are cut into commands: each fits, and together they carry every bag, in order, once."""
    model = model_of(3, dense=1)
    counts = np.array(lengths).T
    ids = [np.arange(row.sum()) + 100 * table for table, row in enumerate(counts)]
    factors = [np.linspace(0, 1, len(row)).astype(np.float32) for row in ids]
    items = [(row, np.cumsum(c) - c, f) for row, c, f in zip(ids, counts, factors, strict=True)]
    sparse = Sparse.of(3, items if weighted else [item[:2] for item in items])
    dense = np.arange(len(lengths), dtype=np.float32)[:, None]
    writer = Writer(model, Limits(size, samples))
    room = size - RM_BATCH.size - 20
    if max(16 + (8 if weighted else 4) * sum(bag) for bag in lengths) > room:
        with pytest.raises(SampleTooLarge, match="a command carries"):
            writer.parts(sparse)
        return
    parts = writer.parts(sparse)
    assert [part.first for part in parts] == [0, *(part.last for part in parts[:-1])]
    assert parts[-1].last == len(lengths)
    for part in parts:
        assert part.samples <= samples
        found = payload_of(writer, dense, sparse, part)
        bags = np.split(found["ids"], found["offsets"][1:-1])
        wanted = [np.split(row, np.cumsum(c)[:-1])[s] for row, c in zip(ids, counts, strict=True)
                  for s in range(part.first, part.last)]  # fmt: skip
        assert all(np.array_equal(a, b) for a, b in zip(bags, wanted, strict=True))
        assert np.array_equal(found["dense"][:, 0], np.arange(part.first, part.last))
        place = 0
        for table in range(3):
            low, high = (int(sparse.bounds[table, end]) for end in part)
            if weighted:
                assert np.array_equal(found["weights"][place : place + high - low], factors[table][low:high])
            for position in range(low, high):
                assert place_of(sparse, part, place) == (table, position, int(ids[table][position]))
                place += 1


def test_parts_are_even() -> None:
    """A batch that passes a command's size by little is cut in two halves, not in a command and a crumb."""
    model = Model.rmc2(rows=100)
    sparse = Sparse.of(32, np.zeros((64, 32, 120), np.int64))
    assert Writer(model, Limits(1 << 20, 4096)).parts(sparse) == [Part(0, 32), Part(32, 64)]


def test_ids_beyond_four_bytes() -> None:
    """Ids that 4 bytes would fold onto a row are refused by name; a table of that many rows gets ids of 8."""
    for value in (-1, 1 << 32, (1 << 32) + 5):
        for kind in ("cube", "pairs"):
            cube = np.zeros((4, 2, 3), np.int64)
            cube[2, 1, 1] = value
            sparse = Sparse.of(2, form(kind, cube))
            with pytest.raises(IndexOutOfRangeOfTable, match=f"table 1: .*7.* = {value}") as bad:
                payload_of(Writer(model_of(2), Limits(4096, 9)), np.zeros((4, 3), np.float32), sparse, Part(0, 4))
            assert (bad.value.table, bad.value.position, bad.value.value) == (1, 7, value)
    wide = model_of(2, rows=1 << 33)
    found = payload_of(Writer(wide, Limits(4096, 9)), np.zeros((4, 3), np.float32), sparse, Part(0, 4))
    assert found["ids"].dtype == np.int64
    assert int(found["ids"].max()) == (1 << 32) + 5


@pytest.mark.parametrize(
    ("dense", "sparse", "words"),
    [
        (np.zeros((2, 4), np.float32), [([1], [0, 1])] * 2, r"are \[2, 4\]; made takes \[samples, 3\]"),
        (np.zeros((2, 3)), [([1], [0, 1])] * 2, "are float64; give float32"),
        (None, [([1], [0])] * 2, "none were given"),
        (np.zeros((2, 3), np.float32), [([1], [0, 1])] * 3, "ids for 3 tables; the model has 2"),
        (np.zeros((2, 3), np.float32), [([1, 2], [0, 1])] * 2, None),
        (np.zeros((2, 3), np.float32), [([1, 2], [0])] * 2, "1 offsets for 2 samples"),
        (np.zeros((2, 3), np.float32), [([1, 2], [1, 2])] * 2, r"table 0: offsets\[0\] = 1"),
        (np.zeros((3, 3), np.float32), [([1, 2], [0, 2, 1])] * 2, r"table 0: offsets\[2\] = 1"),
        (np.zeros((2, 3), np.float32), [([1, 2], [0, 1, 3])] * 2, r"table 0: offsets\[2\] = 3.*end at 2 ids"),
        (np.zeros((2, 3), np.float32), [([1.5], [0, 1])] * 2, "are float64; row ids are whole numbers"),
        (np.zeros((2, 3), np.float32), [([1], [0, 0]), [1]], r"table 1: give \(indices, offsets\)"),
        (np.zeros((2, 3), np.float32), np.zeros((3, 2, 1), int), "ids of 3 samples, dense features of 2"),
        (np.zeros((2, 3), np.float32), [([1, 2], [0, 1], [0.5])] * 2, "one FP32 for each of 2 ids"),
        (np.zeros((2, 3), np.float32), [([1], [0, 0], [0.5]), ([1], [0, 0])], "for all, or for none"),
        (np.zeros((2, 3), np.float32), [], "no ids"),
    ],
)
def test_inputs_that_do_not_fit(dense: Any, sparse: Any, words: str | None) -> None:
    """Shapes, dtypes and offsets are checked before anything is sent, and the error says what was wanted."""
    if words is None:
        assert checked(model_of(2), dense, sparse)[1].samples == 2
        return
    with pytest.raises(InputError, match=words):
        checked(model_of(2), dense, sparse)
