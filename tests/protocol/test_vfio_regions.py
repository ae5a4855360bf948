"""Regions: what they are, reading and writing them, the doorbell page, PCI configuration space, resets."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_femu.pci import BAR0_BYTES, CONFIG_BYTES, EXPRESS, HEADER, MSIX, MSIX_BYTES, POWER_MANAGEMENT
from emucsd_wire.vfio_user import (
    DEVICE_INFO,
    MULTI_WRITE,
    REGION_ACCESS,
    REGION_INFO,
    SPARSE_MMAP,
    Command,
    DeviceInfo,
    MultiWrite,
    Region,
    RegionAccess,
    RegionFlag,
    RegionInfo,
)
from tests.protocol.vfio_peer import OWN_JSON, QEMU_JSON, Answer, Peer, Stand, open_fds


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


@pytest.fixture
def peer(stand: Stand) -> Peer:
    return stand.connect()


def region_info(peer: Peer, region: int, argsz: int, payload_bytes: int = 32) -> Answer:
    request = REGION_INFO.pack(RegionInfo(argsz, 0, region, 0, 0, 0)).ljust(payload_bytes, b"\0")
    return peer.call(Command.DEVICE_GET_REGION_INFO, request)


def test_device_info(peer: Peer) -> None:
    """A PCI device that can be reset, with 9 regions and 5 interrupt indexes: what QEMU and SPDK insist on."""
    answer = peer.call(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(DeviceInfo(16, 0, 0, 0)))
    assert DEVICE_INFO.unpack(answer.payload) == DeviceInfo(16, 3, 9, 5)
    assert peer.call(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(DeviceInfo(15, 0, 0, 0))).errno == errno.EINVAL
    assert peer.call(Command.DEVICE_GET_INFO, bytes(8)).errno == errno.EINVAL


@pytest.mark.parametrize("text", [QEMU_JSON, OWN_JSON])
def test_every_region_answers(stand: Stand, text: bytes) -> None:
    """Used regions have power-of-two sizes, unused ones (and BAR0's upper half) size 0 and no error."""
    peer = stand.connect(text)
    sizes = {}
    for region in Region:
        info = REGION_INFO.unpack(region_info(peer, region, 32).payload)
        assert info.region == region
        assert bool(info.flags & RegionFlag.READ) == bool(info.size)
        sizes[region] = info.size
    assert {r: s for r, s in sizes.items() if s} == {
        Region.BAR0: BAR0_BYTES,
        Region.BAR4: MSIX_BYTES,
        Region.BAR5: MSIX_BYTES,
        Region.CONFIG: CONFIG_BYTES,
    }
    assert region_info(peer, 9, 32).errno == errno.EINVAL
    assert region_info(peer, 0, 31).errno == errno.EINVAL


def test_doorbell_page_maps_in_two_steps(stand: Stand, peer: Peer) -> None:
    """With room for 32 bytes a client learns the size only; with room for all it gets one area and one descriptor.

    It holds doorbells and sessions' registers. Stores to it are plain memory: no message, and the drive sees them.
    """
    short = region_info(peer, Region.BAR0, 32)
    info = REGION_INFO.unpack(short.payload)
    assert (len(short.payload), info.argsz, short.fds) == (32, 64, ())
    assert not info.flags & (RegionFlag.MMAP | RegionFlag.CAPS)
    whole = region_info(peer, Region.BAR0, info.argsz)
    info = REGION_INFO.unpack(whole.payload)
    assert (len(whole.payload), info.argsz, info.cap_offset) == (64, 64, 32)
    assert info.flags == RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP | RegionFlag.CAPS
    area = SPARSE_MMAP.unpack(whole.payload, info.cap_offset)
    assert (area.id, area.version, area.next, area.areas) == (1, 1, 0, 1)
    assert (area.offset, area.size) == (0x1000, 0x2000)
    (fd,) = whole.fds
    with mmap.mmap(fd, area.size, offset=(info.offset + area.offset) % (1 << 64)) as page:
        page[8:12] = struct.pack("<I", 0x55)
        page[0x1008:0x100C] = struct.pack("<I", 0x66)  # of a session
        with mmap.mmap(stand.port.doorbell_fd, 8192) as seen:
            assert seen[8:12] == page[8:12]
            assert seen[0x1008:0x100C] == page[0x1008:0x100C]
    os.close(fd)
    assert stand.port.calls == []


def test_spdks_oversized_request(peer: Peer) -> None:
    """SPDK sends 4064 bytes with argsz 4064 for each of the nine regions, and gets answers of its liking."""
    for region in Region:
        answer = region_info(peer, region, 4064, 4064)
        assert answer.errno == 0
        assert len(answer.payload) == (64 if region == Region.BAR0 else 32)
        assert len(answer.fds) == (1 if region == Region.BAR0 else 0)
        for fd in answer.fds:
            os.close(fd)


def test_registers_reach_the_port(stand: Stand, peer: Peer) -> None:
    """BAR0 accesses arrive as they were made; the reply of a read repeats the request, that of a write has no data."""
    assert peer.write(Region.BAR0, 0x14, b"\1\2\3\4") == 0
    assert peer.write(Region.BAR0, 0x28, b"\1\2\3\4\5\6\7\x08") == 0
    assert peer.read(Region.BAR0, 0x28, 8) == b"\1\2\3\4\5\6\7\x08"
    assert stand.port.calls == [
        ("write", 0, 0x14, b"\1\2\3\4"),
        ("write", 0, 0x28, b"\1\2\3\4\5\6\7\x08"),
        ("read", 0, 0x28, 8),
    ]


def test_a_port_that_refuses_is_an_errno(stand: Stand, peer: Peer) -> None:
    """A PortError becomes EINVAL and the connection stays."""
    assert peer.call(Command.REGION_READ, REGION_ACCESS.pack(RegionAccess(0, 0, 64))).errno == errno.EINVAL
    assert peer.read(Region.BAR0, 0, 4) == bytes(4)


def test_reserved_part_of_bar0(stand: Stand, peer: Peer) -> None:
    """Behind the sessions' registers BAR0 reads as zero and swallows writes; the port is not asked."""
    assert peer.write(Region.BAR0, 0x3000, b"\xff" * 4) == 0
    assert peer.read(Region.BAR0, 0x3FF8, 8) == bytes(8)
    assert stand.port.calls == []


def test_posted_writes_are_not_answered(stand: Stand) -> None:
    """No_reply: many doorbell writes in a row, no reply to any, all of them in order; errors stay silent too."""
    peer = stand.connect(QEMU_JSON)
    for n in range(200):
        peer.post(Region.BAR0, 0x1008, struct.pack("<I", n))
        if n % 50 == 0:
            peer.post(Region.BAR0, 0x10000, b"\0\0\0\0")
    assert peer.read(Region.BAR0, 0x1008, 4) == struct.pack("<I", 199)
    writes = [call[3] for call in stand.port.calls if call[0] == "write"]
    assert writes == [struct.pack("<I", n) for n in range(200)]


def test_write_multi(stand: Stand, peer: Peer) -> None:
    """REGION_WRITE_MULTI does its writes in order; too many, too few bytes or an oversized one get EINVAL."""
    items = [MultiWrite(0x1000 + 8 * n, 0, 4, n) for n in range(200)]
    payload = struct.pack("<Q", len(items)) + b"".join(map(MULTI_WRITE.pack, items))
    assert peer.call(Command.REGION_WRITE_MULTI, payload).errno == 0
    assert [call[2] for call in stand.port.calls] == [item.offset for item in items]
    one = MULTI_WRITE.pack(MultiWrite(0x1000, 0, 4, 1))
    stand.port.calls.clear()
    for bad in (b"", b"\1", struct.pack("<Q", 2) + one, struct.pack("<Q", 201) + one * 201, struct.pack("<Q", 1 << 63)):
        assert peer.call(Command.REGION_WRITE_MULTI, bad).errno == errno.EINVAL
    huge = MULTI_WRITE.pack(MultiWrite(0x1000, 0, 9, 1))
    assert peer.call(Command.REGION_WRITE_MULTI, struct.pack("<Q", 1) + huge).errno == errno.EINVAL
    assert stand.port.calls == []


@pytest.mark.parametrize(
    ("region", "offset", "length"),
    [
        (0, 0x4000, 4),
        (0, 0x3FFE, 4),
        (0, (1 << 64) - 4, 8),
        (0, 0, 0),
        (0, 0, 0xFFFFFFFF),
        (1, 0, 4),
        (6, 0, 4),
        (7, 4096, 1),
        (7, 4093, 4),
        (8, 0, 1),
        (9, 0, 4),
        (0xFFFFFFFF, 0, 4),
    ],
)
def test_accesses_outside_are_refused(stand: Stand, peer: Peer, region: int, offset: int, length: int) -> None:
    """Reads and writes past a region's end, of a region that is not there, of nothing or of too much get EINVAL."""
    access = REGION_ACCESS.pack(RegionAccess(offset, region, length))
    assert peer.call(Command.REGION_READ, access).errno == errno.EINVAL
    if length < 100:
        assert peer.call(Command.REGION_WRITE, access + bytes(length)).errno == errno.EINVAL
    assert stand.port.calls == []


def test_write_lengths_must_agree(stand: Stand, peer: Peer) -> None:
    """A write whose count is not the number of bytes that it carries gets EINVAL, and so does half a request."""
    access = REGION_ACCESS.pack(RegionAccess(0x14, 0, 4))
    for payload in (access, access + b"\0" * 3, access + b"\0" * 5, access[:12], b""):
        assert peer.call(Command.REGION_WRITE, payload).errno == errno.EINVAL
    assert peer.call(Command.REGION_READ, access[:12]).errno == errno.EINVAL
    assert stand.port.calls == []


def test_config_space_is_an_nvme_endpoint(peer: Peer) -> None:
    """One read of 4096 bytes: class 010802, 64-bit BAR0, no interrupt pin, PM, MSI-X (BAR4, BAR5) and PCIe with FLR."""
    content = peer.read(Region.CONFIG, 0, 4096)
    header = HEADER.unpack(content)
    assert (header.base_class, header.subclass, header.interface) == (1, 8, 2)
    assert (header.header_type, header.interrupt_pin, header.rom) == (0, 0, 0)
    assert [header.bar0, header.bar1, header.bar2, header.bar3, header.bar4, header.bar5] == [4, 0, 0, 0, 0, 0]
    assert header.status & 0x10
    chain, at = {}, header.capabilities
    while at:
        chain[content[at]] = at
        at = content[at + 1]
    assert sorted(chain) == [0x01, 0x10, 0x11]
    msix = MSIX.unpack(content, chain[0x11])
    assert (msix.control & 0x7FF, msix.table, msix.pending) == (64, 4, 5)
    express = EXPRESS.unpack(content, chain[0x10])
    assert express.capabilities & 0xFF == 0x02
    assert express.device_capabilities & 1 << 28
    assert POWER_MANAGEMENT.unpack(content, chain[0x01]).control & 0x8
    assert content[0x100:0x104] == bytes(4)


def test_config_writes_keep_what_is_read_only(peer: Peer) -> None:
    """The command register, BARs and interrupt line take what they may; everything else stays as it was."""
    before = peer.read(Region.CONFIG, 0, 4096)
    assert peer.write(Region.CONFIG, 0x04, b"\xff\xff") == 0
    assert peer.read(Region.CONFIG, 0x04, 2) == b"\x47\x05"
    assert peer.write(Region.CONFIG, 0x10, b"\xff" * 8) == 0  # BAR sizing, as firmware does it
    assert peer.read(Region.CONFIG, 0x10, 8) == struct.pack("<II", 0xFFFFC004, 0xFFFFFFFF)
    assert peer.write(Region.CONFIG, 0x18, b"\xff" * 4) == 0
    assert peer.read(Region.CONFIG, 0x18, 4) == bytes(4)
    for offset in (0x00, 0x08, 0x2C, 0x34, 0x100, 0xFFC):
        assert peer.write(Region.CONFIG, offset, b"\xff" * 4) == 0
        assert peer.read(Region.CONFIG, offset, 4) == before[offset : offset + 4]


def test_spdks_config_access(peer: Peer) -> None:
    """SPDK reads the command word, sets bus master and interrupt disable (0x404), and finds them set."""
    (command,) = struct.unpack("<H", peer.read(Region.CONFIG, 4, 2))
    assert peer.write(Region.CONFIG, 4, struct.pack("<H", command | 0x404)) == 0
    assert struct.unpack("<H", peer.read(Region.CONFIG, 4, 2)) == (command | 0x404,)


@pytest.mark.parametrize("access", [(0x68, b"\0\x80"), (0x69, b"\x80"), (0x68, b"\0\x80\0\0"), (0x66, b"\0\0\0\x80")])
def test_function_level_reset(stand: Stand, peer: Peer, access: tuple[int, bytes]) -> None:
    """Bit 15 of Device Control resets the controller and the configuration, whatever the write's width, and reads 0."""
    assert peer.write(Region.CONFIG, 4, b"\x06\0") == 0
    assert peer.write(Region.CONFIG, *access) == 0
    assert stand.port.calls == [("reset",)]
    assert peer.read(Region.CONFIG, 4, 2) == b"\0\0"
    assert peer.read(Region.CONFIG, 0x68, 2) == b"\0\0"
    assert peer.write(Region.CONFIG, 0x68, b"\xff\x7f") == 0
    assert stand.port.calls == [("reset",)]


def test_device_reset(stand: Stand, peer: Peer) -> None:
    """DEVICE_RESET resets controller and configuration; mappings and vectors stay the client's."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    assert peer.map(0x10000, 4096, fd) == 0
    os.close(fd)
    answer = peer.call(Command.DEVICE_RESET)
    assert (answer.errno, answer.header.size) == (0, 16)
    assert stand.port.calls[-1] == ("reset",)
    assert sorted(stand.port.maps) == [0x10000]


def test_msix_regions_read_as_zero(peer: Peer) -> None:
    """Clients keep the MSI-X table themselves; ours reads zero, and nothing is ever pending."""
    assert peer.write(Region.BAR4, 0, b"\xff" * 16) == 0
    assert peer.read(Region.BAR4, 0, 16) == bytes(16)
    assert peer.read(Region.BAR5, 0, 8) == bytes(8)


def test_region_queries_leak_nothing(peer: Peer) -> None:
    """Asking for the doorbell page again and again leaves no descriptor behind in the server."""
    before = open_fds()
    for _ in range(10):
        for fd in region_info(peer, Region.BAR0, 64).fds:
            os.close(fd)
    assert open_fds() <= before


def test_admin_work_is_served(stand: Stand) -> None:
    """When a port says that its admin queue has work, the loop calls it, client or not."""
    os.eventfd_write(stand.port.admin_fd, 1)
    assert stand.server.run_once(0)
    assert stand.port.calls == [("service",)]
    assert not stand.server.run_once(0)
