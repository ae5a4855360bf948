"""The drive process: starts, says so, serves, idles for nothing, stops cleanly, and leaves its folders right."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_wire.nvme import Io
from tests.drive_process import DriveProcess, until
from tests.protocol.vfio_nvme import ENTRIES, enable
from tests.protocol.vfio_peer import OWN_JSON, QEMU_JSON, Closed, Peer, memfd

SMALL = ("--profile", "null", "--size", "64MiB")


class Remote:
    """Stands where a stepped server would: the drive runs in a process of its own, so a step is a short wait."""

    def run_once(self, timeout: float | None = None) -> bool:
        time.sleep(0.001)
        return False


def client(drive: DriveProcess, port: int = 0) -> Peer:
    peer = Peer(Remote(), drive.port(port))
    assert peer.negotiate(OWN_JSON).errno == 0
    return peer


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriveProcess]:
    with DriveProcess(tmp_path_factory.mktemp("process"), *SMALL) as process:
        assert process.ready["ok"], process.ready
        yield process


def test_status_and_files(drive: DriveProcess) -> None:
    """status, stats and checkpoint answer; everything in the runtime folder is its owner's alone."""
    status = drive.ask("status")
    assert (status["ok"], status["name"], status["pid"]) == (True, "test", drive.process.pid)
    assert status["settings"]["profile"] == "null"
    assert [Path(port["socket"]) for port in status["ports"]] == [drive.port(0), drive.port(1)]
    assert drive.ask("stats")["ok"]
    assert drive.ask("checkpoint")["seconds"] >= 0
    assert stat.S_IMODE(drive.runtime.stat().st_mode) == 0o700
    for path in drive.runtime.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    record = json.loads((drive.runtime / "drive.json").read_text())
    assert (record["pid"], record["settings"]["size"]) == (drive.process.pid, "64MiB")


def test_both_ports_serve(drive: DriveProcess) -> None:
    """A client on each port at once; a second one on the same port is turned away."""
    peers = [client(drive, number) for number in (0, 1)]
    for peer in peers:
        assert peer.read(0, 8, 4) != bytes(4)  # VS
    second = Peer(Remote(), drive.port(0))
    assert second.negotiate().errno == 16
    assert [port["client"]["state"] for port in drive.ask("status")["ports"]] == ["ready", "ready"]
    for peer in (*peers, second):
        peer.close()
    until(lambda: [port["client"] for port in drive.ask("status")["ports"]] == [None, None])


def test_idle_costs_nothing(drive: DriveProcess) -> None:
    """With no client, or a silent one, a second costs less than 50 ms of processor time."""
    for attached in (False, True):
        peer = client(drive) if attached else None
        time.sleep(0.3)  # what the last test left to do is done; this is no wait for a condition
        before = drive.cpu_seconds()
        time.sleep(1.5)
        assert drive.cpu_seconds() - before < 0.075
        if peer is not None:
            peer.close()


def test_a_second_process_on_the_folder_is_refused(drive: DriveProcess, tmp_path: Path) -> None:
    """The runtime folder and the store belong to one live process: another one says whose, and harms nothing."""
    with DriveProcess(tmp_path, *SMALL, "--runtime", str(drive.runtime)) as other:
        assert other.ready["error"]["kind"] == "DriveRunning"
        assert str(drive.process.pid) in other.ready["error"]["message"]
        assert other.wait_end() == 1
    with DriveProcess(tmp_path, *SMALL, "--store", str(drive.store)) as other:
        assert other.ready["error"]["kind"] == "StoreLocked"
        assert other.wait_end() == 1
        assert not list(other.runtime.rglob("cntrl"))
    assert drive.ask("status")["ok"]


@pytest.mark.parametrize(
    ("words", "kind", "status"),
    [
        (("--profile", "nosuch"), "ProfileError", 1),
        (("--size", "lots"), "ProfileError", 1),
        (("--set", "nand.speed=5"), "ProfileError", 1),
        (("--clock", "fast"), "SettingsError", 2),
        (("--runtime", "/" + "long/" * 30), "PathError", 2),
        (("--runtime", "/proc/nowhere"), "SettingsError", 2),
        (("--firmware", "/etc/passwd"), "PolicyError", 1),
    ],
)
def test_mistakes_are_told_on_the_ready_line(tmp_path: Path, words: tuple[str, ...], kind: str, status: int) -> None:
    """What can't be started says why, in one line, with its kind, and exits; nothing is left running."""
    with DriveProcess(tmp_path, *SMALL, *words) as process:
        assert process.ready["error"]["kind"] == kind
        assert process.wait_end() == status
        assert process.process.stderr is not None
        assert "emucsd_femu serve: " in process.process.stderr.read()


