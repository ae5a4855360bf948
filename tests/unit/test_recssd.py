"""RecSSD's firmware on flash in memory: sums, what its caches and its processor cost, and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emucsd_firmware.ftl.state import ftl_at
from emucsd_firmware.nand.jobs import job_finish, pop_done
from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nand.state import nand_at
from emucsd_firmware.nand.timing import advance, next_event
from emucsd_firmware.recssd import pages, requests, waiters
from emucsd_firmware.recssd.state import (
    EARLY_NS,
    FREE,
    NEVER,
    PAGES,
    RESULT_BYTES,
    RecSsd,
    RecSsdMemory,
    recssd_at,
    waiter_at,
)
from emucsd_wire.nvme import Status
from emucsd_wire.recssd import MAX_CONFIG, MAX_REQUESTS, SECTOR, SLS_CONFIG, SlsConfig
from emucsd_wire.words import copy, jit
from tests.unit.lookup_rig import Rig

Pairs = NDArray[np.int64]
Rows = NDArray[np.float32]


@jit
def _write(recssd: int, now: int, port: int, slba: int, base: int, space: int, data: int, count: int) -> int:
    engine = recssd_at(recssd, 0)
    number = requests.place(engine, port, 1, slba, count)
    if number < 0:
        return -number
    copy(requests.config_of(engine, number), data, count)
    return requests.start(engine, now, number, port, 1, slba, base, space, count)


@jit
def _read(recssd: int, now: int, port: int, slba: int, sectors: int, slot: int) -> int:
    return requests.read(recssd_at(recssd, 0), now, port, 1, slba, sectors, slot)


@jit
def _run(recssd: int, ftl: int, nand: int, until: int) -> int:
    engine, flash, media = recssd_at(recssd, 0), nand_at(nand, 0), ftl_at(ftl, 0)
    now = 0
    while engine.done < 0:
        when = min(engine.wake, next_event(flash))
        if when > until or when == NEVER:
            return now
        now = max(now, when)
        if next_event(flash) <= engine.wake:
            advance(flash, when)
            while True:
                job = pop_done(flash)
                if job < 0:
                    break
                pages.page_done(engine, media, flash, job, job_finish(flash, job))
        else:
            pages.pump(engine, media, flash, now)
    return now


@jit
def _take(recssd: int) -> int:
    """The number of the next answered read, or -1; it is freed, but its record stays until the next one."""
    engine = recssd_at(recssd, 0)
    number = waiters.pop_done(engine)
    if number >= 0:
        waiter_at(engine.waiters, number).ready = waiters.send_off(engine, number)
        requests.given(engine, number, waiter_at(engine.waiters, number).ready)
    return number


@jit
def _abandon(recssd: int, number: int) -> None:
    requests.abandon(recssd_at(recssd, 0), number)


class Answer(NamedTuple):
    """A read, answered."""

    slot: int
    status: int
    position: int
    ready: int
    data: NDArray[np.uint8]


class SlsRig(Rig):
    """The flash of ``Rig``, all of it written, under RecSSD's firmware."""

    def __init__(self, pages_: int = 256, **settings: Any) -> None:
        super().__init__(pages_, **{"geometry.blocks": 16, **settings})
        self.place(list(range(pages_)))
        rng = np.random.default_rng(5)
        self.media[:] = rng.standard_normal(self.media.size // 4).astype(np.float32).view(np.uint8).reshape(-1, 4096)
        self.nand = NandModel(self.profile, PAGES)
        self._nand = self.nand.record.__array_interface__["data"][0]
        self.sls = RecSsdMemory(self.profile.recssd, self.page_bytes, self.profile.geometry.die_count, 0)
        self.recssd = np.zeros(1, RecSsd.dtype)
        self.sls.fill(self.recssd[0])
        self.at = self.recssd.ctypes.data

    def rows(self, dim: int, start: int = 0) -> Rows:
        """The table that starts at block ``start``."""
        flat = self.logical().reshape(-1)[start * SECTOR :]
        return flat[: len(flat) // (4 * dim) * 4 * dim].view(np.float32).reshape(-1, dim)

    def write(self, data: bytes, *, slba: int = 1, now: int = 0, port: int = 0, start: int = 0) -> int:
        row = np.frombuffer(data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0"), np.uint8)
        space = len(self.map) * self.page_bytes - start * SECTOR
        return int(_write(self.at, now, port, slba, start * SECTOR, space, row.ctypes.data, len(row)))

    def read(self, sectors: int, *, slba: int = 1, now: int = 0, slot: int = 0, port: int = 0) -> int:
        return int(_read(self.at, now, port, slba, sectors, slot))

    def go(self, until: int = NEVER - 1) -> int:
        """Run until a read is answered."""
        return int(_run(self.at, self.ftl.ctypes.data, self._nand, until))

    def answered(self) -> Answer:
        """The next answered read, with its data."""
        number = int(_take(self.at))
        assert number >= 0
        waiter = self.sls.waiters[number]
        request = int(waiter["request"])
        first, count = int(waiter["first"]) * SECTOR, int(waiter["sectors"]) * SECTOR
        data = self.sls.results[max(request, 0) * RESULT_BYTES :][first : first + count].copy()
        position = int(self.sls.requests[request]["position"]) if request >= 0 else 0
        return Answer(int(waiter["slot"]), int(waiter["status"]), position, int(waiter["ready"]), data)

    def sums(self, pairs: Pairs, results: int, dim: int, *, now: int = 0, start: int = 0) -> tuple[Rows, int]:
        """One request from its write to its only read: the sums, and when they were there."""
        assert self.write(config(pairs, results, dim), now=now, start=start) == 0
        assert self.read(-(-results * dim * 4 // SECTOR), now=now) == 0
        self.go()
        answer = self.answered()
        assert answer.status == 0
        self.go()
        return answer.data[: results * dim * 4].view(np.float32).reshape(results, dim), answer.ready

    @property
    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.sls.snapshot()["counters"]
        return counters

    @property
    def idle(self) -> bool:
        """Whether everything that was taken has been given back, once what is left to do is done."""
        self.go()
        free = [
            int((self.sls.requests["phase"] == FREE).sum()),
            *map(_listed, (self.sls.waiters, self.sls.reads), self._heads),
        ]
        return free == [MAX_REQUESTS, len(self.sls.waiters), PAGES] and not self.sls.in_flight.any()

    @property
    def _heads(self) -> tuple[int, int]:
        return int(self.recssd["free_waiter"][0]), int(self.recssd["free_read"][0])


def _listed(records: NDArray[Any], head: int) -> int:
    count = 0
    while head >= 0:
        head, count = int(records[head]["next"]), count + 1
    return count


def config(
    pairs: Pairs, results: int, dim: int, *, attribute: int = 4, inputs: int | None = None, table: int = 0
) -> bytes:
    """The data of a write."""
    header = SlsConfig(attribute, dim, results, len(pairs) if inputs is None else inputs, table)
    return SLS_CONFIG.pack(header) + np.asarray(pairs, "<u4").tobytes()


def reference(rows: Rows, pairs: Pairs, results: int) -> Rows:
    """Sums in the pairs' order."""
    sums = np.zeros((results, rows.shape[1]), np.float32)
    for result, row in pairs:
        sums[result] += rows[row]
    return sums


def random_pairs(rng: np.random.Generator, count: int, results: int, rows: int) -> Pairs:
    pairs = np.stack([rng.integers(0, results, count), rng.integers(0, rows, count)], 1)
    return pairs[np.argsort(pairs[:, 1], kind="stable")]


@pytest.fixture(scope="module")
def rig() -> SlsRig:
    return SlsRig()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_sums(data: st.DataObject) -> None:
    """Any width, rows across pages, rows twice, empty results, unwritten pages: NumPy's sums, bit for bit."""
    rig, seed = _MODEL, data.draw(st.integers(0, 1 << 16))
    rng = np.random.default_rng(seed)
    rig.place(list(range(96)), seed)
    rig.map[rng.random(len(rig.map)) < 0.1] = 0
    dim = data.draw(st.sampled_from([1, 3, 32, 48, 64, 100, 1024, 1500, 8192]))
    start = data.draw(st.sampled_from([0, 5, 60]))
    rows = rig.rows(dim, start)
    results = data.draw(st.integers(1, min(40, RESULT_BYTES // (4 * dim))))
    pairs = random_pairs(rng, data.draw(st.sampled_from([0, 1, 7, 80, 700])), results, len(rows))
    sums, _ = rig.sums(pairs, results, dim, start=start)
    assert np.array_equal(sums.view(np.uint32), reference(rows, pairs, results).view(np.uint32))
    assert rig.idle


_MODEL = SlsRig(96, **{"recssd.cache_entries": 256})


def test_page_grained_time(rig: SlsRig) -> None:
    """One row alone: request, pair, page, the flash page whole, the row's adds, one sector; nothing else takes time."""
    costs = rig.profile.recssd
    now = 10_000_000
    _, ready = rig.sums(np.array([[0, 3]]), 1, 32, now=now)
    cycles = costs.request_cycles + costs.pair_cycles + costs.page_cycles
    cycles += costs.vector_cycles + 32 * (costs.element_cycles + costs.copy_cycles) + costs.sector_cycles
    assert ready - now == 14_000 + 6_000 + cycles


def test_row_cache(rig: SlsRig) -> None:
    """A row that was read is in the row cache: it counts, and costs no flash; one whose page was moved is not."""
    pairs = np.array([[0, 320], [1, 352], [0, 384]])
    first, _ = rig.sums(pairs, 2, 32, now=20_000_000)
    before = rig.counters
    again, ready = rig.sums(pairs, 2, 32, now=30_000_000)
    after = rig.counters
    assert np.array_equal(first, again)
    assert np.array_equal(again, reference(rig.rows(32), pairs, 2))
    assert after["cache_hits"] - before["cache_hits"] == 3
    assert after["flash_pages"] == before["flash_pages"]
    costs = rig.profile.recssd
    cycles = costs.request_cycles + 3 * (costs.pair_cycles + 32 * costs.element_cycles) + costs.sector_cycles
    assert ready - 30_000_000 == cycles
    here, other = rig.map[10], rig.map[200]
    rig.map[10], rig.map[200] = other, here  # rows 320 to 351 lie elsewhere now
    moved, _ = rig.sums(pairs, 2, 32, now=40_000_000)
    assert np.array_equal(moved, reference(rig.rows(32), pairs, 2))
    assert rig.counters["flash_pages"] == after["flash_pages"] + 1


def test_wide_rows_take_several_places() -> None:
    """A row of 256 bytes takes two places: it does not overrun one, and goes when its neighbour takes the second."""
    rig = SlsRig(**{"recssd.page_buffer": 0})
    rig.sums(np.array([[0, 7]]), 1, 64)
    rig.sums(np.array([[0, 7]]), 1, 64, now=1_000_000)
    assert rig.counters["cache_hits"] == 1
    data = config(np.array([[0, 7]]), 1, 64, table=1)  # its first place is the other's second one
    for now in (2_000_000, 3_000_000):
        assert rig.write(data, now=now) == 0
        assert rig.read(1, now=now) == 0
        rig.go()
        rig.answered()
    rig.sums(np.array([[0, 7]]), 1, 64, now=4_000_000)
    assert (rig.counters["cache_hits"], rig.counters["cache_misses"]) == (2, 3)


def test_page_buffer() -> None:
    """The page buffer holds the last pages of each die: a row of such a page costs no flash read, older ones do."""
    one = {"geometry.channels": 1, "geometry.dies": 1, "geometry.blocks": 64}
    rig = SlsRig(**{"recssd.cache_entries": 0, "recssd.page_buffer": 2, **one})
    for turn, page in enumerate((0, 1, 0, 2, 0, 1)):
        rig.sums(np.array([[0, 32 * page + turn]]), 1, 32, now=turn * 1_000_000)
    assert (rig.counters["pages"], rig.counters["page_hits"], rig.counters["flash_pages"]) == (6, 2, 4)


def test_dies_work_together() -> None:
    """Many pages take the channels' time, not the sum of theirs; pages cross the channel whole."""
    rig = SlsRig(**{"recssd.cpu_mhz": 10_000})
    before = rig.nand.snapshot()["classes"]["lookup"]
    pairs = np.stack([np.zeros(128, int), np.arange(128) * 64 + 9], 1)
    _, ready = rig.sums(pairs, 1, 32, now=50_000_000)
    spent = ready - 50_000_000
    after = rig.nand.snapshot()["classes"]["lookup"]
    assert after["reads"] - before["reads"] == 128
    assert after["nbytes"] - before["nbytes"] == 128 * 4096
    assert 64 * 6_000 < spent < 128 * 20_000 / 2


def test_reads_in_turn_and_early(rig: SlsRig) -> None:
    """Reads may come before their write; each takes the next sectors, as soon as these are complete."""
    rng = np.random.default_rng(1)
    pairs = random_pairs(rng, 300, 64, 8000)
    for slot in range(2):
        assert rig.read(1, slot=slot, now=60_000_000) == 0
    assert rig.write(config(pairs, 64, 32), now=60_000_000) == 0
    assert rig.read(1, slot=2, now=60_000_000) == Status.SUCCESS  # a third one: there is no such sector
    rig.go()
    answers = [rig.answered()]
    while len(answers) < 3:
        rig.go()
        answers.append(rig.answered())
    by_slot = {answer.slot: answer for answer in answers}
    assert by_slot[2].status == Status.INVALID_FIELD
    sums = np.concatenate([by_slot[0].data, by_slot[1].data]).view(np.float32).reshape(64, 32)
    assert np.array_equal(sums, reference(rig.rows(32), pairs, 64))
    assert by_slot[0].ready <= by_slot[1].ready
    assert rig.idle


def test_a_read_without_a_write(rig: SlsRig) -> None:
    """A read whose write never comes is answered when its time is over."""
    assert rig.read(1, slba=77, now=70_000_000) == 0
    rig.go()
    answer = rig.answered()
    assert (answer.status, answer.ready) == (Status.LOOKUP_NO_REQUEST, 70_000_000 + EARLY_NS)
    assert rig.idle


def test_eight_requests(rig: SlsRig) -> None:
    """Eight requests go side by side; a ninth, and one that is in the drive already, are busy; then there is room."""
    rng = np.random.default_rng(2)
    now = 300_000_000
    sent = [random_pairs(rng, 200, 8, 8000) for _ in range(MAX_REQUESTS)]
    for number, pairs in enumerate(sent):
        assert rig.write(config(pairs, 8, 32), slba=number, now=now) == 0
    extra = config(sent[0], 8, 32)
    assert rig.write(extra, slba=99, now=now) == Status.LOOKUP_BUSY
    assert rig.write(extra, slba=3, now=now) == Status.LOOKUP_BUSY
    for number in range(MAX_REQUESTS):
        assert rig.read(1, slba=number, slot=number, now=now) == 0
    for _ in range(MAX_REQUESTS):
        rig.go()
        answer = rig.answered()
        sums = answer.data[: 8 * 128].view(np.float32).reshape(8, 32)
        assert np.array_equal(sums, reference(rig.rows(32), sent[answer.slot], 8))
    assert rig.idle
    assert rig.write(extra, slba=99, now=now) == 0
    assert rig.read(1, slba=99, now=now) == 0
    rig.go()
    assert rig.answered().status == 0


def test_full_queues_let_others_go() -> None:
    """With one read in flight for a die requests take turns, and all end."""
    rig = SlsRig(**{"recssd.queue_depth": 1, "recssd.cache_entries": 0, "recssd.page_buffer": 0})
    rng = np.random.default_rng(3)
    sent = [random_pairs(rng, 150, 4, 8000) for _ in range(3)]
    for number, pairs in enumerate(sent):
        assert rig.write(config(pairs, 4, 32), slba=number) == 0
        assert rig.read(1, slba=number, slot=number) == 0
    for _ in sent:
        rig.go()
        answer = rig.answered()
        sums = answer.data[: 4 * 128].view(np.float32).reshape(4, 32)
        assert np.array_equal(sums, reference(rig.rows(32), sent[answer.slot], 4))
    assert rig.idle


@pytest.mark.parametrize(
    ("change", "status", "position"),
    [
        ({"attribute": 2}, Status.LOOKUP_TABLE_SHAPE, 0),
        ({"table": 32}, Status.LOOKUP_TABLE_SHAPE, 0),
        ({"dim": 0}, Status.LOOKUP_TABLE_SHAPE, 0),
        ({"dim": 8193}, Status.LOOKUP_TABLE_SHAPE, 0),
        ({"results": 0}, Status.INVALID_FIELD, 0),
        ({"inputs": 1022}, Status.INVALID_FIELD, 0),
        ({"inputs": (1 << 32) - 1}, Status.INVALID_FIELD, 0),
        ({"results": 8193}, Status.COMMAND_SIZE_LIMIT, 0),
        ({"results": (1 << 32) - 1}, Status.COMMAND_SIZE_LIMIT, 0),
        ({"pairs": [[0, 1], [1, 8192]]}, Status.LOOKUP_INDEX_RANGE, 1),
        ({"pairs": [[0, 1], [0, (1 << 32) - 1]]}, Status.LOOKUP_INDEX_RANGE, 1),
        ({"pairs": [[0, 1], [0, 2], [2, 3]]}, Status.LOOKUP_INDEX_RANGE, 2),
        ({"pairs": [[0, 1], [0, 7], [1, 6]]}, Status.LOOKUP_OFFSETS, 2),
    ],
)
def test_refused(rig: SlsRig, change: dict[str, Any], status: Status, position: int) -> None:
    """Whatever a configuration gets wrong has a status, with the position of the first bad pair, and no effect."""
    given: dict[str, Any] = {"pairs": [[0, 1], [1, 2]], "results": 2, "dim": 32} | change
    assert rig.write(config(np.array(given.pop("pairs")), given.pop("results"), given.pop("dim"), **given)) == status
    assert int(rig.recssd["position"][0]) == position
    assert rig.idle


def test_too_large(rig: SlsRig) -> None:
    """A configuration of more than 1 MiB is refused."""
    assert rig.write(bytes(MAX_CONFIG + 1)) == Status.COMMAND_SIZE_LIMIT


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.binary(max_size=120))
def test_random_bytes(data: bytes) -> None:
    """No configuration brings the firmware down."""
    good = config(np.array([[0, 1], [1, 2]]), 2, 3)
    for sent in (data, good[:12] + data, good[:20] + data):
        if _MODEL.write(sent) == 0:
            while not _MODEL.idle:
                assert _MODEL.read(1) == 0
                _MODEL.go()
                _MODEL.answered()


def test_unreadable_row() -> None:
    """A row on blocks marked uncorrectable fails its request by the pair's position; others beside it don't."""
    rig = SlsRig()
    rig.ftl["marked_pages"] = 1
    rig.oob[rig.map[1] - 1]["bad"] = 0b100
    rig.sls.requests["lba_shift"] = 9
    pairs = np.array([[0, 1], [0, 39], [0, 42], [0, 44]])  # rows 40 to 43 are block 2 of page 1
    assert rig.write(config(pairs, 1, 32)) == 0
    assert rig.read(1) == 0
    rig.go()
    answer = rig.answered()
    assert (answer.status, answer.position) == (Status.UNRECOVERED_READ, 2)
    rig.go(1 << 40)
    assert rig.idle
    sums, _ = rig.sums(pairs[[0, 1, 3]], 1, 32, now=1 << 41)
    assert np.array_equal(sums, reference(rig.rows(32), pairs[[0, 1, 3]], 1))


def test_abandoned(rig: SlsRig) -> None:
    """A request whose port was reset ends unseen, and its place is free again."""
    now = 900_000_000
    assert rig.write(config(random_pairs(np.random.default_rng(4), 300, 4, 8000), 4, 32), now=now) == 0
    rig.go(now + 40_000)
    assert not rig.idle
    _abandon(rig.at, 0)
    rig.go()
    assert rig.idle


def test_statistics() -> None:
    """What the board's Flush prints: counts, means in us, the hit rate; and they start anew."""
    rig = SlsRig()
    pairs = np.array([[0, 3], [0, 99]])
    rig.sums(pairs, 1, 32)
    _, ready = rig.sums(pairs, 1, 32, now=1_000_000)
    found = rig.sls.snapshot()
    assert found["counters"]["requests"] == 2
    assert found["counters"]["pairs"] == 4
    assert found["cache_hit"] == 0.5
    assert found["mean_us"]["flash_read"] >= 20
    assert found["mean_us"]["request"] > found["mean_us"]["config_process"] > found["mean_us"]["config_write"] > 0
    assert found["mean_us"]["translation"] == pytest.approx(0.54 + 32 * 0.3)
    rig.sls.clear()
    assert set(rig.counters.values()) == {0}
    assert ready > 1_000_000


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("cpu_mhz", 500),
        ("request_cycles", 9000),
        ("pair_cycles", 900),
        ("page_cycles", 5000),
        ("vector_cycles", 900),
        ("element_cycles", 400),
        ("copy_cycles", 300),
        ("sector_cycles", 5000),
        ("page_buffer", 0),
        ("cache_entries", 0),
        ("queue_depth", 1),
    ],
)
def test_no_knob_is_inert(knob: str, value: int) -> None:
    """Each setting changes when a request's sums are there (``enabled`` is the commands' own)."""
    pairs = random_pairs(np.random.default_rng(6), 200, 4, 2000)

    def spent(**settings: int) -> int:
        fast = {"cpu_mhz": 4000} | settings  # so that the flash is felt as well
        rig = SlsRig(**{f"recssd.{name}": number for name, number in fast.items()})
        rig.sums(pairs[::2], 4, 32)
        return rig.sums(pairs, 4, 32, now=1 << 30)[1]

    assert spent(**{knob: value}) != spent()
