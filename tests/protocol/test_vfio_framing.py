"""Malformed streams: short, long, unknown, unsolicited, stalled. The drive answers or hangs up, and lives."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_femu.server import Server
from emucsd_wire.vfio_user import (
    DEVICE_INFO,
    DMA_MAP,
    HEADER,
    NO_REPLY,
    REGION_ACCESS,
    VERSION,
    Command,
    DeviceInfo,
    DmaMap,
    Header,
    RegionAccess,
    Version,
)
from tests.protocol.vfio_peer import OWN_JSON, Closed, Peer, RecordingPort, Stand, memfd, open_fds

INFO = DEVICE_INFO.pack(DeviceInfo(16, 0, 0, 0))


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def healthy(stand: Stand) -> None:
    """A new client gets a whole, working device."""
    for old in stand.peers:
        old.close()
    stand.server.run_once(0)
    peer = stand.connect()
    with memfd(0x1000) as fd:
        assert peer.map(0x10000, 0x1000, fd) == 0
        assert peer.unmap(0x10000, 0x1000) == 0
    assert peer.write(0, 0x14, b"\1\2\3\4") == 0
    assert peer.read(0, 0x14, 4) == b"\1\2\3\4"
    assert peer.call(Command.DEVICE_GET_INFO, INFO).errno == 0


@pytest.mark.parametrize("size", [0, 1, 15, 65536 + 33, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("negotiated", [False, True])
def test_impossible_sizes_end_the_connection(stand: Stand, size: int, negotiated: bool) -> None:
    """A message shorter than its header, or longer than any may be, gets EINVAL, then the connection ends."""
    peer = stand.connect(OWN_JSON if negotiated else None)
    assert peer.call(Command.DEVICE_GET_INFO, INFO, size=size).errno == errno.EINVAL
    with pytest.raises(Closed):
        peer.receive()
    healthy(stand)


@pytest.mark.parametrize("command", [0, 6, 11, 12, 14, 16, 17, 18, 99, 0xFFFF])
def test_unknown_commands_get_an_errno(stand: Stand, command: int) -> None:
    """Commands that this server does not know, and those that only a server sends, get EOPNOTSUPP."""
    peer = stand.connect()
    assert peer.call(command, bytes(64)).errno == errno.EOPNOTSUPP
    assert peer.call(Command.DEVICE_GET_INFO, INFO).errno == 0


@pytest.mark.parametrize("command", [c for c in Command if c not in (Command.DMA_READ, Command.DMA_WRITE)])
@pytest.mark.parametrize("length", [1, 3, 7])
def test_short_payloads_get_an_errno(stand: Stand, command: Command, length: int) -> None:
    """Every command with a payload of a few bytes: an errno (or, for DEVICE_RESET, a reset), and no crash."""
    peer = stand.connect()
    answer = peer.call(command, b"\xff" * length)
    assert bool(answer.errno) is (command is not Command.DEVICE_RESET)
    assert peer.call(Command.DEVICE_GET_INFO, INFO).errno == 0


def test_unsolicited_replies_end_the_connection(stand: Stand) -> None:
    """This server asks nothing of its clients, so a reply is a sign that they are out of step."""
    peer = stand.connect()
    peer.send(Command.DMA_READ, bytes(16), flags=1)
    with pytest.raises(Closed):
        peer.receive()
    healthy(stand)


@pytest.mark.parametrize("kind", [2, 7, 15])
def test_unknown_message_types_get_an_errno(stand: Stand, kind: int) -> None:
    """A message that is neither command nor reply gets EINVAL."""
    peer = stand.connect()
    peer.send(Command.DEVICE_GET_INFO, INFO, flags=kind)
    assert peer.receive().errno == errno.EINVAL


def test_too_many_descriptors(stand: Stand) -> None:
    """More descriptors than max_msg_fds: EINVAL, none stays open, the connection goes on."""
    peer = stand.connect()
    fds = tuple(os.eventfd(0) for _ in range(100))
    before = open_fds()
    payload = DMA_MAP.pack(DmaMap(32, 3, 0, 0x10000, 0x1000))
    assert peer.call(Command.DMA_MAP, payload, fds).errno == errno.EINVAL
    assert peer.call(Command.DEVICE_GET_INFO, INFO, fds[:17]).errno == errno.EINVAL
    assert open_fds() <= before
    assert peer.call(Command.DEVICE_GET_INFO, INFO).errno == 0
    for fd in fds:
        os.close(fd)


def test_descriptors_that_nobody_wants_are_closed(stand: Stand) -> None:
    """Descriptors on any command, with its header, its payload or a refused message, never stay open."""
    peer = stand.connect()
    with memfd(0x1000) as fd:
        before = open_fds()
        for command in Command:
            peer.call(command, b"", (fd, fd))
            peer.call(command, bytes(64), (fd,))
        peer.send_raw(HEADER.pack(Header(7, Command.DEVICE_GET_INFO, 32, 0, 0)))
        peer.send_raw(INFO, (fd, fd, fd))
        assert peer.receive().errno == 0
        peer.send_raw(HEADER.pack(Header(8, Command.DEVICE_GET_INFO, 32, 0, 0))[:5], (fd,))
        peer.settle()
        peer.close()
        stand.server.run_once(0)
        assert open_fds() <= before - 2  # the connection's two ends


def test_descriptors_stay_with_their_message(stand: Stand) -> None:
    """Two messages sent back to back: each range gets its own file, though both lie in the socket at once."""
    peer = stand.connect()
    with memfd(0x1000) as one, memfd(0x1000) as two:
        os.pwrite(one, b"one", 0)
        os.pwrite(two, b"two", 0)
        peer.send(Command.DMA_MAP, DMA_MAP.pack(DmaMap(32, 3, 0, 0x10000, 0x1000)), (one,))
        peer.send(Command.DMA_MAP, DMA_MAP.pack(DmaMap(32, 1, 0, 0x20000, 0x1000)))
        peer.send(Command.DMA_MAP, DMA_MAP.pack(DmaMap(32, 3, 0, 0x30000, 0x1000)), (two,))
        assert [peer.receive().errno for _ in range(3)] == [0, 0, 0]
        content = {iova: bytes_at(address, 3) for iova, (_, address, _) in stand.port.maps.items()}
        assert content == {0x10000: b"one", 0x30000: b"two"}


def bytes_at(address: int, count: int) -> bytes:
    import ctypes

    return ctypes.string_at(address, count)


def test_a_message_may_arrive_byte_by_byte(stand: Stand) -> None:
    """A stream has no message borders: bytes one at a time make the same message, descriptors included."""
    peer = stand.connect(None)
    payload = VERSION.pack(Version(0, 0)) + OWN_JSON
    for byte in HEADER.pack(Header(1, Command.VERSION, 16 + len(payload), 0, 0)) + payload:
        peer.send_raw(bytes([byte]))
        stand.server.run_once(0)
    assert peer.receive().errno == 0
    with memfd(0x1000) as fd:
        whole = HEADER.pack(Header(2, Command.DMA_MAP, 48, 0, 0)) + DMA_MAP.pack(DmaMap(32, 3, 0, 0x10000, 0x1000))
        peer.send_raw(whole[:1], (fd,))
        for byte in whole[1:]:
            stand.server.run_once(0)
            peer.send_raw(bytes([byte]))
        assert peer.receive().errno == 0
    assert sorted(stand.port.maps) == [0x10000]


def test_a_stalled_client_holds_up_nobody(tmp_path: Path) -> None:
    """Half a message on one port: the other port is served, and so is the first when the rest arrives."""
    ports = [RecordingPort(0), RecordingPort(1)]
    paths = [tmp_path / f"port{n}" / "cntrl" for n in range(2)]
    server = Server([*ports], paths)
    slow, quick = (Peer(server, path) for path in paths)
    slow.send_raw(HEADER.pack(Header(1, Command.VERSION, 20, 0, 0)) + b"\0")
    assert quick.negotiate().errno == 0
    assert quick.read(0, 0, 4) == bytes(4)
    slow.send_raw(b"\0\0\0")
    assert slow.receive().errno == 0
    for peer in (slow, quick):
        peer.close()
    server.close()
    for port in ports:
        port.close()


def test_a_client_that_reads_no_replies_is_waited_for(stand: Stand) -> None:
    """Replies that do not fit stay behind, no further message is taken, and none is lost once the client reads."""
    peer = stand.connect()
    request = REGION_ACCESS.pack(RegionAccess(0, 7, 4096))
    sent = 0
    try:
        while True:
            peer.send(Command.REGION_READ, request)
            sent += 1
            stand.server.run_once(0)
            assert sent < 100_000
    except BlockingIOError:
        pass  # both directions are full
    assert not stand.server.run_once(0)
    for _ in range(sent):
        assert len(peer.receive().payload) == 16 + 4096
    assert peer.call(Command.DEVICE_GET_INFO, INFO).errno == 0


def test_a_second_client_is_refused_cleanly(stand: Stand) -> None:
    """One client a port: a second one gets EBUSY for its VERSION and is let go; the first is not disturbed."""
    first = stand.connect()
    second = stand.connect(None)
    assert second.negotiate().errno == errno.EBUSY
    with pytest.raises(Closed):
        second.receive()
    assert first.read(0, 0, 4) == bytes(4)
    assert stand.port.calls == [("read", 0, 0, 4)]
    first.close()
    third = stand.connect()
    assert third.read(0, 0, 4) == bytes(4)


def test_a_crowd_is_refused_and_leaks_nothing(stand: Stand) -> None:
    """Dozens that connect and say nothing cost a few descriptors, and none once they are gone."""
    stand.connect()
    before = open_fds()
    crowd = []
    for _ in range(12):
        crowd.append(Peer(stand.server, stand.path))
        stand.server.run_once(0)
    assert open_fds() <= before + 12 + 8
    for peer in crowd:
        peer.close()
    for _ in range(20):
        stand.server.run_once(0)
    assert open_fds() <= before


def test_reconnect_in_one_step(stand: Stand) -> None:
    """A client that closes and another that connects before the server looks: the second is not taken for a rival."""
    for _ in range(20):
        old = stand.connect()
        assert old.write(0, 0x14, b"\1\0\0\0") == 0
        old.post(0, 0x14, b"\2\0\0\0")
        old.close()
        new = stand.connect()
        assert new.read(0, 0x14, 4) == bytes(4)
        new.close()
    assert stand.server.endpoints[0].turned_away == 0


def test_vanishing_inside_a_message(stand: Stand) -> None:
    """A client that dies after any number of bytes leaves no trace; the next one is served."""
    before = open_fds()
    whole = HEADER.pack(Header(9, Command.DMA_MAP, 48, 0, 0)) + DMA_MAP.pack(DmaMap(32, 3, 0, 0x10000, 0x1000))
    with memfd(0x1000) as fd:
        for cut in range(1, len(whole) + 1):
            peer = stand.connect()
            peer.send_raw(whole[:cut], (fd,))
            peer.close()
            stand.server.run_once(0)
            assert stand.port.maps == {}
    assert open_fds() <= before
    healthy(stand)


def test_a_bug_of_ours_costs_one_connection(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that is no client's mistake is logged with its traceback and ends that connection alone."""
    peer = stand.connect()
    stand.port.broken = True
    with caplog.at_level(logging.ERROR), pytest.raises(Closed):
        peer.call(Command.REGION_READ, REGION_ACCESS.pack(RegionAccess(0, 0, 4)))
    assert "internal error" in caplog.text
    stand.port.broken = False
    healthy(stand)