@pytest.mark.parametrize("how", ["stop", "SIGTERM", "SIGINT"])
def test_clean_stops(tmp_path: Path, how: str) -> None:
    """Asked or signalled, with a client attached: exit 0, no socket left, the store clean on the next start."""
    for _ in range(2):
        with DriveProcess(tmp_path, *SMALL) as process:
            assert process.ready["ok"], process.ready
            assert process.ask("status")["drive"]["recovered"]["clean"]
            peer = client(process)
            if how == "stop":
                assert process.ask("stop")["ok"]
            else:
                process.signal(signal.Signals[how])
            assert process.wait_end() == 0
            peer.close()
            left = sorted(path.name for path in process.runtime.iterdir())
            assert left == ["lock", "log", "port0", "port1"]
        if how != "stop":
            return


def test_killed_and_started_again(tmp_path: Path) -> None:
    """kill -9 leaves sockets, lock and record behind; the next start takes over, and tells that it recovered."""
    with DriveProcess(tmp_path, *SMALL) as process:
        assert process.ready["ok"], process.ready
        process.signal(signal.SIGKILL)
        assert process.wait_end() == -9
        assert process.port().exists()
    with DriveProcess(tmp_path, *SMALL) as process:
        assert process.ready["ok"], process.ready
        assert not process.ask("status")["drive"]["recovered"]["clean"]
        client(process).close()


def test_the_owner_dies(tmp_path: Path) -> None:
    """End of file on --lifeline-fd stops the drive cleanly."""
    mine, theirs = os.pipe()
    with DriveProcess(tmp_path, *SMALL, "--lifeline-fd", str(mine), fds=(mine,)) as process:
        os.close(mine)
        assert process.ready["ok"], process.ready
        os.close(theirs)
        assert process.wait_end() == 0


@pytest.mark.parametrize("text", [OWN_JSON, QEMU_JSON], ids=["mapped", "trapped"])
def test_clients_that_vanish_mid_command(drive: DriveProcess, text: bytes) -> None:
    """Both ports busy, their clients gone in the middle, again and again: all is let go, and the next one is served."""
    size, base = 0x200000, 0x10000000

    def no_client() -> bool:
        return [port["client"] for port in drive.ask("status")["ports"]] == [None, None]

    until(no_client)
    before = drive.descriptors()
    with memfd(size) as fd, mmap.mmap(fd, size) as memory:
        for turn in range(12):
            peer = Peer(Remote(), drive.port(turn % 2))
            queues = enable(peer, text, base, fd, memory, Remote().run_once).create_io()
            for n in range(ENTRIES - 2):
                opcode = Io.WRITE if n % 2 else Io.READ
                queues.submit(opcode, nsid=1, prp1=base + 0x10000 + 0x1000 * (n % 64), cdw10=8 * n, cdw12=7)
            peer.close()
            until(no_client)
        peer = Peer(Remote(), drive.port(0))
        host = enable(peer, text, base, fd, memory, Remote().run_once)
        host.create_io()
        assert host.write(0, b"healthy." * 512) == 0
        assert host.read(0, 4096) == b"healthy." * 512
        peer.close()
    until(lambda: no_client() and drive.descriptors() <= before)
    assert "internal error" not in drive.log()


def test_a_client_that_cuts_its_memory(drive: DriveProcess) -> None:
    """A client that truncates the file behind its queues and buffers while the drive uses them is sent away."""
    size, base = 0x200000, 0x10000000
    for cut in (0x10000, 0):  # its buffers; its queues too
        with memfd(size) as fd, mmap.mmap(fd, size) as memory:
            peer = Peer(Remote(), drive.port(0))
            queues = enable(peer, OWN_JSON, base, fd, memory, Remote().run_once).create_io()
            assert queues.run(Io.READ, nsid=1, prp1=base + 0x20000, cdw12=0) == 0
            os.ftruncate(fd, cut)
            if cut:
                queues.submit(Io.WRITE, nsid=1, prp1=base + 0x20000, cdw12=0)  # met by the data plane's thread
            else:
                peer.post(0, 0x1000, b"\7\0\0\0")  # admin entries: met by the control thread
            with pytest.raises(Closed):
                peer.receive()
            peer.close()
    assert drive.log().count("cut a file") == 2
    peer = client(drive)
    assert peer.read(0, 8, 4) != bytes(4)
    peer.close()


def test_garbage_on_every_socket(drive: DriveProcess) -> None:
    """Random bytes on both ports and the control socket: connections end, the drive does not."""
    control = drive.runtime / "control"
    for path in (drive.port(0), drive.port(1), control) * 5:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(5)
            link.connect(str(path))
            try:
                link.sendall(os.urandom(4096) + b"\n")
                while link.recv(4096) and path != control:
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
    until(lambda: [port["client"] for port in drive.ask("status")["ports"]] == [None, None])
    assert "internal error" not in drive.log()
