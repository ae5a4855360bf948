"""The client's vfio-user connection against a scripted server."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd.errors import ConnectionLost, DriveBusy, DriveNotFound, DriveTimeout, ProtocolError, RequestRefused
from emucsd.vfio import VfioUser
from emucsd_wire import vfio_user as wire
from emucsd_wire.vfio_user import Command, Region
from tests.unit.client_peer import Peer, Scripted


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path / "cntrl")
    yield made
    made.close()


@pytest.fixture
def vfio(peer: Peer, tmp_path: Path) -> Iterator[VfioUser]:
    client = VfioUser(tmp_path / "cntrl", timeout=5)
    yield client
    client.close()


def test_introduces_itself(peer: Peer, vfio: VfioUser) -> None:
    """The first message is VERSION 0.0 with a NUL-terminated JSON text that names this client."""
    command, payload = peer.requests[0]
    assert command == Command.VERSION
    assert payload[:4] == bytes(4)
    assert payload.endswith(b"\0")
    assert wire.OWN_CAPABILITY.encode() in payload


def test_region_access(peer: Peer, vfio: VfioUser) -> None:
    """What is written to a region is read back from it, through messages of the right shape."""
    vfio.region_write(Region.BAR0, 0x14, b"\x01\x00\x46\x00")
    assert vfio.region_read(Region.BAR0, 0x14, 4) == b"\x01\x00\x46\x00"
    assert peer.requests[-2] == (Command.REGION_WRITE, bytes.fromhex("1400000000000000 00000000 04000000 01004600"))


def test_maps_the_doorbell_page(peer: Peer, vfio: VfioUser) -> None:
    """The sparse area is mapped where the descriptor's offset, which may wrap, puts it."""
    mapping, info = vfio.map_region(Region.BAR0)
    assert mapping is not None
    assert (info.mappable_offset, info.mappable_size) == (0x1000, 0x1000)
    mapping[8:12] = b"\x07\0\0\0"
    assert peer.doorbells[2] == 7


def test_maps_nothing_where_nothing_is_offered(peer: Peer, vfio: VfioUser) -> None:
    """Without the MMAP flag there is no mapping, and no error."""
    mapping, info = vfio.map_region(Region.CONFIG)
    assert mapping is None
    assert info.size == 0x2000


def test_error_reply(peer: Peer, vfio: VfioUser) -> None:
    """An error reply raises with the drive's errno, and the connection goes on."""
    peer.script[Command.DMA_UNMAP] = lambda _: Scripted(error=errno.ENOENT)
    with pytest.raises(RequestRefused, match=r"DMA_UNMAP.*No such file") as caught:
        vfio.dma_unmap(0x1000, 0x1000)
    assert caught.value.errno == errno.ENOENT
    assert len(vfio.region_read(Region.BAR0, 0, 8)) == 8


def test_descriptors_of_an_error_are_closed(peer: Peer, vfio: VfioUser) -> None:
    """Descriptors that come with a refused request do not pile up."""
    reader, writer = os.pipe()
    peer.script[Command.DEVICE_RESET] = lambda _: Scripted(fds=(writer,), error=errno.EIO)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RequestRefused):
        vfio.reset()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reader)
    os.close(writer)


def test_stale_replies_are_skipped(peer: Peer, vfio: VfioUser) -> None:
    """The reply of a request that nobody waits for any more is not taken for another's."""

    def late(payload: bytes) -> Scripted:
        peer.send(0x7777, Command.REGION_READ, Scripted(payload + b"old!"))
        return Scripted(payload + b"new!")

    peer.script[Command.REGION_READ] = late
    assert vfio.region_read(Region.BAR0, 0, 4) == b"new!"


def test_server_requests_are_declined(peer: Peer, vfio: VfioUser) -> None:
    """DMA by message is answered with EOPNOTSUPP, and the reply that was waited for still arrives."""

    def ask(payload: bytes) -> Scripted | None:
        assert peer.client is not None
        request = wire.Header(9, Command.DMA_READ, 32, wire.TYPE_COMMAND, 0)
        peer.client.sendall(wire.HEADER.pack(request) + bytes(16))
        answer = wire.HEADER.unpack(peer.client.recv(16))
        assert (answer.message_id, answer.error) == (9, errno.EOPNOTSUPP)
        return Scripted(payload + b"data")

    peer.script[Command.REGION_READ] = ask
    assert vfio.region_read(Region.BAR0, 0, 4) == b"data"


def test_hang_up(peer: Peer, vfio: VfioUser) -> None:
    """A server that goes away gives ConnectionLost, from then on at once."""
    peer.close()
    with pytest.raises(ConnectionLost, match="no known outcome"):
        vfio.check()
    with pytest.raises(ConnectionLost):
        vfio.region_read(Region.BAR0, 0, 4)


def test_silence(peer: Peer, vfio: VfioUser) -> None:
    """A server that does not answer gives DriveTimeout that names the request."""
    peer.script[Command.REGION_READ] = lambda _: None
    vfio.timeout = 0.05
    with pytest.raises(DriveTimeout, match=r"REGION_READ in 0\.05 s"):
        vfio.region_read(Region.BAR0, 0, 4)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"\1\0\0\0{}\0", "vfio-user 1.0"),
        (b"\0", "with 1 bytes"),
        (b"\0\0\0\0not json\0", "no JSON object"),
        (b"\0\0\0\0[]\0", "no JSON object"),
    ],
)
def test_bad_version(tmp_path: Path, payload: bytes, text: str) -> None:
    """A server of another protocol is refused by name, with what it said."""
    peer = Peer(tmp_path / "other")
    peer.script[Command.VERSION] = lambda _: Scripted(payload)
    with pytest.raises(ProtocolError, match=text):
        VfioUser(tmp_path / "other")
    peer.close()


@pytest.mark.parametrize("size", [0, 15, 1 << 30])
def test_bad_size(peer: Peer, vfio: VfioUser, size: int) -> None:
    """A message whose size cannot be ends the connection: nothing after it can be trusted."""

    def lie(payload: bytes) -> None:
        assert peer.client is not None
        peer.client.sendall(wire.HEADER.pack(wire.Header(1, Command.REGION_READ, size, wire.TYPE_REPLY, 0)))

    peer.script[Command.REGION_READ] = lie
    with pytest.raises(ConnectionLost, match=f"a message of {size} bytes"):
        vfio.region_read(Region.BAR0, 0, 4)


def test_short_read(peer: Peer, vfio: VfioUser) -> None:
    """A read that brings fewer bytes than asked for is a protocol error."""
    peer.script[Command.REGION_READ] = lambda payload: Scripted(payload + b"xy")
    with pytest.raises(ProtocolError, match="4 bytes brought 2"):
        vfio.region_read(Region.BAR0, 0, 4)


def test_busy(tmp_path: Path) -> None:
    """A server that has a client already says so, not merely with a number."""
    peer = Peer(tmp_path / "busy")
    peer.script[Command.VERSION] = lambda _: Scripted(error=errno.EBUSY)
    with pytest.raises(DriveBusy, match="another client"):
        VfioUser(tmp_path / "busy")
    peer.close()


def test_nobody_there(tmp_path: Path) -> None:
    """A socket that is missing says what to start."""
    with pytest.raises(DriveNotFound, match="emucsd up"):
        VfioUser(tmp_path / "none")
