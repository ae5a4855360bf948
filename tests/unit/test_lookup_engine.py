"""Lookups in the drive: sums bit for bit, errors by position, flash time by vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emucsd.traces import Bags, bags_of, sums_in_order
from emucsd_firmware.lookup.state import FREE, READY, TAGGED
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import MAX_PAYLOAD, MAX_RESULT, MAX_TAGS
from tests.unit.lookup_rig import Answer, Rig, Rows, payload

DIMS = st.one_of(st.integers(1, 80), st.sampled_from([128, 256, 1000, 1024, 1100, 8192]))


def filled(rig: Rig, seed: int = 0) -> None:
    """Every flash page holds numbers whose sums depend on the order of additions."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(rig.media.size // 4) * 10.0 ** rng.integers(-3, 4, rig.media.size // 4)
    rig.media[:] = values.astype(np.float32).view(np.uint8).reshape(rig.media.shape)


def rows_of(rig: Rig, dim: int, spans: list[tuple[int, int]], lba_bytes: int = 512) -> Rows:
    """The table's rows, as they lie in the logical pages."""
    flat = rig.logical().reshape(-1)
    packed = np.concatenate([flat[slba * lba_bytes :][: blocks * lba_bytes] for slba, blocks in spans])
    rows = len(packed) // (4 * dim)
    return packed[: rows * 4 * dim].view(np.float32).reshape(rows, dim)


def equal(left: Rows, right: Rows) -> bool:
    """Bit for bit."""
    return bool(np.array_equal(left.view(np.uint32), right.view(np.uint32)))


@pytest.fixture(scope="module")
def plain() -> tuple[Rig, int, Rows]:
    """1000 rows of 32 in one extent of mapped pages."""
    rig = Rig()
    rig.place(list(range(256)))
    filled(rig)
    return rig, rig.open(1000, 32, [(8, 250)]), rows_of(rig, 32, [(8, 250)])


@settings(deadline=None, max_examples=120, derandomize=True)
@given(st.data())
def test_model(data: st.DataObject) -> None:
    """Any width, any extents, straddling rows, unwritten and buffered pages, empty and long bags: NumPy's own sums."""
    rig, seed = _MODEL_RIG, data.draw(st.integers(0, 1 << 16))
    rng = np.random.default_rng(seed)
    rig.reset_port()
    rig.tables.close_port(0)
    rig.map[:] = 0
    rig.place(np.flatnonzero(rng.random(len(rig.map)) < 0.9), seed)
    lba_bytes = data.draw(st.sampled_from([512, 4096]))
    blocks = len(rig.map) * rig.page_bytes // lba_bytes
    spans = data.draw(st.lists(st.tuples(st.integers(0, blocks - 32), st.integers(1, 32)), min_size=1, max_size=6))
    dim = data.draw(DIMS)
    spans += [(0, -(-4 * dim // lba_bytes))]
    table = rows_of(rig, dim, spans, lba_bytes)
    handle = rig.open(len(table), dim, spans, lba_bytes=lba_bytes)
    lengths = np.array(data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 7, 80, 700]), min_size=1, max_size=12)))
    bags = bags_of(lengths, rng.integers(0, len(table), int(lengths.sum())))
    carry = rng.standard_normal(dim).astype(np.float32) if data.draw(st.booleans()) else None
    width, grain = data.draw(st.sampled_from([4, 8])), data.draw(st.sampled_from([0, 1]))
    sent = payload(handle, bags.indices, bags.offsets, dim, width=width, grain=grain, carry=carry)
    answer = rig.answer(sent, bags.count, dim)
    wanted = sums_in_order(table, bags)
    if carry is not None:
        wanted[0] = carry
        for row in bags.indices[: lengths[0]]:
            wanted[0] += table[row]
    assert answer.status == 0
    assert equal(answer.sums, wanted)
    rig.tables.close(0, handle)
    assert (rig.memory.requests["state"] == FREE).all()


_MODEL_RIG = Rig(pages=96)
filled(_MODEL_RIG)


def test_buffered_pages(plain: tuple[Rig, int, Rows]) -> None:
    """A page whose newest version is in the write buffer is summed from there, without flash time."""
    rig, _, _ = plain
    handle = rig.open(32, 32, [(0, 8)], name=7)
    mapped, rig.map[0] = int(rig.map[0]), (1 << 31) | 2
    rig.buffer[2] = np.arange(1024, dtype=np.float32).view(np.uint8)
    ids = np.arange(32)
    answer = rig.answer(payload(handle, ids, np.array([0, 32]), 32), 1, 32)
    rig.map[0] = mapped
    assert answer.sums[0].tolist() == np.arange(1024, dtype=np.float32).reshape(32, 32).sum(0).tolist()
    stats = rig.tables.records[handle % 64]
    assert (stats["buffered"], stats["flash_reads"]) == (32, 0)