def test_refusals_are_counted_and_not_all_logged(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    """A client that errs a thousand times fills no disk with log lines."""
    peer = stand.connect()
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            peer.send(99, flags=NO_REPLY)
            stand.server.run_once(0)
    session = stand.server.endpoints[0].session
    assert session is not None
    assert session.status()["refused"] == 1000
    assert len(caplog.records) < 20


def test_sockets_are_their_owners_only(stand: Stand) -> None:
    """Socket 0600, folder 0700; closing removes the socket; a stale one is replaced, a plain file is not."""
    assert stat.S_IMODE(stand.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(stand.path.parent.stat().st_mode) == 0o700
    stand.server.close()
    assert not stand.path.exists()
    stand.path.write_text("not a socket")
    with pytest.raises(FileExistsError):
        Server([stand.port], [stand.path])
    stand.path.unlink()
    stand.server = Server([stand.port], [stand.path])
    os.link(stand.path, stand.path.with_name("stale"))
    stand.server.close()
    stand.path.with_name("stale").rename(stand.path)
    stand.server = Server([stand.port], [stand.path])
    healthy(stand)


def test_hundreds_of_connections_leak_nothing(stand: Stand) -> None:
    """Connect, map, set vectors, vanish: three hundred times, and as many descriptors are open as before."""
    event = os.eventfd(0)
    before = open_fds()
    with memfd(0x1000) as fd:
        for _ in range(300):
            peer = stand.connect()
            assert peer.map(0x10000, 0x1000, fd) == 0
            assert peer.set_irqs(36, 2, 0, 1, (event,)) == 0
            peer.close()
            stand.server.run_once(0)
    assert open_fds() <= before
    os.close(event)
