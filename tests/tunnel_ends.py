"""Ends of the tunnel as processes in network namespaces of their own, and programs beside them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # s: machines that run tests may be busy
HOLD = """
import sys
from emucsd.tunnel import network
network.enter_private()
print("ready", flush=True)
sys.stdin.read()
"""
# takes a connection, all of its bytes, and gives them back; again and again
ECHO = """
import socket, sys
server = socket.create_server(("0.0.0.0", 7), reuse_port=True)
print("ready", flush=True)
while True:
    link, _ = server.accept()
    with link:
        data = bytearray()
        while piece := link.recv(1 << 16):
            data += piece
        link.sendall(data)
"""
# connects, sends the bytes that come by standard input, prints those that come back
CALL = """
import socket, sys, threading
data = sys.stdin.buffer.read()
link = socket.create_connection((sys.argv[1], 7), 60)
def send():
    link.sendall(data)
    link.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
while piece := link.recv(1 << 16):
    sys.stdout.buffer.write(piece)
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / part) for part in ("firmware", "host", "femu"))
    return {**os.environ, "PYTHONPATH": path}


def why_not() -> str:
    """Why tunnels can't be made here; empty when they can."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is not there or not allowed"
    done = subprocess.run([sys.executable, "-c", HOLD], env=environment(), input="", capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def require() -> None:
    """Skip the module where tunnels can't be made."""
    if reason := why_not():
        pytest.skip(f"no tunnel can be made here: {reason}", allow_module_level=True)


class Place:
    """A network namespace, kept by a process until ``close``."""

    def __init__(self) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-c", HOLD], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == "ready\n"
        self._children: list[subprocess.Popen[bytes]] = []

    def words(self, *words: str) -> list[str]:
        """A command, inside."""
        return [*enter(self._keeper.pid), *words]

    def python(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start Python inside; it ends with this place."""
        child = subprocess.Popen(self.words(sys.executable, *words), env=environment(), **options)
        self._children.append(child)
        return child

    def end(self, which: str, drives: Sequence[Path], *words: str) -> End:
        """Start an end of the tunnel inside, without waiting for it."""
        return End(self, which, drives, words)

    def echo(self) -> None:
        """Serve the echo inside."""
        child = self.python("-c", ECHO, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"

    def call(self, address: str, data: bytes) -> bytes:
        """What the echo at ``address`` gives back."""
        done = subprocess.run(
            self.words(sys.executable, "-c", CALL, address), input=data, capture_output=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        streams = [self._keeper.stdout, *(s for child in self._children for s in (child.stdout, child.stderr))]
        for stream in streams:
            if stream is not None:
                stream.close()


class End:
    """``python3 -m emucsd.tunnel`` in a place."""

    def __init__(self, place: Place, which: str, drives: Sequence[Path], words: Sequence[str]) -> None:
        self._ready, theirs = os.pipe()
        named = [word for drive in drives for word in ("--drive", str(drive))]
        self.process = place.python("-m", "emucsd.tunnel", which, *named, "--ready-fd", str(theirs), *words,
                                    pass_fds=[theirs], stderr=subprocess.PIPE)  # fmt: skip
        os.close(theirs)
        os.set_blocking(self.process.stderr.fileno(), False)  # type: ignore[union-attr]

    def wait(self) -> dict[str, Any]:
        """Until the tunnel is open. :returns: what it says then"""
        with open(self._ready, "rb") as ready:
            assert select.select([ready], [], [], PATIENCE)[0], self.log()
            line = ready.readline()
        assert line, self.log()
        found: dict[str, Any] = json.loads(line)
        return found

    def log(self) -> str:
        assert self.process.stderr is not None
        return (self.process.stderr.read() or b"").decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As Control-C does. :returns: the exit code"""
        self.process.terminate()
        return self.process.wait(PATIENCE)


def enter(pid: int) -> list[str]:
    """What runs a command in the namespaces of a process."""
    own = os.stat("/proc/self/ns/user").st_ino == os.stat(f"/proc/{pid}/ns/user").st_ino
    return ["nsenter", *([] if own else ["-U", "--preserve-credentials"]), "-n", "-t", str(pid)]


@contextmanager
def places(count: int) -> Iterator[list[Place]]:
    """Some namespaces."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            place = Place()
            stack.callback(place.close)
            found.append(place)
        yield found
