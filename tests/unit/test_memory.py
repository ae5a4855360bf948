"""The address table and the copies through it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from emucsd_firmware import memory as m
from emucsd_firmware.errors import MemoryMapError
from emucsd_firmware.nvme import prp
from emucsd_wire.layout import I64, State
from emucsd_wire.nvme import PAGE, SGL_DESCRIPTOR, SQE, SglDescriptor, Sqe, Status
from emucsd_wire.words import jit, pointer, pointer_to


class Bench(State):
    """A Memory and a Transfer behind one address."""

    memory: m.Memory
    transfer: m.Transfer
    spare: I64


bench_at = pointer(Bench)
sqe_at = pointer_to(Sqe, SQE.dtype)


@jit
def walk(address: int, sqe: int, length: int, writing: int) -> int:
    bench = bench_at(address, 0)
    return prp.map_data(bench.memory, bench.transfer, sqe_at(sqe, 0), length, writing)


@jit
def gather(address: int, target: int, count: int) -> None:
    m.gather(bench_at(address, 0).transfer, target, count)


@jit
def scatter(address: int, source: int, count: int) -> None:
    m.scatter(bench_at(address, 0).transfer, source, count)


class Guest:
    """Guest memory of 64 pages at 1 MiB and 16 more right behind them in another region, far apart in this process."""

    base = 1 << 20

    def __init__(self) -> None:
        self.state = np.zeros(1, Bench.dtype)
        self.segments = np.zeros(m.MAX_SEGMENTS, m.Segment.dtype)
        self.state[0]["transfer"]["segments"] = self.segments.ctypes.data
        self.table = m.AddressTable()
        self.table.attach(self.state[0]["memory"])
        self.low = np.zeros(64 * PAGE + PAGE, np.uint8)
        self.high = np.zeros(16 * PAGE + PAGE, np.uint8)
        self.table.map(self.base, 64 * PAGE, self.low.ctypes.data, True)
        self.table.map(self.base + 64 * PAGE, 16 * PAGE, self.high.ctypes.data, True)

    @property
    def address(self) -> int:
        return int(self.state.ctypes.data)

    def prp(self, prp1: int, prp2: int, length: int, flags: int = 0, writing: int = 0) -> int:
        entry = SQE.pack(Sqe(2, flags, 7, 1, 0, 0, 0, prp1, prp2, 0, 0, 0, 0, 0, 0))
        buffer = ctypes.create_string_buffer(entry, 64)
        return int(walk(self.address, ctypes.addressof(buffer), length, writing))

    def sgl(self, descriptor: SglDescriptor, length: int) -> int:
        packed = SGL_DESCRIPTOR.pack(descriptor)
        return self.prp(
            int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little"), length, flags=1 << 6
        )

    def take(self, count: int) -> bytes:
        target = np.zeros(count, np.uint8)
        gather(self.address, target.ctypes.data, count)
        return target.tobytes()


def block(address: int, length: int, kind: int = 0) -> SglDescriptor:
    return SglDescriptor(address, length, b"\0\0\0", kind)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def pattern(count: int) -> bytes:
    return np.random.default_rng(7).integers(0, 256, count, np.uint8).tobytes()


def test_two_prps_gather_in_order(guest: Guest) -> None:
    """PRP1 with an offset and PRP2 give the bytes of both pages, in order."""
    data = pattern(PAGE)
    guest.table.write(guest.base + 512, data[: PAGE - 512])
    guest.table.write(guest.base + 9 * PAGE, data[PAGE - 512 :])
    assert guest.prp(guest.base + 512, guest.base + 9 * PAGE, PAGE) == 0
    assert guest.take(PAGE) == data


def test_prp_list_chains_over_pages(guest: Guest) -> None:
    """A list that starts near its page's end goes on in the page that its last entry names."""
    pages = [guest.base + (20 + 2 * i) * PAGE for i in range(6)]
    for index, page in enumerate(pages):
        guest.table.write(page, bytes([index + 1]) * PAGE)
    first, second = guest.base + PAGE - 16, guest.base + 2 * PAGE
    guest.table.write(first, np.array([pages[1], second], "<u8").tobytes())
    guest.table.write(second, np.array(pages[2:], "<u8").tobytes())
    assert guest.prp(pages[0], first, 6 * PAGE) == 0
    assert guest.take(6 * PAGE) == b"".join(bytes([i + 1]) * PAGE for i in range(6))


@pytest.mark.parametrize(
    ("prp1", "prp2", "length", "status"),
    [
        (2, 0, 512, Status.PRP_OFFSET_INVALID),
        (1 << 20, (1 << 20) + 8, 2 * PAGE, Status.PRP_OFFSET_INVALID),
        (1 << 20, (1 << 20) + 4, 3 * PAGE, Status.PRP_OFFSET_INVALID),
        (0x7000_0000, 0, 512, Status.DATA_TRANSFER_ERROR),
        ((1 << 64) - PAGE, 0, 512, Status.DATA_TRANSFER_ERROR),
        (1 << 20, 0x7000_0000, 3 * PAGE, Status.DATA_TRANSFER_ERROR),
        ((1 << 20) + 80 * PAGE, 0, 512, Status.DATA_TRANSFER_ERROR),
    ],
)
def test_bad_prps_get_their_status(guest: Guest, prp1: int, prp2: int, length: int, status: Status) -> None:
    """Offsets and addresses that cannot be are named by a status, and nothing is copied."""
    assert guest.prp(prp1, prp2, length) == status


