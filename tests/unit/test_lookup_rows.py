"""Row types: what is stored, what comes back, and what the engine adds, bit for bit; weights and seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd.errors import InvalidArgument
from emucsd.rowtypes import decode, dtype_of, encode, generated_rows, stride_of
from emucsd.traces import Bags, bags_of
from emucsd_wire.vendor import MAX_DIM, Dtype, content_bytes
from tests.unit.lookup_rig import Rig, Rows, payload
from tests.unit.test_lookup_engine import equal

DTYPES = list(Dtype)
DIMS = st.one_of(st.integers(1, 80), st.sampled_from([128, 255, 1024, 1025]))


def made(rows: int, dim: int, seed: int = 0) -> Rows:
    """Rows whose sums depend on the order of additions."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, dim)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(np.float32)


def weighted(rows: Rows, bags: Bags, weights: Rows, start: Rows | None = None) -> Rows:
    """FP32 sums of weight * row, each product rounded, in index order."""
    sums = np.zeros((bags.count, rows.shape[1]), np.float32)
    if start is not None:
        sums[0] = start
    lengths = np.diff(bags.offsets)
    for step in range(int(lengths.max(initial=0))):
        open_bags = np.flatnonzero(lengths > step)
        at = bags.offsets[open_bags] + step
        sums[open_bags] += weights[at, None] * rows[bags.indices[at]]
    return sums


