"""DMA_MAP and DMA_UNMAP: what is mapped, what is refused, and that nothing is left behind."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_wire.vfio_user import DMA_MAP, DMA_UNMAP, Command, DmaMap, DmaUnmap, UnmapFlag
from tests.protocol.vfio_peer import Peer, Stand, memfd, open_fds


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


@pytest.fixture
def peer(stand: Stand) -> Peer:
    return stand.connect()


def mappings() -> int:
    """Mappings of this process whose file is a test's memory."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:guest" in line for line in maps)


def test_a_mapped_range_is_the_clients_memory(stand: Stand, peer: Peer) -> None:
    """What the client writes at a file offset is what the port finds at the range, and the other way round."""
    with memfd(0x4000) as fd:
        assert peer.map(0x10000, 0x2000, fd, offset=0x1000) == 0
        os.pwrite(fd, b"from the client", 0x1010)
        size, address, writable = stand.port.maps[0x10000]
        assert (size, writable) == (0x2000, True)
        assert ctypes.string_at(address + 0x10, 15) == b"from the client"
        ctypes.memmove(address + 0x1FF0, b"from the drive", 14)
        assert os.pread(fd, 14, 0x2FF0) == b"from the drive"


def test_read_only_ranges_say_so(stand: Stand, peer: Peer) -> None:
    """A range without WRITE reaches the port as read-only, even from a descriptor that can't be written."""
    with memfd(0x1000) as fd:
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        assert peer.map(0x10000, 0x1000, readable, flags=1) == 0
        assert peer.map(0x20000, 0x1000, readable, flags=3) == errno.EACCES
        os.close(readable)
    assert [call for call in stand.port.calls if call[0] == "map"] == [("map", 0x10000, 0x1000, False)]


def test_ranges_without_memory_are_remembered_and_unused(stand: Stand, peer: Peer) -> None:
    """QEMU maps ROM without a descriptor: accepted, never given to the port, unmapped as it was mapped."""
    assert peer.map(0xC0000, 0x8000, None, flags=1) == 0
    assert stand.port.maps == {}
    assert peer.map(0xC4000, 0x1000, None) == errno.EEXIST
    assert peer.unmap(0xC0000, 0x8000) == 0
    assert peer.unmap(0xC0000, 0x8000) == errno.ENOENT


@pytest.mark.parametrize(
    ("iova", "size", "offset", "flags", "expected"),
    [
        (0x10000, 0x3000, 0, 3, errno.EINVAL),  # shorter file: mapped, it would kill whoever touches it
        (0x10000, 0x1000, 0x2000, 3, errno.EINVAL),
        (0x10000, 0x1000, 1 << 62, 3, errno.EINVAL),
        (0x10000, 0x1000, (1 << 64) - 0x1000, 3, errno.EINVAL),
        (0x10000, 0, 0, 3, errno.EINVAL),
        ((1 << 64) - 0x1000, 0x1000, 0, 3, errno.EINVAL),
        ((1 << 64) - 0x1000, 0x2000, 0, 3, errno.EINVAL),
        (0x10000, (1 << 64) - 1, 0, 3, errno.EINVAL),
        (0x10000, 0x1000, 0x10, 3, errno.EINVAL),  # offsets are pages
        (0x10000, 0x1000, 0, 0xFF, errno.EINVAL),
        (0xDEAD000, 0x1000, 0, 3, errno.EINVAL),  # the port refuses it
    ],
)
def test_impossible_maps_are_refused(
    stand: Stand, peer: Peer, iova: int, size: int, offset: int, flags: int, expected: int
) -> None:
    """A range that can't be mapped gets an errno, is not half mapped, and costs no descriptor."""
    with memfd(0x2000) as fd:
        before = open_fds()
        assert peer.map(iova, size, fd, offset=offset, flags=flags) == expected
        assert open_fds() <= before
        assert mappings() == 0
        assert stand.port.maps == {}
        assert peer.map(0x10000, 0x2000, fd) == 0


def test_descriptors_that_are_no_memory_are_refused(peer: Peer) -> None:
    """A pipe, a folder, an eventfd or two descriptors in place of one file: an errno and no leak."""
    reading, writing = os.pipe()
    folder = os.open("/", os.O_RDONLY)
    event = os.eventfd(0)
    before = open_fds()
    for fd in (reading, writing, folder, event):
        assert peer.map(0x10000, 0x1000, fd) != 0
    payload = DMA_MAP.pack(DmaMap(DMA_MAP.size, 3, 0, 0x10000, 0x1000))
    assert peer.call(Command.DMA_MAP, payload, (reading, writing)).errno == errno.EINVAL
    assert open_fds() <= before
    for fd in (reading, writing, folder, event):
        os.close(fd)