def test_prp_list_that_loops_onto_itself_ends(guest: Guest) -> None:
    """A list page whose chain pointer names itself ends with the transfer's length, not in a loop."""
    where = guest.base + PAGE
    entries = np.full(512, guest.base + 8 * PAGE, "<u8")
    entries[511] = where
    guest.table.write(where, entries.tobytes())
    assert guest.prp(guest.base, where, 1 << 20) == 0
    assert guest.prp(guest.base, where + 8 * 511, 3 * PAGE) == 0


def test_sgl_segments(guest: Guest) -> None:
    """A data block in the command, and a chain of segments, give their bytes in order."""
    data = pattern(3000)
    guest.table.write(guest.base + 100, data)
    assert guest.sgl(block(guest.base + 100, 3000), 3000) == 0
    assert guest.take(3000) == data
    first, second = guest.base + 32 * PAGE, guest.base + 33 * PAGE
    chain = SGL_DESCRIPTOR.pack(block(guest.base + 100, 1000)) + SGL_DESCRIPTOR.pack(block(second, 32, 0x30))
    tail = SGL_DESCRIPTOR.pack(block(guest.base + 1100, 1500)) + SGL_DESCRIPTOR.pack(block(guest.base + 2600, 500))
    guest.table.write(first, chain)
    guest.table.write(second, tail)
    assert guest.sgl(block(first, 32, 0x20), 3000) == 0
    assert guest.take(3000) == data


def test_bad_sgls_get_their_status(guest: Guest) -> None:
    """Wrong lengths, types and chains each have their status; a segment chain onto itself ends."""
    where = guest.base + 40 * PAGE
    assert guest.sgl(block(guest.base, 100), 512) == Status.DATA_SGL_LENGTH
    assert guest.sgl(block(guest.base, 1024), 512) == Status.DATA_SGL_LENGTH
    assert guest.sgl(block(guest.base, 512, 0x40), 512) == Status.INVALID_SGL_TYPE
    assert guest.sgl(block(where, 24, 0x30), 512) == Status.INVALID_SGL_SEGMENT
    guest.table.write(where, SGL_DESCRIPTOR.pack(block(where, 16, 0x20)))
    assert guest.sgl(block(where, 16, 0x20), 512) == Status.INVALID_SGL_COUNT
    guest.table.write(where, SGL_DESCRIPTOR.pack(block(where, 16, 0x30)))
    assert guest.sgl(block(where, 16, 0x30), 512) == Status.INVALID_SGL_SEGMENT
    assert guest.prp(guest.base, 0, 512, flags=3 << 6) == Status.INVALID_FIELD


def test_transfer_crosses_regions(guest: Guest) -> None:
    """A block that spans two regions which are neighbours only for the guest is copied from both."""
    guest.low[64 * PAGE - 100 : 64 * PAGE] = 1
    guest.high[:100] = 2
    assert guest.sgl(block(guest.base + 64 * PAGE - 100, 200), 200) == 0
    assert guest.take(200) == b"\1" * 100 + b"\2" * 100


def test_read_only_memory_is_not_written(guest: Guest) -> None:
    """A region mapped read-only serves reads by the drive and refuses its writes."""
    memory = np.zeros(PAGE, np.uint8)
    guest.table.map(1 << 40, PAGE, memory.ctypes.data, False)
    assert guest.prp(1 << 40, 0, 512) == 0
    assert guest.prp(1 << 40, 0, 512, writing=1) == Status.DATA_TRANSFER_ERROR


def test_address_table_refuses_what_cannot_be(guest: Guest) -> None:
    """Overlaps, empty ranges, ranges beyond 2**63 and unknown unmaps are errors; a range can go and come back."""
    cases: list[tuple[int, int]] = [(guest.base, PAGE), (guest.base - PAGE, 2 * PAGE), (0, 0), ((1 << 63) - 1, PAGE)]
    for iova, size in cases:
        with pytest.raises(MemoryMapError):
            guest.table.map(iova, size, 4096, True)
    with pytest.raises(MemoryMapError):
        guest.table.unmap(guest.base, PAGE)
    assert guest.table.unmap(guest.base, 64 * PAGE) == (guest.low.ctypes.data, 64 * PAGE)
    assert guest.prp(guest.base, 0, 512) == Status.DATA_TRANSFER_ERROR
    guest.table.map(guest.base, PAGE, guest.low.ctypes.data, True)
    assert guest.prp(guest.base, 0, 512) == 0
    gone: list[Any] = guest.table.clear()
    assert len(gone) == 2
    assert len(guest.table) == 0
