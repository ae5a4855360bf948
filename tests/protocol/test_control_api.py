"""The control API: requests and answers a line each, and what is no request."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from emucsd_femu import control
from emucsd_femu.control import CLIENT_LIMIT, LINE_LIMIT, ControlServer, Later
from emucsd_femu.server import Loop
from emucsd_firmware.errors import StoreError
from tests.protocol.vfio_peer import STEPS, open_fds


class Desk:
    """A control server with answers of our own, and its clients."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.path = folder / "control"
        self.asked: list[str] = []
        self.go_on = threading.Event()  # what a checkpoint waits for
        self.full = False
        kinds: list[type[control.Request]] = [control.Status, control.Stats, control.Checkpoint, control.Stop]
        answers = dict.fromkeys(kinds, self._answer)
        self.server = ControlServer(self.loop, self.path, answers)
        self.clients: list[socket.socket] = []

    def _answer(self, request: Any) -> Mapping[str, Any] | Later:
        self.asked.append(type(request).__name__)
        if isinstance(request, control.Checkpoint):
            return Later(self._checkpoint)
        if isinstance(request, control.Stats):
            raise RuntimeError("a bug of our own")
        return {"about": "x" * 300_000 if isinstance(request, control.Stop) else "y"}

    def _checkpoint(self) -> Mapping[str, Any]:
        assert self.go_on.wait(10)
        if self.full:
            raise StoreError("the disk is full")
        return {"thread": threading.current_thread().name}

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.path))
        client.setblocking(False)
        self.clients.append(client)
        return client

    def settle(self) -> None:
        for _ in range(STEPS):
            if not self.loop.run_once(0):
                return
        raise AssertionError("the server never becomes idle")

    def read(self, client: socket.socket) -> dict[str, Any]:
        """The next answer; {} when the server hung up."""
        line = b""
        for _ in range(STEPS):
            try:
                piece = client.recv(65536)
            except BlockingIOError:
                self.loop.run_once(0.01 if self.go_on.is_set() else 0)
                continue
            except ConnectionResetError:
                return {}
            if not piece:
                return {}
            line += piece
            if line.endswith(b"\n"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise AssertionError("no answer")

    def ask(self, line: bytes) -> dict[str, Any]:
        client = self.connect()
        client.sendall(line)
        return self.read(client)

    def close(self) -> None:
        self.go_on.set()
        for client in self.clients:
            client.close()
        self.server.close()
        self.loop.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def test_request_and_answer(desk: Desk) -> None:
    """A known request gets {"ok": true} and what its answer adds."""
    assert desk.ask(b'{"do": "status"}\n') == {"ok": True, "about": "y"}
    assert desk.asked == ["Status"]


def test_several_requests_in_one_write_are_answered_in_order(desk: Desk) -> None:
    """A connection may be kept: requests queue up, answers come in their order."""
    client = desk.connect()
    client.sendall(b'{"do":"status"}\n\n{"do":"nonsense"}\n{"do":"status"}\n')
    desk.settle()
    answers = [json.loads(line) for line in client.recv(65536).splitlines()]
    assert [answer["ok"] for answer in answers] == [True, False, True]


def test_a_request_may_arrive_in_pieces(desk: Desk) -> None:
    """Bytes one at a time make the same request."""
    client = desk.connect()
    for byte in b'{"do":"status"}\n':
        client.sendall(bytes([byte]))
        desk.settle()
    assert desk.read(client)["ok"]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"{}",
        b"[]",
        b'"status"',
        b'{"do": "format"}',
        b'{"do": 5}',
        b'{"do": "status", "more": 1}',
        b'{"do": "status"',
        b"\xff\xfe",
        b"[" * 20_000,
    ],
)
def test_what_is_no_request_is_told_so(desk: Desk, line: bytes) -> None:
    """Malformed, unknown or overfull requests get a RequestError with what is possible; the connection stays."""
    client = desk.connect()
    client.sendall(line + b"\n")
    answer = desk.read(client)
    assert answer["ok"] is False
    assert answer["error"]["kind"] == "RequestError"
    assert "checkpoint" in answer["error"]["message"]
    client.sendall(b'{"do":"status"}\n')
    assert desk.read(client)["ok"]
    assert desk.asked == ["Status"]