_RIG = Rig(pages=96)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_model(data: st.DataObject) -> None:
    """Rows of any type and width, at any stride, weighted or not, mean or not: NumPy's own sums of decoded rows."""
    rig, seed = _RIG, data.draw(st.integers(0, 1 << 16))
    rng = np.random.default_rng(seed)
    rig.reset_port()
    rig.tables.close_port(0)
    rig.map[:] = 0
    rig.place(list(range(96)), seed)
    dtype, dim = data.draw(st.sampled_from(DTYPES)), data.draw(DIMS)
    content = content_bytes(dtype, dim)
    stride = data.draw(st.sampled_from([content, content + 3, stride_of(dtype, dim)]))
    count = min((96 * 4096 - content) // stride + 1, 700)
    stored = encode(made(count, dim, seed), dtype)
    image = np.zeros((count, stride), np.uint8)
    image[:, :content] = stored
    flat = image.reshape(-1)
    for page in range(-(-len(flat) // 4096)):
        piece = flat[4096 * page : 4096 * page + 4096]
        rig.media[rig.map[page] - 1, : len(piece)] = piece
    handle = rig.open(count, dim, [(0, 96 * 8)], dtype=dtype, row_bytes=stride)
    lengths = np.array(data.draw(st.lists(st.sampled_from([0, 1, 2, 7, 80, 300]), min_size=1, max_size=6)))
    bags = bags_of(lengths, rng.integers(0, count, int(lengths.sum())))
    weights = rng.standard_normal(len(bags.indices)).astype(np.float32) if data.draw(st.booleans()) else None
    carry = rng.standard_normal(dim).astype(np.float32) if data.draw(st.booleans()) else None
    mean = carry is None and data.draw(st.booleans())
    width = data.draw(st.sampled_from([4, 8]))
    sent = payload(
        handle, bags.indices, bags.offsets, dim, width=width, carry=carry, weights=weights, flags=4 if mean else 0
    )
    answer = rig.answer(sent, bags.count, dim)
    ones = np.ones(len(bags.indices), np.float32)
    wanted = weighted(decode(stored, dtype, dim), bags, ones if weights is None else weights, carry)
    if mean:
        wanted /= np.maximum(lengths, 1).astype(np.float32)[:, None]
    assert answer.status == 0
    assert equal(answer.sums, wanted)


def test_halves() -> None:
    """Every FP16 number, denormal, infinite and NaN, widens to the FP32 number that it is."""
    rig = Rig(pages=32)
    rig.place(list(range(32)))
    every = np.arange(1 << 16, dtype=np.uint16)
    rig.media[rig.map[:32] - 1] = every.view(np.uint8).reshape(32, 4096)
    handle = rig.open(1 << 13, 8, [(0, 256)], dtype=Dtype.FP16)
    with np.errstate(invalid="ignore"):
        wanted = every.view(np.float16).astype(np.float32).reshape(-1, 8) + np.float32(0)
    for first in range(0, 1 << 13, 1 << 11):
        ids = np.arange(first, first + (1 << 11))
        found = rig.answer(payload(handle, ids, np.arange((1 << 11) + 1), 8), 1 << 11, 8).sums
        assert np.array_equal(found, wanted[ids], equal_nan=True)


@pytest.mark.parametrize("dtype", [Dtype.INT8, Dtype.INT4])
def test_half_a_step(dtype: Dtype) -> None:
    """A quantised element comes back within half a step, or for INT4 within its FP16 scale's and bias' rounding."""
    rows = made(200, 37)
    back = decode(encode(rows, dtype), dtype, 37)
    steps = 255 if dtype == Dtype.INT8 else 15
    span = rows.max(axis=1, keepdims=True) - rows.min(axis=1, keepdims=True)
    slack = 1e-5 if dtype == Dtype.INT8 else 2e-3
    assert (np.abs(back - rows) <= span / steps * 0.5 + np.abs(rows).max(axis=1, keepdims=True) * slack).all()
    flat = np.full((3, 5), 0.7, np.float32)
    assert np.abs(decode(encode(flat, dtype), dtype, 5) - flat).max() < 1e-3


def test_as_torch() -> None:
    """Stored bytes and decoded rows are those of PyTorch's fused row-wise operators."""
    torch = pytest.importorskip("torch")
    rows = made(300, 32)
    given = torch.from_numpy(rows)
    operators = torch.ops.quantized
    packed8, packed4 = operators.embedding_bag_byte_prepack(given), operators.embedding_bag_4bit_prepack(given)
    for dtype, packed, unpack in (
        (Dtype.INT8, packed8, operators.embedding_bag_byte_unpack),
        (Dtype.INT4, packed4, operators.embedding_bag_4bit_unpack),
    ):
        stored = encode(rows, dtype)
        content = content_bytes(dtype, 32)
        tail = 8 if dtype == Dtype.INT8 else 4
        theirs = packed.numpy()
        assert theirs.shape == stored.shape
        assert np.array_equal(theirs[:, -tail:], stored[:, -tail:])
        steps = np.float32(1 / 255 if dtype == Dtype.INT8 else 1 / 15)
        span = rows.max(axis=1, keepdims=True) - rows.min(axis=1, keepdims=True)
        near = np.abs(unpack(packed).numpy() - decode(stored, dtype, 32)) <= span * steps * 1.01
        assert near.all()
        assert (theirs != stored).mean() < 0.01
        assert content == stored.shape[1]


def test_not_finite() -> None:
    """Quantised rows hold finite numbers only; names of types are checked."""
    with pytest.raises(InvalidArgument, match="finite"):
        encode(np.array([[np.nan, 1]], np.float32), Dtype.INT8)
    with pytest.raises(InvalidArgument, match="float64"):
        dtype_of("float64")


def test_strides() -> None:
    """Rows up to 4096 bytes stay within pages; longer ones are packed."""
    assert [stride_of(Dtype.FP32, dim) for dim in (1, 32, 33, 1024, 1025)] == [4, 128, 132, 4096, 4100]
    assert [stride_of(Dtype.INT8, dim) for dim in (8, 32, 64)] == [16, 64, 128]
    assert [stride_of(Dtype.INT4, dim) for dim in (8, 64, 7)] == [8, 64, 8]


# -- generated


@pytest.mark.parametrize("dim", [1, 7, 16, 33, 64, 1024, MAX_DIM])
def test_generated(dim: int) -> None:
    """Rows of a seed are the same here and there, whole or in pieces, and take the flash's time on striped dies."""
    rig = Rig(pages=64)
    stride = 1 << (4 * dim - 1).bit_length()
    for row_bytes in (stride, 4 * dim):
        count = 64 * 4096 // row_bytes
        handle = rig.open(count, dim, [(0, 512)], seed=12345, row_bytes=row_bytes, name=row_bytes)
        ids = np.random.default_rng(dim).integers(0, count, 40)
        answer = rig.answer(payload(handle, ids, np.arange(41), dim) if dim < 5000 else
                            payload(handle, ids[:20], np.arange(21), dim), 40 if dim < 5000 else 20, dim)  # fmt: skip
        wanted = generated_rows(12345, ids, dim)[: len(answer.sums)]
        assert equal(answer.sums, wanted + np.float32(0))
        assert answer.ready > 14_000
        assert np.abs(wanted).max() < 1
        stats = rig.tables.records[handle % 64]
        assert stats["flash_reads"] >= len(answer.sums)
        rig.tables.close(0, handle)


def test_generated_and_written() -> None:
    """What was written to a generated table's pages is what it says; the other pages' rows come from the seed."""
    rig = Rig(pages=8)
    rig.place([3])
    rows = made(32, 32)
    rig.media[rig.map[3] - 1] = rows.reshape(-1).view(np.uint8)
    handle = rig.open(256, 32, [(0, 64)], seed=1 << 63)
    ids = np.arange(256)
    found = rig.answer(payload(handle, ids, np.arange(257), 32), 256, 32).sums
    wanted = generated_rows(1 << 63, ids, 32)
    wanted[96:128] = rows
    assert equal(found, wanted + np.float32(0))


def test_generated_spread() -> None:
    """Generated elements are spread evenly over [-1, 1), rows and columns do not resemble each other."""
    rows = generated_rows(7, np.arange(20_000), 32)
    assert abs(float(rows.mean())) < 0.005
    assert abs(float(rows.var()) - 1 / 3) < 0.005
    assert len(np.unique(rows)) > 0.9 * rows.size * (1 - rows.size / (1 << 25))
    assert np.abs(np.corrcoef(rows[:, :8].T) - np.eye(8)).max() < 0.05
    assert np.abs(np.corrcoef(rows[:8]) - np.eye(8)).max() < 0.9
    assert not np.array_equal(rows, generated_rows(8, np.arange(20_000), 32))


def test_stripes_dies() -> None:
    """Generated rows of neighbouring pages keep all dies busy: as quick as if they had been written there."""
    rig = Rig(pages=256)
    handle = rig.open(256, 1024, [(0, 2048)], seed=3)
    generated_ready = rig.answer(payload(handle, np.arange(256), np.array([0, 256]), 1024), 1, 1024).ready
    reads = rig.nand.snapshot()["classes"]["lookup"]["reads"]
    assert reads == 256
    alone = 256 * 20_000 / rig.profile.geometry.die_count
    assert alone <= generated_ready <= 1.6 * alone