def test_special_values() -> None:
    """Signed zeros, infinities, NaN and denormals come out as IEEE addition from zero has them."""
    rig = Rig(pages=4)
    rig.place([0])
    values = np.array([[-0.0], [np.inf], [-np.inf], [np.nan], [1e-45], [3e38]], np.float32)
    rig.media[rig.map[0] - 1, : values.nbytes] = values.reshape(-1).view(np.uint8)
    handle = rig.open(6, 1, [(0, 1)])
    ids = np.array([0, 0, 1, 2, 4, 4, 5, 5])
    bags = Bags(ids, np.array([0, 2, 4, 6, 8]))
    answer = rig.answer(payload(handle, bags.indices, bags.offsets, 1), 4, 1)
    with np.errstate(all="ignore"):
        wanted = sums_in_order(values, bags)
    assert np.signbit(answer.sums[0, 0]) == np.signbit(np.float32(0) + np.float32(-0.0))
    assert np.isnan(answer.sums[1, 0])
    assert equal(answer.sums[[0, 2, 3]], wanted[[0, 2, 3]])


# -- what is refused


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("position", [0, 5, 79])
def test_id_out_of_range(plain: tuple[Rig, int, Rows], width: int, position: int) -> None:
    """The status names the first id out of range, at any width and also as a negative number; nothing happens."""
    rig, handle, _ = plain
    ids = np.arange(80)
    ids[position] = 1000 if width == 4 else -1
    ids[79] = 1000
    before = rig.nand.snapshot()["classes"]["lookup"]["reads"]
    assert rig.send(payload(handle, ids, np.array([0, 80]), 32, width=width)) == Status.LOOKUP_INDEX_RANGE
    assert rig.position == position
    assert rig.run() == 0
    assert rig.nand.snapshot()["classes"]["lookup"]["reads"] == before
    assert rig.request(128) == -Status.LOOKUP_NO_REQUEST


@pytest.mark.parametrize(
    ("offsets", "position"), [([1, 4], 0), ([0, 3, 2, 4], 2), ([0, 5, 4], 1), ([0, 3], 1), ([0, 4, 4, 9], 3)]
)
def test_offsets(plain: tuple[Rig, int, Rows], offsets: list[int], position: int) -> None:
    """Offsets start at 0, never fall and end at the ids; the status names the first that does not."""
    rig, handle, _ = plain
    data = payload(handle, np.arange(4), np.array(offsets), 32)
    assert rig.send(data) == Status.LOOKUP_OFFSETS
    assert rig.position == position


def changed(data: NDArray[np.uint8], at: int, value: int) -> NDArray[np.uint8]:
    copy = data.copy()
    copy[at] = value
    return copy


def test_malformed(plain: tuple[Rig, int, Rows]) -> None:
    """Short, long and senseless payloads, unknown handles and tags are refused with a status, in that order."""
    rig, handle, _ = plain
    good = payload(handle, np.arange(4), np.array([0, 4]), 32)
    assert rig.send(good[:31]) == Status.INVALID_FIELD
    assert rig.send(good[:-4]) == Status.INVALID_FIELD
    assert rig.send(np.append(good, good[:8])) == Status.INVALID_FIELD
    assert rig.send(np.zeros(MAX_PAYLOAD + 8, np.uint8)) == Status.COMMAND_SIZE_LIMIT
    assert rig.send(good, tag=MAX_TAGS) == Status.INVALID_FIELD
    assert rig.send(good, tag=-1) == Status.INVALID_FIELD
    assert rig.send(changed(good, 0, good[0] ^ 0x20)) == Status.LOOKUP_NO_TABLE
    assert rig.send(good, port=1) == Status.LOOKUP_NO_TABLE
    for at, value in ((4, 2), (5, 5), (6, 2), (7, 1)):  # grain, id width, flags
        assert rig.send(changed(good, at, value)) == Status.INVALID_FIELD
    assert rig.send(payload(handle, np.arange(0), np.array([0]), 32)) == Status.INVALID_FIELD
    most = MAX_RESULT // 128
    assert rig.send(payload(handle, np.arange(0), np.zeros(most + 2, int), 32)) == Status.COMMAND_SIZE_LIMIT
    assert rig.answer(payload(handle, np.arange(0), np.zeros(most + 1, int), 32), most, 32).status == 0


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    """No payload brings the engine down, with the rest of a header right or not."""
    rig = _MODEL_RIG
    handle = rig.open(8, 3, [(0, 1)])
    good = payload(handle, np.arange(8), np.array([0, 3, 8]), 3)
    for sent in (np.frombuffer(data, np.uint8), np.concatenate([good[:16], np.frombuffer(data, np.uint8)])):
        if rig.send(sent) == 0:
            rig.run()
            assert rig.drop() == 0
    rig.tables.close(0, handle)


