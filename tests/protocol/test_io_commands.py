"""Every I/O command on a whole drive, against a plain array; and what bad ones get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emucsd_firmware.drive import Drive
from emucsd_wire.nvme import COPY_RANGE, DSM_RANGE, NSID_ALL, PAGE, Admin, CopyRange, DsmRange, Io, Status
from tests.protocol.io_host import IoHost, open_drive
from tests.unit.nvme_host import DATA_AT, MIB

FUA = 1 << 30
BLOCKS = 16 * MIB // 512


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Drive]:
    with open_drive(tmp_path) as opened:
        yield opened


@pytest.fixture
def host(drive: Drive) -> IoHost:
    return IoHost(drive)


def pattern(count: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()


@pytest.mark.parametrize("count", [512, 4096, 4096 + 512, 65536, MIB])
def test_write_then_read(host: IoHost, count: int) -> None:
    """What was written is read, from one block to the largest transfer, also where it starts within a page."""
    data = pattern(count)
    assert host.put(3, data) == 0
    assert host.get(3, count // 512) == data
    assert host.get(0, 3) == bytes(1536)


def test_a_capacity_of_odd_bytes(tmp_path: Path) -> None:
    """A capacity that is no multiple of the page gives a drive of the whole pages in it."""
    with open_drive(tmp_path, capacity_bytes=16 * MIB + 1844) as drive:
        assert IoHost(drive).get(BLOCKS - 1, 1) == bytes(512)


def test_unwritten_blocks_read_zeros(host: IoHost) -> None:
    """A block that nobody wrote reads as zeros."""
    assert host.get(1000, 8) == bytes(4096)


@pytest.mark.parametrize(
    ("lba", "blocks", "status"),
    [
        (BLOCKS, 1, Status.LBA_OUT_OF_RANGE),
        (BLOCKS - 1, 2, Status.LBA_OUT_OF_RANGE),
        ((1 << 64) - 1, 1, Status.LBA_OUT_OF_RANGE),
        (1 << 63, 8, Status.LBA_OUT_OF_RANGE),
        (0, MIB // 512 + 1, Status.INVALID_FIELD),
    ],
)
@pytest.mark.parametrize("opcode", [Io.READ, Io.WRITE, Io.COMPARE])
def test_ranges_are_checked(host: IoHost, opcode: Io, lba: int, blocks: int, status: Status) -> None:
    """A range past the namespace, or a transfer past MDTS, has its status, and Do Not Retry."""
    done = host.io(opcode, lba=lba, blocks=blocks)
    assert (done.status, done.dnr) == (status, True)


@pytest.mark.parametrize("nsid", [0, 2, 33, NSID_ALL, 0x7FFF_FFFF])
def test_namespaces_that_are_not_there(host: IoHost, nsid: int) -> None:
    """Commands to namespaces that do not exist get Invalid Namespace."""
    assert host.io(Io.READ, nsid=nsid).status == Status.INVALID_NAMESPACE


def test_unknown_opcodes_and_fused_commands(host: IoHost) -> None:
    """Opcodes that the drive has not get Invalid Opcode; fused operations, which it does not offer, Invalid Field."""
    assert host.io(0x3D).status == Status.INVALID_OPCODE
    assert host.io(0xC1).status == Status.INVALID_OPCODE
    assert host.io(Io.READ, flags=1).status == Status.INVALID_FIELD


def test_flush_one_namespace_or_all(host: IoHost) -> None:
    """Flush works for a namespace and for all of them, and refuses one that is not there."""
    assert host.io(Io.FLUSH).status == 0
    assert host.io(Io.FLUSH, nsid=NSID_ALL).status == 0
    assert host.io(Io.FLUSH, nsid=9).status == Status.INVALID_NAMESPACE


def test_compare_and_verify(host: IoHost) -> None:
    """Compare tells equal from different; Verify reads without a transfer."""
    data = pattern(8192)
    host.put(16, data)
    assert host.io(Io.COMPARE, lba=16, blocks=16, data=data).status == 0
    wrong = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    assert host.io(Io.COMPARE, lba=16, blocks=16, data=wrong).status == Status.COMPARE_FAILURE
    assert host.io(Io.COMPARE, lba=5000, blocks=8, data=bytes(4096)).status == 0
    assert host.io(Io.VERIFY, lba=16, blocks=16).status == 0


def test_write_zeroes_and_deallocate(host: IoHost) -> None:
    """Both make blocks read as zeros, at any alignment, and leave their neighbours alone."""
    data = bytearray(pattern(32 * 512))
    host.put(0, bytes(data))
    assert host.io(Io.WRITE_ZEROES, lba=3, blocks=10).status == 0
    data[3 * 512 : 13 * 512] = bytes(10 * 512)
    assert host.get(0, 32) == data
    ranges = DSM_RANGE.pack(DsmRange(0, 1, 17)) + DSM_RANGE.pack(DsmRange(0, 9, 20))
    assert host.io(Io.DATASET_MANAGEMENT, data=ranges, cdw10=1, cdw11=4).status == 0
    data[17 * 512 : 18 * 512] = bytes(512)
    data[20 * 512 : 29 * 512] = bytes(9 * 512)
    assert host.get(0, 32) == data


def test_a_bad_range_deallocates_nothing(host: IoHost) -> None:
    """Every range is checked before the first is deallocated."""
    data = pattern(4096)
    host.put(0, data)
    ranges = DSM_RANGE.pack(DsmRange(0, 8, 0)) + DSM_RANGE.pack(DsmRange(0, 8, BLOCKS - 1))
    assert host.io(Io.DATASET_MANAGEMENT, data=ranges, cdw10=1, cdw11=4).status == Status.LBA_OUT_OF_RANGE
    assert host.get(0, 8) == data


def test_copy(host: IoHost) -> None:
    """Copy gathers ranges, also within pages and onto the page that they come from."""
    data = pattern(64 * 512)
    host.put(0, data)
    ranges = [CopyRange(0, 5, 9, bytes(14)), CopyRange(0, 40, 0, bytes(14))]
    packed = b"".join(COPY_RANGE.pack(r) for r in ranges)
    assert host.io(Io.COPY, lba=100, data=packed, cdw12=1).status == 0
    assert host.get(100, 11) == data[5 * 512 : 15 * 512] + data[40 * 512 : 41 * 512]
    assert host.io(Io.COPY, lba=101, data=COPY_RANGE.pack(CopyRange(0, 100, 3, bytes(14))), cdw12=0).status == 0
    assert host.get(101, 1) == data[5 * 512 : 6 * 512]
    assert host.io(Io.COPY, lba=0, data=packed, cdw12=1 << 8 | 1).status == Status.INVALID_FIELD
    far = COPY_RANGE.pack(CopyRange(0, 0, 4095, bytes(14)))
    assert host.io(Io.COPY, lba=0, data=far, cdw12=0).status == Status.COMMAND_SIZE_LIMIT


def test_write_uncorrectable(host: IoHost) -> None:
    """Marked blocks fail to read, their neighbours in the page do not, and writing one heals that one."""
    data = pattern(4096)
    host.put(0, data)
    assert host.io(Io.WRITE_UNCORRECTABLE, lba=2, blocks=2).status == 0
    failed = host.io(Io.READ, lba=0, blocks=8)
    assert (failed.status, failed.dnr) == (Status.UNRECOVERED_READ, False)
    assert host.io(Io.READ, lba=4, blocks=4).status == 0
    assert host.io(Io.VERIFY, lba=3).status == Status.UNRECOVERED_READ
    assert host.put(2, data[1024:1536]) == 0
    assert host.get(0, 3) == data[:1536]
    assert host.io(Io.READ, lba=3).status == Status.UNRECOVERED_READ
    assert host.put(0, data) == 0
    assert host.get(0, 8) == data


def test_bad_data_pointers_get_a_status(host: IoHost) -> None:
    """Unmapped and misaligned pointers are errors of the command; nothing is written."""
    data = pattern(4096)
    host.put(0, data)
    assert host.io(Io.WRITE, blocks=8, prp1=0x9999_0000).status == Status.DATA_TRANSFER_ERROR
    assert host.io(Io.READ, blocks=8, prp1=DATA_AT + 1).status == Status.PRP_OFFSET_INVALID
    assert host.get(0, 8) == data


def test_failed_commands_are_in_the_error_log(host: IoHost) -> None:
    """The Error Information log names the queue, the command and the block of a failed command."""
    done = host.io(Io.READ, lba=BLOCKS)
    entry = host.log(1, 64)
    assert int.from_bytes(entry[8:10], "little") == 1
    assert int.from_bytes(entry[10:12], "little") == done.cid
    assert int.from_bytes(entry[16:24], "little") == BLOCKS


def test_a_full_completion_queue_holds_completions_back(drive: Drive) -> None:
    """A host that does not take completions loses none: they come when there is room."""
    host = IoHost(drive, io_entries=8)
    cids = []
    for _ in range(6):
        cids.append(host.submit_io(host.sqe(Io.READ, 1)))
    for _ in range(50):
        drive.step()
    for _ in range(7):
        cids.append(host.submit_io(host.sqe(Io.READ, 1)))
    for _ in range(50):
        drive.step()
    done = [d.cid for d in host.wait_io(13)]
    assert sorted(done) == sorted(cids)


def test_commands_of_a_deleted_queue_vanish(tmp_path: Path) -> None:
    """A queue that is deleted with commands under way and made anew sees none of them; their slots come back."""
    with open_drive(tmp_path, "femu", capacity_bytes=1 << 30, clock="virtual") as drive:
        host = IoHost(drive)
        host.put(0, pattern(4096))
        free = int(drive.state[0]["commands"]["free_count"])
        drive.plane.step(100)
        for _ in range(20):
            host.submit_io(host.sqe(Io.READ, 1), ring=False)
        host.ring_io()
        host.ok(Admin.DELETE_SQ, cdw10=1)
        host.ok(Admin.DELETE_CQ, cdw10=1)
        host.create_queues(64)
        for _ in range(200):
            drive.step()
        assert host.reap_io() == []
        assert int(drive.state[0]["commands"]["free_count"]) == free
        assert len(host.get(0, 8)) == 4096


def test_a_reset_drops_everything_under_way(tmp_path: Path) -> None:
    """A controller reset with commands in flight leaves a drive that works, with all its slots."""
    with open_drive(tmp_path, "femu", capacity_bytes=1 << 30) as drive:
        host = IoHost(drive)
        data = pattern(4096)
        host.put(0, data)
        free = int(drive.state[0]["commands"]["free_count"])
        for _ in range(20):
            host.submit_io(host.sqe(Io.READ, 1))
        drive.plane.step(1)
        host.disable()
        host.enable()
        host.create_queues(64)
        for _ in range(300):
            drive.step()
        assert int(drive.state[0]["commands"]["free_count"]) == free
        assert host.get(0, 8) == data


def test_doorbells_past_the_queue_are_ignored(host: IoHost) -> None:
    """A tail past the end is no entry at all, and the queue goes on."""
    doorbells = host.drive.queues[0].doorbells
    doorbells[2] = 5000
    for _ in range(10):
        host.drive.step()
    assert host.reap_io() == []
    doorbells[2] = 0
    assert host.get(0, 1) == bytes(512)


operation = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 200), st.integers(1, 40), st.integers(0, 255), st.booleans()),
    st.tuples(st.just("zero"), st.integers(0, 200), st.integers(1, 40)),
    st.tuples(st.just("trim"), st.integers(0, 200), st.integers(1, 40)),
    st.tuples(st.just("copy"), st.integers(0, 200), st.integers(1, 20), st.integers(0, 200)),
    st.tuples(st.just("read"), st.integers(0, 200), st.integers(1, 40)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("reset")),
)


@pytest.mark.parametrize("profile", ["null", "femu", "cosmosplus"])
def test_any_mix_of_commands_equals_an_array(tmp_path: Path, profile: str) -> None:
    """Any sequence of writes, zeroes, trims, copies, flushes and resets reads back as a plain array would."""
    capacity = 16 * MIB if profile == "null" else 1 << 30
    with open_drive(tmp_path, profile, capacity_bytes=capacity, lba_bytes=512) as drive:
        host = IoHost(drive)

        @settings(max_examples=20)
        @given(st.lists(operation, max_size=25))
        def check(moves: list[tuple[Any, ...]]) -> None:
            assert host.io(Io.WRITE_ZEROES, lba=0, blocks=260).status == 0
            model = np.zeros((260, 512), np.uint8)
            for move in moves:
                _apply(host, model, move)
            assert host.get(0, 260) == model.tobytes()

        check()


def _apply(host: IoHost, model: NDArray[np.uint8], move: tuple[Any, ...]) -> None:
    kind, *rest = move
    if kind == "write":
        lba, blocks, byte, fua = rest
        model[lba : lba + blocks] = np.arange(blocks, dtype=np.uint8)[:, None] + np.uint8(byte)
        assert host.put(lba, model[lba : lba + blocks].tobytes(), cdw12=blocks - 1 | FUA * fua) == 0
    elif kind == "zero":
        lba, blocks = rest
        model[lba : lba + blocks] = 0
        assert host.io(Io.WRITE_ZEROES, lba=lba, blocks=blocks).status == 0
    elif kind == "trim":
        lba, blocks = rest
        model[lba : lba + blocks] = 0
        packed = DSM_RANGE.pack(DsmRange(0, blocks, lba))
        assert host.io(Io.DATASET_MANAGEMENT, data=packed, cdw10=0, cdw11=4).status == 0
    elif kind == "copy":
        source, blocks, target = rest
        packed = COPY_RANGE.pack(CopyRange(0, source, blocks - 1, bytes(14)))
        if source < target + blocks and target < source + blocks:
            return
        model[target : target + blocks] = model[source : source + blocks]
        assert host.io(Io.COPY, lba=target, data=packed, cdw12=0).status == 0
    elif kind == "read":
        lba, blocks = rest
        assert host.get(lba, blocks) == model[lba : lba + blocks].tobytes()
    elif kind == "flush":
        assert host.io(Io.FLUSH).status == 0
    else:
        host.disable()
        host.enable()
        host.create_queues(64)


def test_four_kib_format(host: IoHost) -> None:
    """Formatted to 4096-byte blocks, the namespace is empty, and a block is a page."""
    host.put(0, pattern(4096))
    host.ok(Admin.FORMAT_NVM, 1, cdw10=1)
    host.lba_bytes = 4096
    assert host.get(0, 1) == bytes(PAGE)
    data = pattern(8 * PAGE, seed=5)
    assert host.put(2, data) == 0
    assert host.get(2, 8) == data