def test_overlap_is_refused(peer: Peer) -> None:
    """A range that overlaps a mapped one gets EEXIST; its neighbours do not."""
    with memfd(0x10000) as fd:
        assert peer.map(0x10000, 0x4000, fd) == 0
        for iova, size in (
            (0x10000, 0x4000),
            (0x13000, 0x2000),
            (0xF000, 0x2000),
            (0x8000, 0x10000),
            (0x11000, 0x1000),
        ):
            assert peer.map(iova, size, fd) == errno.EEXIST
        assert peer.map(0x14000, 0x1000, fd) == 0
        assert peer.map(0xF000, 0x1000, fd) == 0


def test_unmap_returns_what_was_asked(stand: Stand, peer: Peer) -> None:
    """The reply repeats the request's 24 bytes; the port let go before it was sent, and the memory is unmapped."""
    with memfd(0x2000) as fd:
        assert peer.map(0x10000, 0x2000, fd) == 0
        assert mappings() == 1
        request = DMA_UNMAP.pack(DmaUnmap(DMA_UNMAP.size, 0, 0x10000, 0x2000))
        assert peer.call(Command.DMA_UNMAP, request).payload == request
        assert stand.port.calls[-1] == ("unmap", 0x10000, 0x2000)
        assert mappings() == 0


def test_spdk_unmaps_with_a_descriptor(peer: Peer) -> None:
    """SPDK attaches the range's descriptor to DMA_UNMAP too: it is accepted and closed."""
    with memfd(0x1000) as fd:
        before = open_fds()
        for _ in range(3):
            assert peer.map(0x10000, 0x1000, fd) == 0
            assert peer.unmap(0x10000, 0x1000, fds=(fd,)) == 0
        assert open_fds() <= before


def test_unmap_takes_whole_ranges_only(stand: Stand, peer: Peer) -> None:
    """One unmap may cover several ranges, never a part of one."""
    with memfd(0x1000) as fd:
        for n in range(4):
            assert peer.map(0x10000 + n * 0x1000, 0x1000, fd) == 0
    assert peer.unmap(0x10800, 0x1000) == errno.EINVAL
    assert peer.unmap(0x10000, 0x800) == errno.EINVAL
    assert len(stand.port.maps) == 4
    assert peer.unmap(0x11000, 0x2000) == 0
    assert sorted(stand.port.maps) == [0x10000, 0x13000]


def test_unmap_all(stand: Stand, peer: Peer) -> None:
    """ALL drops every range, and takes neither an address nor another flag."""
    with memfd(0x1000) as fd:
        for n in range(3):
            assert peer.map(0x10000 + n * 0x10000, 0x1000, fd) == 0
        assert peer.map(0xC0000, 0x1000, None) == 0
    assert peer.unmap(0x10000, 0x1000, UnmapFlag.ALL) == errno.EINVAL
    assert peer.unmap(0, 0, UnmapFlag.ALL | UnmapFlag.DIRTY_BITMAP) == errno.EINVAL
    assert peer.unmap(0x10000, 0x1000, UnmapFlag.DIRTY_BITMAP) == errno.EINVAL
    assert len(stand.port.maps) == 3
    assert peer.unmap(0, 0, UnmapFlag.ALL) == 0
    assert stand.port.maps == {}
    assert mappings() == 0
    assert peer.unmap(0, 0, UnmapFlag.ALL) == 0


def test_many_ranges_stay_sorted(stand: Stand, peer: Peer) -> None:
    """Hundreds of ranges mapped and unmapped out of order: the port ends with exactly those that are left."""
    order = [(n * 7919) % 512 for n in range(512)]
    with memfd(0x1000) as fd:
        for n in order:
            assert peer.map(n * 0x2000, 0x1000, fd) == 0
        for n in order[::2]:
            assert peer.unmap(n * 0x2000, 0x1000) == 0
    assert sorted(stand.port.maps) == sorted(n * 0x2000 for n in order[1::2])


def test_a_lost_client_leaves_nothing(stand: Stand, peer: Peer) -> None:
    """A client that vanishes: the controller is reset, then its memory goes, and the next one may map it again."""
    with memfd(0x2000) as fd:
        assert peer.map(0x10000, 0x2000, fd) == 0
        assert peer.map(0xC0000, 0x1000, None) == 0
        stand.port.calls.clear()
        peer.close()
        stand.server.run_once(0)
        assert stand.port.calls == [("reset",), ("unmap", 0x10000, 0x2000)]
        assert mappings() == 0
        again = stand.connect()
        assert again.map(0x10000, 0x2000, fd) == 0