def test_unreadable_row() -> None:
    """A row on blocks marked uncorrectable fails the request by its position; rows beside it, and later ones, don't."""
    rig = Rig()
    rig.place(list(range(256)))
    filled(rig)
    handle, table = rig.open(1000, 32, [(0, 250)]), rows_of(rig, 32, [(0, 250)])
    rig.ftl["marked_pages"] = 1
    rig.oob[rig.map[1] - 1]["bad"] = 0b100  # LBA 10: rows 40 to 43
    ids = np.array([1, 39, 44, 500, 42, 43])
    answer = rig.answer(payload(handle, ids, np.array([0, 6]), 32), 1, 32)
    assert (answer.status, answer.position) == (Status.UNRECOVERED_READ, 4)
    answer = rig.answer(payload(handle, ids[:4], np.array([0, 4]), 32), 1, 32)
    assert answer.status == 0
    assert equal(answer.sums, sums_in_order(table, Bags(ids[:4], np.array([0, 4]))))
    assert rig.tables.records[handle % 64]["failed"] == 1


def test_uncorrectable_flash() -> None:
    """Where the flash errs, a request ends well with right sums or fails: there is no third way."""
    rig = Rig(**{"reliability.read_fail_ppm": 20_000})
    rig.ftl["unreliable"] = 1
    rig.place(list(range(256)))
    filled(rig)
    headers = np.zeros(1 << 10, np.int64)
    rig.ftl["headers"] = rig.ftl["erases"] = rig.ftl["kinds"] = headers.ctypes.data
    handle, table = rig.open(1000, 32, [(0, 250)]), rows_of(rig, 32, [(0, 250)])
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        ids = rng.integers(0, 1000, 40)
        answer = rig.answer(payload(handle, ids, np.array([0, 40]), 32), 1, 32)
        seen.add(answer.status)
        assert answer.status or equal(answer.sums, sums_in_order(table, Bags(ids, np.array([0, 40]))))
    assert seen == {0, Status.UNRECOVERED_READ}


# -- tags, tables, ports


def test_tags(plain: tuple[Rig, int, Rows]) -> None:
    """A tag is taken until its answer is read or dropped; reads name the size that they have room for."""
    rig, handle, _ = plain
    data = payload(handle, np.arange(4), np.array([0, 4]), 32)
    assert rig.send(data, tag=3) == 0
    assert rig.send(data, tag=3) == Status.LOOKUP_BUSY
    assert rig.request(64, tag=3) == -Status.INVALID_FIELD
    assert rig.request(128, tag=4) == -Status.LOOKUP_NO_REQUEST
    number = rig.request(128, tag=3, waiter=77)
    assert rig.request(128, tag=3) == -Status.LOOKUP_BUSY
    assert rig.pop_done() == -1
    rig.run()
    assert rig.pop_done() == number
    assert rig.memory.requests[number]["waiter"] == 77
    assert rig.pop_done() == -1
    rig.release(number)
    assert rig.send(data, tag=3) == 0
    assert rig.drop(3) == 0
    assert rig.drop(3) == Status.LOOKUP_NO_REQUEST
    rig.run()
    assert (rig.memory.requests["state"] == FREE).all()


def test_every_tag_of_both_ports() -> None:
    """All 512 tags can be in use; a reset drops one port's, and its unfinished reads come back unseen."""
    rig = Rig()
    rig.place(list(range(256)))
    filled(rig)
    table = rows_of(rig, 32, [(0, 250)])
    handles = [rig.open(1000, 32, [(0, 250)], port=port) for port in (0, 1)]
    for tag in range(MAX_TAGS):
        for port in (0, 1):
            sent = payload(handles[port], np.array([tag, 999]), np.array([0, 2]), 32)
            assert rig.send(sent, tag=tag, port=port) == 0
    rig.run(500_000)
    rig.reset_port(1)
    rig.tables.close_port(1)
    assert 256 < (rig.memory.requests["state"] != FREE).sum() < 512
    rig.run()
    for tag in range(MAX_TAGS):
        assert equal(rig.take(1, 32, tag=tag).sums[0], (table[tag] + np.float32(0)) + table[999])
    assert (rig.memory.requests["state"] == FREE).all()
    assert sorted(chain(rig)) == list(range(TAGGED))
    assert rig.lookup["reading"][0] == -1


def chain(rig: Rig) -> list[int]:
    """The list of free requests."""
    found, number = [], int(rig.lookup["free"][0])
    while number >= 0:
        found.append(number)
        number = int(rig.memory.requests[number]["next"])
    return found


