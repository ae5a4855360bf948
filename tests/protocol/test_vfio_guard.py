"""Clients that cut the memory they lent: the drive survives, and they are sent away."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emucsd_femu.memory_guard import MemoryGuard
from emucsd_femu.server import Server
from tests.protocol.vfio_peer import Closed, RecordingPort, Stand, memfd, open_fds


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    stand.server.close()
    guard = MemoryGuard()
    stand.server = Server([stand.port], [stand.path], guard=guard)
    yield stand
    stand.close()
    guard.close()


def test_cut_memory_reads_as_zero_and_ends_the_client(guarded: Stand) -> None:
    """Reading and writing a range whose file was cut works on fresh memory; the client is gone at the next step."""
    peer = guarded.connect()
    before = open_fds()
    with memfd(0x8000) as fd:
        os.pwrite(fd, b"\xff" * 0x8000, 0)
        assert peer.map(0x10000, 0x8000, fd) == 0
        _, address, _ = guarded.port.maps[0x10000]
        os.ftruncate(fd, 0x1000)
        assert ctypes.string_at(address + 0x5000, 16) == bytes(16)
        ctypes.memmove(address + 0x7FF0, b"written anyway..", 16)
        assert ctypes.string_at(address + 0x7FF0, 16) == b"written anyway.."
        with pytest.raises(Closed):
            peer.receive()
        assert guarded.port.calls[-2:] == [("reset",), ("unmap", 0x10000, 0x8000)]
        assert open_fds() <= before  # the server's end is closed, the file is still open here
        again = guarded.connect()
        assert again.map(0x10000, 0x1000, fd) == 0


def test_another_thread_may_be_the_one_that_touches_it(guarded: Stand) -> None:
    """The data plane's thread meets the cut file while the control thread is busy: it goes on."""
    peer = guarded.connect()
    with memfd(0x400000) as fd:
        assert peer.map(0, 0x400000, fd) == 0
        _, address, _ = guarded.port.maps[0]
        view = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_int64)), (0x80000,))
        os.ftruncate(fd, 0)
        sums: list[int] = []
        thread = threading.Thread(target=lambda: sums.append(int(view.sum())))
        thread.start()
        thread.join(10)
        assert sums == [0]
        with pytest.raises(Closed):
            peer.receive()


def test_other_bus_errors_are_not_swallowed(tmp_path: Path) -> None:
    """A SIGBUS outside of clients' memory ends the process as it would without the guard."""
    program = """
        import ctypes, mmap, os
        from emucsd_femu.memory_guard import MemoryGuard
        guard = MemoryGuard()
        fd = os.memfd_create("own")
        os.ftruncate(fd, 8192)
        own = mmap.mmap(fd, 8192)
        os.ftruncate(fd, 0)
        own[0]
    """
    words = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(words, env={"PYTHONPATH": os.pathsep.join(sys.path)}, cwd=tmp_path, check=False)
    assert done.returncode == -7


def test_the_doorbell_page_cannot_be_cut(tmp_path: Path) -> None:
    """The page that clients map is sealed: it neither shrinks nor grows."""
    port = RecordingPort()
    fd = os.memfd_create("sealable", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, 8192)
    os.dup2(fd, port.doorbell_fd, inheritable=False)
    os.close(fd)
    with Server([port], [tmp_path / "cntrl"]):
        assert fcntl.fcntl(port.doorbell_fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.ftruncate(port.doorbell_fd, 0)
    port.close()
