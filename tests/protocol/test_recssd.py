"""RecSSD's commands on a whole drive, entry by entry: sums, held reads, refusals, resets; and drives that lack them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emucsd_firmware.drive import Drive
from emucsd_wire.nvme import PAGE, Io, Register, Status
from emucsd_wire.recssd import MARK, MAX_REQUESTS, SECTOR, TABLE_ALIGN
from tests.protocol.io_host import IoHost, open_drive
from tests.unit.nvme_host import DATA_AT, LIST_AT, MIB
from tests.unit.test_recssd import Pairs, config, random_pairs, reference

DIM, ROWS = 32, 8000
START = 1000  # the table's block


class SlsHost(IoHost):
    """``write`` and ``read`` are RecSSD's."""

    def load(self) -> NDArray[np.float32]:
        """Write a table. :returns: its rows"""
        rows = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
        data = rows.tobytes()
        data += bytes(-len(data) % PAGE)
        per_block = SECTOR // self.lba_bytes
        assert self.put(START * per_block, data) == 0
        return rows

    def sls(self, opcode: int, blocks: int, *, number: int = 0, at: int = DATA_AT, start: int = START) -> int:
        """Submit a marked command with its data at ``at``. :returns: its id"""
        prp1, prp2 = at, at + PAGE if blocks == 2 else 0
        if blocks > 2:
            prp2 = LIST_AT + (PAGE // 2 if opcode == Io.READ else 0)  # a write and its read are there together
            self.poke(prp2, np.arange(at + PAGE, at + blocks * PAGE, PAGE, dtype="<u8").tobytes())
        lba = start + number
        words = {"cdw10": lba & 0xFFFF_FFFF, "cdw11": lba >> 32, "cdw12": (blocks - 1) | MARK}
        return self.submit_io(self.sqe(opcode, 1, prp1=prp1, prp2=prp2, **words))

    def send(self, data: bytes, *, number: int = 0, at: int = DATA_AT) -> int:
        blocks = -(-len(data) // SECTOR)
        self.poke(at, data.ljust(blocks * SECTOR, b"\0"))
        return self.sls(Io.WRITE, blocks, number=number, at=at)

    def sums(self, pairs: Pairs, results: int, *, number: int = 0) -> NDArray[np.float32]:
        """A request, its read sent with it."""
        blocks = -(-results * DIM * 4 // SECTOR)
        answer = DATA_AT + MIB // 2
        ids = [self.send(config(pairs, results, DIM), number=number)]
        ids.append(self.sls(Io.READ, blocks, number=number, at=answer))
        done = self.wait_io(2)
        assert sorted(d.cid for d in done) == sorted(ids)
        assert [d.status for d in done] == [0, 0]
        return np.frombuffer(self.peek(answer, results * DIM * 4), np.float32).reshape(results, DIM)


@pytest.fixture(scope="module", params=[512, 4096])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlsHost]:
    settings = {"recssd.enabled": True, "lba_bytes": request.param, "recssd.cache_entries": 1024}
    with open_drive(tmp_path_factory.mktemp("drive"), "rmssd", **settings) as drive:
        opened = SlsHost(drive)
        opened.lba_bytes = request.param
        yield opened


@pytest.fixture(scope="module")
def rows(host: SlsHost) -> NDArray[np.float32]:
    return host.load()


def test_sums(host: SlsHost, rows: NDArray[np.float32]) -> None:
    """A write and its read, sent together, bring the sums in the pairs' order, whatever the namespace's block is."""
    rng = np.random.default_rng(1)
    for count, results in ((1, 1), (300, 40), (2000, 200)):
        pairs = random_pairs(rng, count, results, ROWS)
        found = host.sums(pairs, results)
        assert np.array_equal(found.view(np.uint32), reference(rows, pairs, results).view(np.uint32))


def test_block_io_goes_on(host: SlsHost, rows: NDArray[np.float32]) -> None:
    """Reads and writes without the mark are what they were, while a request is at work; what they write counts."""
    pairs = np.array([[0, 10], [0, 700], [0, 1400]])
    host.send(config(pairs, 1, DIM), number=1)
    host.wait_io(1)
    row = rows[10] * 2
    per_block = SECTOR // host.lba_bytes
    page = host.get(START * per_block, per_block)
    changed = page[:1280] + row.tobytes() + page[1408:]
    assert host.put(START * per_block, changed) == 0
    host.sls(Io.READ, 1, number=1)
    assert host.wait_io(1)[0].status == 0
    again = host.sums(pairs, 1, number=2)
    assert np.array_equal(again[0], (row + rows[700]) + rows[1400])
    assert host.put(START * per_block, page) == 0


def test_refusals(host: SlsHost, rows: NDArray[np.float32]) -> None:
    """A bad pair is named in dw0; a table outside the namespace, and blocks past MDTS, have their statuses."""
    host.send(config(np.array([[0, 1], [0, 5], [1, 6]]), 1, DIM))
    (done,) = host.wait_io(1)
    assert (done.status, done.dw0) == (Status.LOOKUP_INDEX_RANGE, 2)
    host.sls(Io.WRITE, 1, start=16 * MIB // SECTOR + TABLE_ALIGN)
    assert host.wait_io(1)[0].status == Status.LBA_OUT_OF_RANGE
    host.sls(Io.WRITE, 1, start=(1 << 64) - TABLE_ALIGN)
    assert host.wait_io(1)[0].status == Status.LBA_OUT_OF_RANGE
    host.submit_io(host.sqe(Io.WRITE, 1, prp1=DATA_AT, cdw10=START, cdw12=256 | MARK))
    assert host.wait_io(1)[0].status == Status.COMMAND_SIZE_LIMIT
    host.submit_io(host.sqe(Io.READ, 1, prp1=DATA_AT, cdw10=START, cdw12=256 | MARK))
    assert host.wait_io(1)[0].status == Status.INVALID_FIELD
    host.submit_io(host.sqe(Io.WRITE, 9, prp1=DATA_AT, cdw10=START, cdw12=MARK))
    assert host.wait_io(1)[0].status == Status.INVALID_NAMESPACE
    host.sls(Io.READ, 1, number=500)
    assert host.wait_io(1)[0].status == Status.LOOKUP_NO_REQUEST


def test_bad_memory(host: SlsHost, rows: NDArray[np.float32]) -> None:
    """A read whose memory is not mapped fails with its status; the drive and the next request are none the worse."""
    host.send(config(np.array([[0, 1]]), 1, DIM), number=3)
    host.submit_io(host.sqe(Io.READ, 1, prp1=1 << 50, cdw10=START + 3, cdw12=MARK))
    assert sorted(d.status for d in host.wait_io(2)) == [0, Status.DATA_TRANSFER_ERROR]
    assert np.array_equal(host.sums(np.array([[0, 1]]), 1, number=3)[0], rows[1])


def test_reset_in_flight(host: SlsHost, rows: NDArray[np.float32]) -> None:
    """A controller reset drops requests and held reads; all eight places are there again afterwards."""
    for number in range(MAX_REQUESTS):
        host.send(config(random_pairs(np.random.default_rng(number), 200, 4, ROWS), 4, DIM), number=number)
        host.drive.step()
    host.sls(Io.READ, 1, number=0)
    host.sls(Io.READ, 1, number=900)
    host.drive.step(5)
    host.write(Register.CC, 0)
    host.enable()
    host.create_queues(64)
    for number in range(MAX_REQUESTS + 1):
        assert np.array_equal(host.sums(np.array([[0, number]]), 1, number=number)[0], rows[number])
    assert host.drive.stats()["recssd"]["held"] == 0


def test_any_bytes(host: SlsHost, rows: NDArray[np.float32]) -> None:
    """Marked commands with any bytes in them, some of them right, are all answered, and the next request is right."""
    rng = np.random.default_rng(7)
    good = config(np.array([[0, 5], [1, 9]]), 2, DIM)
    for turn in range(60):
        ids: list[int] = []
        for _ in range(int(rng.integers(1, 6))):
            data = bytearray(good)
            for _ in range(int(rng.integers(0, 5))):
                data[rng.integers(0, len(data))] = rng.integers(0, 256)
            number = int(rng.integers(0, 4))
            if rng.random() < 0.5:
                ids.append(host.send(bytes(data), number=number, at=DATA_AT + len(ids) * PAGE))
            else:
                ids.append(host.sls(Io.READ, int(rng.choice([1, 1, 1, 2])), number=number, at=DATA_AT + MIB // 2))
        done = host.wait_io(len(ids))
        assert sorted(d.cid for d in done) == sorted(ids), turn
    host.write(Register.CC, 0)  # what was left unread goes
    host.enable()
    host.create_queues(64)
    assert np.array_equal(host.sums(np.array([[0, 11]]), 1)[0], rows[11])


def test_off_by_default(tmp_path: Path) -> None:
    """A drive that was not told so takes the mark for what it is, a reserved bit; the control thread can tell it."""
    with open_drive(tmp_path, "rmssd", lba_bytes=4096) as drive:
        host = SlsHost(drive)
        host.lba_bytes = 4096
        assert host.put(START, b"x" * PAGE) == 0
        host.sls(Io.READ, 1)
        assert host.wait_io(1)[0].status == 0
        assert host.peek(DATA_AT, PAGE) == b"x" * PAGE
        host.poke(DATA_AT, b"y" * PAGE)
        host.sls(Io.WRITE, 1)
        assert host.wait_io(1)[0].status == 0
        assert host.get(START, 1) == b"y" * PAGE
        _tell(drive, host)


def _tell(drive: Drive, host: SlsHost) -> None:
    assert drive.set_recssd(None)["enabled"] is False
    assert drive.set_recssd(True)["enabled"] is True
    rows = host.load()
    assert np.array_equal(host.sums(np.array([[0, 9]]), 1)[0], rows[9])
    assert drive.set_recssd(False, clear=True)["counters"]["requests"] == 1
    assert drive.set_recssd(None)["counters"]["requests"] == 0
    host.sls(Io.READ, 1)
    assert host.wait_io(1)[0].status == 0
    assert host.peek(DATA_AT, PAGE) == rows.tobytes()[:PAGE]
