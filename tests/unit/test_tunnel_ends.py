"""The ends of the tunnel, without a drive: batches, addresses, the proxy, the command line, what it takes to load."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucsd.tunnel import __main__ as command
from emucsd.tunnel import network, proxy
from emucsd.tunnel.errors import TunnelError
from emucsd.tunnel.frames import Batch, destination, is_ipv4, split
from emucsd.tunnel.pair import Memory, pointers, prp_list
from emucsd.tunnel.port import BUFFER_BYTES
from emucsd.tunnel.proxy import Proxy
from emucsd_wire.nvme import PAGE
from emucsd_wire.tunnel import frame_bytes
from tests.unit.test_light_imports import NO_NUMPY, load
from tests.unit.tunnel_rig import HOST, ISP, batch, packet

GUEST = ("port", "frames", "tun", "channel", "loop", "isp", "host", "linux", "network", "proxy", "pair", "direct",
         "keeper", "__main__")  # fmt: skip


@pytest.mark.parametrize("name", GUEST)
def test_ends_need_the_standard_library_alone(name: str) -> None:
    """What runs in guests loads without NumPy; pyroute2 is loaded when an interface is made."""
    load([f"emucsd.tunnel.{name}"], NO_NUMPY)


@given(lengths=st.lists(st.integers(20, 3000), max_size=20))
def test_a_batch_comes_apart_as_it_was_put_together(lengths: list[int]) -> None:
    """Frames put one by one are the wire's batch, and split gives them back."""
    memory = memoryview(bytearray(1 << 16))
    filling = Batch(memory)
    wanted = []
    for n, length in enumerate(lengths):
        place = filling.room(3000)
        assert place is not None
        place[:length] = packet(length, n)
        filling.commit(length)
        wanted.append(packet(length, n))
    assert filling.frames == len(wanted)
    assert [bytes(found) for found in split(memory[: filling.size])] == wanted
    assert filling.size == len(batch(*wanted))


def test_a_full_batch_has_no_room() -> None:
    """Room is for the whole packet or not at all, to the last byte."""
    filling = Batch(memoryview(bytearray(frame_bytes(100) + frame_bytes(60))))
    assert filling.room(100) is not None
    filling.commit(100)
    assert filling.room(61) is None
    assert filling.room(60) is not None
    filling.commit(60)
    assert filling.room(1) is None


@given(data=st.binary(max_size=300))
def test_split_believes_nothing(data: bytes) -> None:
    """Bytes that are no batch give packets that lie inside of them, or none."""
    for found in split(memoryview(data)):
        assert 20 <= len(found) <= len(data) - 4


def test_what_a_switch_reads() -> None:
    """The destination of an IPv4 packet; others are told apart."""
    one = memoryview(packet(40))
    assert is_ipv4(one)
    assert destination(one) == ISP
    assert not is_ipv4(memoryview(b"\x60" + bytes(60)))
    assert not is_ipv4(memoryview(b"\x45"))


def test_addresses() -> None:
    """The host has .1, ISP engine i .(2 + i); a network without room or sense is refused with the reason."""
    plan = network.plan("10.77.0.0/24", 9000)
    assert (plan.host, plan.isp(0), network.dotted(plan.isp(3))) == (HOST, ISP, "10.77.0.5")
    with pytest.raises(TunnelError, match="larger network"):
        network.plan("10.77.0.0/30").isp(1)
    for bad in ("10.77.0.1/24", "fd00::/8", "tunnel"):
        with pytest.raises(TunnelError, match=r"10\.77\.0\.0/24"):
            network.plan(bad)
    with pytest.raises(TunnelError, match="MTU 70000"):
        network.plan(mtu=70_000)


@pytest.mark.parametrize("count", [24, PAGE, PAGE + 8, 2 * PAGE, 2 * PAGE + 8, BUFFER_BYTES])
def test_pointers(count: int) -> None:
    """PRP2 is nothing, the second page, or the list, by how many pages the data touch (Base 4.3.1)."""
    buffer = Memory(memoryview(bytearray(BUFFER_BYTES)), 1 << 32)
    entries = Memory(memoryview(bytearray(PAGE)), 1 << 20)
    prp_list(entries, buffer)
    prp1, prp2 = pointers(buffer, entries.address, count)
    pages = -(-count // PAGE)
    assert prp1 == buffer.address
    assert prp2 == (0 if pages == 1 else buffer.address + PAGE if pages == 2 else entries.address)
    listed = struct.unpack(f"<{BUFFER_BYTES // PAGE - 1}Q", entries.view[: 8 * (BUFFER_BYTES // PAGE - 1)])
    assert listed == tuple(buffer.address + PAGE * n for n in range(1, BUFFER_BYTES // PAGE))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Proxy, int]]:
    """A proxy, and the port of a server on loopback that gives back one connection's bytes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        link, _ = server.accept()
        with link:
            while piece := link.recv(65536):
                link.sendall(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    running = Proxy(tmp_path / "proxy")
    yield running, server.getsockname()[1]
    running.close()
    server.close()


def test_proxy_carries_a_connection(served: tuple[Proxy, int]) -> None:
    """Bytes go both ways, and the end of them too."""
    running, port = served
    with proxy.connect(running.path, "127.0.0.1", port) as link:
        link.sendall(b"there and back")
        link.shutdown(socket.SHUT_WR)
        data = b""
        while piece := link.recv(100):
            data += piece
    assert data == b"there and back"
    assert running.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("line", [b"\n", b"CONNECT\n", b"CONNECT 1.2.3.4\n", b"CONNECT 127.0.0.1:99999\n",
                                  b"CONNECT 127.0.0.1:1\n", b"\xff" * 400])  # fmt: skip
def test_proxy_refuses_with_a_reason(served: tuple[Proxy, int], line: bytes) -> None:
    """A line that is none, or an address that does not answer, gets ERROR and a reason."""
    running, _ = served
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(30)
        link.connect(str(running.path))
        link.sendall(line)
        answer = b""
        while piece := link.recv(1000):
            answer += piece
    assert answer.startswith(b"ERROR ")


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Help shows examples; two drives for one ISP engine are refused."""
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        command.main(["host"])
    assert ended.value.code == 2