def test_errors_of_the_drive_keep_their_kind(desk: Desk) -> None:
    """A FirmwareError is told by its name; an error of our own is an InternalError, logged, and no end."""
    desk.full = True
    desk.go_on.set()
    assert desk.ask(b'{"do":"checkpoint"}\n')["error"] == {"kind": "StoreError", "message": "the disk is full"}
    assert desk.ask(b'{"do":"stats"}\n')["error"]["kind"] == "InternalError"
    assert desk.ask(b'{"do":"status"}\n')["ok"]


def test_what_takes_long_holds_up_nobody(desk: Desk) -> None:
    """A checkpoint runs in another thread: others are served, its own connection's next request waits for its turn."""
    slow = desk.connect()
    slow.sendall(b'{"do":"checkpoint"}\n{"do":"status"}\n')
    gone = desk.connect()
    gone.sendall(b'{"do":"checkpoint"}\n')
    desk.settle()
    gone.close()
    assert desk.ask(b'{"do":"status"}\n')["ok"]
    assert desk.asked == ["Checkpoint", "Checkpoint", "Status"]
    desk.go_on.set()
    answers = b""
    while answers.count(b"\n") < 2:
        desk.loop.run_once(5)
        with contextlib.suppress(BlockingIOError):
            answers += slow.recv(65536)
    first, second = map(json.loads, answers.splitlines())
    assert first["thread"].startswith("emucsd-control")
    assert second == {"ok": True, "about": "y"}
    desk.settle()
    assert desk.ask(b'{"do":"status"}\n')["ok"]


def test_closing_waits_for_what_runs(desk: Desk) -> None:
    """The server's end finishes work under way, answers who waits for it and hangs up; no descriptor stays."""
    before = open_fds()
    client = desk.connect()
    client.sendall(b'{"do":"checkpoint"}\n')
    desk.settle()
    threading.Timer(0.05, desk.go_on.set).start()
    desk.server.close()
    assert desk.read(client)["ok"]
    assert desk.read(client) == {}
    client.close()
    desk.server = ControlServer(desk.loop, desk.path, {})
    assert open_fds() <= before


def test_an_endless_line_is_cut(desk: Desk) -> None:
    """More than a line's limit without its end: an error, then the connection closes."""
    client = desk.connect()
    for _ in range(LINE_LIMIT // 4096 + 2):
        try:
            client.sendall(b" " * 4096)
        except (BrokenPipeError, ConnectionResetError):
            break
        desk.settle()
    assert desk.read(client)["error"]["kind"] == "RequestError"
    assert desk.read(client) == {}


def test_an_answer_larger_than_the_socket_waits_for_its_reader(desk: Desk) -> None:
    """A slow reader gets the whole of a large answer, and holds up nobody meanwhile."""
    slow = desk.connect()
    slow.sendall(b'{"do":"stop"}\n')
    desk.settle()
    assert desk.ask(b'{"do":"status"}\n')["ok"]
    assert len(desk.read(slow)["about"]) == 300_000


def test_clients_come_and_go(desk: Desk) -> None:
    """Silent, dying and too many clients cost nothing that lasts."""
    before = open_fds()
    for _ in range(3):
        crowd = [desk.connect() for _ in range(8)]
        desk.settle()
        for client in crowd[:4]:
            client.sendall(b'{"do":"sta')
        for client in crowd:
            client.close()
        desk.settle()
    assert open_fds() <= before
    crowd = []
    for _ in range(CLIENT_LIMIT + 4):
        crowd.append(desk.connect())
        desk.settle()
    assert desk.read(crowd[-1]) == {}
    crowd[0].sendall(b'{"do":"status"}\n')
    assert desk.read(crowd[0])["ok"]


def test_the_socket_is_its_owners_only(desk: Desk) -> None:
    """0600, and gone when the server is."""
    assert stat.S_IMODE(desk.path.stat().st_mode) == 0o600
    desk.server.close()
    assert not desk.path.exists()
    desk.server = ControlServer(desk.loop, desk.path, {})
    assert os.path.exists(desk.path)