def test_namespace_gone() -> None:
    """Lookups of a table whose namespace goes away fail with Invalid Namespace, sent or half read."""
    rig = Rig()
    rig.place(list(range(256)))
    handle = rig.open(1000, 32, [(0, 250)])
    data = payload(handle, np.arange(1000), np.array([0, 1000]), 32)
    assert [rig.send(data, tag=tag) for tag in range(2)] == [0, 0]
    rig.run(200_000)
    rig.tables.close_namespace(1)
    rig.run()
    assert [rig.take(1, 32, tag=tag).status for tag in range(2)] == [Status.INVALID_NAMESPACE] * 2
    assert rig.tables.records["active"].sum() == 0
    assert rig.send(data) == Status.LOOKUP_NO_TABLE


# -- time


def timed(count: int, grain: int = 0, dim: int = 32, **changes: Any) -> tuple[Answer, Rig]:
    """One bag of ``count`` vectors, one on each page."""
    rig = Rig(**changes)
    rig.place(list(range(256)), seed=5)
    rows_a_page = rig.page_bytes // (4 * dim)
    handle = rig.open(256 * rows_a_page, dim, [(0, 256 * rig.page_bytes // 512)])
    ids = np.arange(count) % 256 * rows_a_page
    return rig.answer(payload(handle, ids, np.array([0, count]), dim, grain=grain), 1, dim), rig


ONE_DIE = {"geometry.channels": 1, "geometry.dies": 1, "blocks": 64, "lookup.translate_cycles": 0}


def test_time_of_one_vector() -> None:
    """RM-SSD's formula: 14 us of array and 6 us x bytes / 4096 of channel; with the translator's and adders' cycles."""
    assert timed(1, **ONE_DIE)[0].ready == 14_000 + 188 + 5
    assert timed(1, grain=1, **ONE_DIE)[0].ready == 20_000 + 5
    assert timed(1, **{**ONE_DIE, "lookup.translate_cycles": 100})[0].ready == 500 + 14_188 + 5


def test_time_of_many() -> None:
    """Vectors queue at their dies and channels; whole pages take the channel longer, and so do wider vectors."""
    assert timed(100, **ONE_DIE)[0].ready == 100 * 14_188 + 5
    assert timed(100, grain=1, **ONE_DIE)[0].ready == 100 * 20_000 + 5
    several = {"geometry.channels": 1, "geometry.dies": 8}
    vectors, pages = timed(256, **several)[0].ready, timed(256, grain=1, **several)[0].ready
    assert pages > 256 * 6_000 > 2 * vectors
    assert timed(256, dim=128, **several)[0].ready > vectors


def test_every_knob_counts() -> None:
    """Clock, translator, adders and path buffer each change the time of a lookup."""
    fast = {"nand.read_ns": 1000, "nand.transfer_ns_per_4k": 100}
    base = timed(256, **fast)[0].ready
    for name, value in (("clock_mhz", 20), ("translate_cycles", 40), ("sum_cycles", 60), ("sum_lanes", 1)):
        assert timed(256, **fast, **{f"lookup.{name}": value})[0].ready > base, name
    assert timed(256, **fast, **{"lookup.path_buffer": 1})[0].ready > base


def test_unwritten_takes_no_flash() -> None:
    """Rows on pages that were never written are zeros, at the translator's speed."""
    rig = Rig()
    handle = rig.open(1000, 32, [(0, 250)])
    answer = rig.answer(payload(handle, np.arange(100), np.array([0, 100]), 32), 1, 32)
    assert not answer.sums.any()
    assert answer.ready == 100 * 5 + 5
    assert rig.tables.records[handle % 64]["unwritten"] == 100


def test_counters() -> None:
    """Flash reads and bytes are counted by grain, as the NAND model counts them."""
    for grain, each in ((0, 128), (1, 4096)):
        _, rig = timed(50, grain=grain)
        stats, flash = rig.tables.records[0], rig.nand.snapshot()["classes"]["lookup"]
        assert (stats["flash_reads"], stats["flash_bytes"]) == (flash["reads"], flash["nbytes"]) == (50, 50 * each)
        assert (stats["requests"], stats["bags"], stats["vectors"]) == (1, 1, 50)


def test_repeatable() -> None:
    """The same requests take the same time, to the nanosecond."""
    assert timed(200)[0].ready == timed(200)[0].ready


def test_ready_waits_for_the_adders() -> None:
    """A request that is READY still says when its sums are, which can be later than its last vector."""
    rig = Rig(**{"lookup.sum_cycles": 10_000})
    handle = rig.open(10, 32, [(0, 3)])
    assert rig.send(payload(handle, np.arange(10), np.array([0, 10]), 32)) == 0
    assert rig.run() < 1000
    number = rig.request(128)
    assert rig.memory.requests[number]["state"] == READY
    assert rig.memory.requests[number]["ready"] == 10 * 10_000 * 5
    rig.release(number)
