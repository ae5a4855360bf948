"""Two ends of the tunnel over a real drive: TCP content, faults, restarts of either side, several drives."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emucsd import Drive
from emucsd.control import Control
from emucsd.tunnel import proxy
from emucsd.tunnel.inside import Tunnel
from emucsd_wire.nvme import Io, Status
from emucsd_wire.tunnel import TUNNEL_STATUS, TunnelAdmin
from tests import tunnel_ends
from tests.drive_process import DriveProcess
from tests.tunnel_ends import PATIENCE, Place

tunnel_ends.require()

MIB = 1 << 20
LONG = 32 * MIB  # takes long enough to be interrupted


def noise(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


SMALL = ("--profile", "null", "--size", "64MiB")


UNPRIVILEGED = """
from emucsd.tunnel import network
from emucsd.tunnel.tun import Tun
print(network.may_configure())
network.enter_private()
tun = Tun.open("emucsd0")
network.configure("emucsd0", 0x0A4D0001, 24, 1500)
import socket
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.connect(("10.77.0.2", 1))
print(link.getsockname()[0])
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriveProcess]:
    with DriveProcess(tmp_path_factory.mktemp("drive"), *SMALL) as running:
        yield running


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """The ISP engine's network, with an echo in it."""
    with tunnel_ends.places(1) as (only,):
        only.echo()
        yield only


@pytest.fixture
def isp(process: DriveProcess, place: Place) -> Iterator[tunnel_ends.End]:
    end = place.end("isp", [process.runtime])
    yield end
    end.kill()


@pytest.fixture
def drive(process: DriveProcess) -> Iterator[Drive]:
    with Drive.open(process.runtime) as attached:
        yield attached


def echo(link: socket.socket, data: bytes) -> bytes:
    """Send everything and take what comes back."""
    link.settimeout(PATIENCE)

    def send() -> None:
        with contextlib.suppress(OSError):
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    back = bytearray()
    while piece := link.recv(1 << 18):
        back += piece
    sender.join()
    return bytes(back)


def until(happened: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def carried(control: Control) -> int:
    """Bytes through the drive, both ways."""
    tunnel = control.stats()["tunnel"]
    return int(tunnel["to_isp"]["bytes"]) + int(tunnel["to_host"]["bytes"])


def under_way(control: Control) -> None:
    """Until a transfer has begun: some MiB are through the drive."""
    before = carried(control)
    until(lambda: carried(control) > before + 2 * MIB, "nothing was sent")


def test_tcp_through_an_open_drive(drive: Drive, isp: tunnel_ends.End) -> None:
    """A program with a Drive open has the tunnel beside its block I/O; content is equal both ways."""
    data = noise(8 * MIB)
    with Tunnel([drive], private=True).wait(PATIENCE) as tunnel:
        isp.wait()
        with tunnel.connect(0, 7) as link:
            back = threading.Thread(target=lambda: drive.namespace(1).write(0, noise(MIB)))
            back.start()
            assert echo(link, data) == data
            back.join()
        assert drive.namespace(1).read(0, 1)[:4096].tobytes() == noise(MIB)[: drive.namespace(1).lba_bytes]
        counters = drive.control.stats()["tunnel"]
        assert counters["to_isp"]["frames"] > 8 * MIB / tunnel.plan.mtu
        assert counters["to_isp"]["refused"] == 0
    status = TUNNEL_STATUS.unpack(drive.passthrough("admin", TunnelAdmin.TUNNEL_STATUS, length=256).data.tobytes())
    assert status.flags == 0  # closed with the end


def test_content_survives_faults_and_garbage(drive: Drive, isp: tunnel_ends.End) -> None:
    """Frames lost, reordered, doubled, and garbage batches sent in between: TCP content is intact."""
    data = noise(2 * MIB)
    with Tunnel([drive], private=True).wait(PATIENCE) as tunnel:
        isp.wait()
        drive.control.call("tunnel", loss=10_000, reorder=30_000, duplicate=30_000, seed=4)
        draw = random.Random(9)
        done = threading.Event()
        statuses: list[int] = []

        def garbage() -> None:
            while not done.is_set():
                bad = draw.randbytes(8 * draw.randrange(3, 500))
                answer = drive.passthrough("io", Io.TUNNEL_SEND, data=bad, cdw12=len(bad), cdw13=100, check=False)
                statuses.append(answer.status & 0x7FF)
                done.wait(0.01)

        sender = threading.Thread(target=garbage)
        sender.start()
        try:
            with tunnel.connect(0, 7) as link:
                assert echo(link, data) == data
        finally:
            done.set()
            sender.join()
            drive.control.call("tunnel")
        counters = drive.control.stats()["tunnel"]["to_isp"]
        assert set(statuses) == {Status.TUNNEL_BATCH}
        assert counters["refused"] == len(statuses)
        assert counters["lost"] + counters["reordered"] + counters["duplicated"] > 0


def test_refused_until_the_host_opens(drive: Drive, isp: tunnel_ends.End) -> None:
    """Without the host's setup there is no network, and commands say so; then there is; then there is not again."""
    answer = drive.passthrough("io", Io.TUNNEL_SEND, data=bytes(24), cdw12=24, check=False)
    assert answer.status & 0x7FF == Status.TUNNEL_CLOSED
    assert isp.process.poll() is None
    with Tunnel([drive], private=True).wait(PATIENCE):
        assert isp.wait()["address"] == "10.77.0.2"
    until(lambda: "closed by the host" in isp.log(), "the ISP end has not seen the tunnel close")
    with Tunnel([drive], "10.99.0.0/16", 1500, private=True).wait(PATIENCE) as tunnel, tunnel.connect(0, 7) as link:
        assert tunnel.isp_address() == "10.99.0.2"
        assert echo(link, b"other network") == b"other network"


def test_controller_resets_in_mid_transfer(process: DriveProcess, isp: tunnel_ends.End) -> None:
    """drive.reset() takes the tunnel's queue pair away; it comes back by itself and the connection goes on."""
    data = noise(LONG)
    with Drive.open(process.runtime, queues=3) as drive, drive.tunnel(private=True).wait(PATIENCE) as tunnel:
        isp.wait()

        def resets() -> None:
            for _ in range(3):
                under_way(drive.control)
                drive.reset()

        with tunnel.connect(0, 7) as link:
            resetting = threading.Thread(target=resets)
            resetting.start()
            assert echo(link, data) == data
            resetting.join()
        assert tunnel.status()["drives"][0]["attached"] >= 4
        drive.namespace(1).write(0, noise(4096))


def test_an_isp_end_killed_in_mid_transfer(process: DriveProcess, drive: Drive, place: Place) -> None:
    """The ISP's end is killed and another started: connections of its machine go on."""
    data = noise(LONG)
    with Tunnel([drive], private=True).wait(PATIENCE) as tunnel:
        first = place.end("isp", [process.runtime])
        first.wait()
        with tunnel.connect(0, 7) as link:
            second: list[tunnel_ends.End] = []

            def replace() -> None:
                under_way(drive.control)
                first.kill()
                second.append(place.end("isp", [process.runtime]))

            restart = threading.Thread(target=replace)
            restart.start()
            assert echo(link, data) == data
            restart.join()
            second[0].kill()


def test_host_end_and_drive_killed_in_mid_transfer(tmp_path: Path, place: Place) -> None:
    """The drive is killed and started again, then the host's end is: connections between the machines go on."""
    data = noise(LONG)
    with tunnel_ends.places(1) as (host_place,):
        first = DriveProcess(tmp_path, *SMALL)
        with first:
            host = host_place.end("host", [first.runtime])
            isp = place.end("isp", [first.runtime])
            host.wait()
            answers: list[bytes] = []
            caller = threading.Thread(target=lambda: answers.append(host_place.call("10.77.0.2", data)))
            caller.start()
            under_way(Control(first.runtime))
            host.kill()
            host_place.end("host", [first.runtime])
            caller.join()
            assert answers == [data]
            first.process.kill()
        with DriveProcess(tmp_path, *SMALL, "--runtime", str(first.runtime)):
            assert host_place.call("10.77.0.2", data[:MIB]) == data[:MIB]
        isp.kill()


def test_one_network_over_two_drives(tmp_path: Path, process: DriveProcess, place: Place) -> None:
    """ISP engines of two drives reach each other and the host through one host end; its proxy reaches both."""
    data = noise(MIB)
    with DriveProcess(tmp_path, *SMALL) as other, tunnel_ends.places(2) as (host_place, second_place):
        socket_path = other.runtime / "proxy"
        host = host_place.end("host", [process.runtime, other.runtime], "--proxy", str(socket_path))
        ends = [place.end("isp", [process.runtime]), second_place.end("isp", [other.runtime])]
        assert [drive["isp_address"] for drive in host.wait()["drives"]] == ["10.77.0.2", "10.77.0.3"]
        assert [end.wait()["address"] for end in ends] == ["10.77.0.2", "10.77.0.3"]
        second_place.echo()
        host_place.echo()
        assert place.call("10.77.0.3", data) == data
        assert second_place.call("10.77.0.2", data) == data
        assert second_place.call("10.77.0.1", data) == data
        with proxy.connect(socket_path, "10.77.0.3", 7) as link:
            assert echo(link, data) == data
        with pytest.raises(ConnectionRefusedError, match="refused"):
            proxy.connect(socket_path, "10.77.0.3", 9)
        assert host.stop() == 0
        ends[0].kill()


def test_idle_ends_sleep(drive: Drive, isp: tunnel_ends.End) -> None:
    """With nothing to carry, neither end nor the drive does anything."""
    with Tunnel([drive], private=True).wait(PATIENCE) as tunnel:
        isp.wait()
        with tunnel.connect(0, 7) as link:
            assert echo(link, b"x") == b"x"
        pids = [isp.process.pid, int(drive.control.status()["pid"])]
        time.sleep(1.0)  # connections close, and what was started settles
        before = [work(pid) for pid in pids]
        rounds = tunnel.rounds
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5:
            time.sleep(0.5)
        ticks = [now - then for now, then in zip((work(pid) for pid in pids), before, strict=True)]
        assert max(ticks) <= 5, f"{ticks} ticks of 10 ms in 1.5 s"
        assert tunnel.rounds - rounds <= 4


def work(pid: int) -> int:
    """Ticks that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_without_rights_of_ones_own() -> None:
    """Without CAP_NET_ADMIN there is still a network: in a user namespace, for this process alone."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and setpriv is None:
        pytest.skip("setpriv is not installed: these rights can't be given up")
    words = [setpriv or "", "--bounding-set=-net_admin,-sys_admin"] if os.geteuid() == 0 else []
    done = subprocess.run([*words, sys.executable, "-c", UNPRIVILEGED], env=tunnel_ends.environment(),
                          capture_output=True, text=True, timeout=PATIENCE)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n10.77.0.1\n"


def test_an_end_says_what_to_do(tmp_path: Path) -> None:
    """A drive that is not there keeps an end waiting, not failing; a bad network is refused with the reason."""
    with tunnel_ends.places(1) as (only,):
        end = only.end("host", [tmp_path / "nobody"], "--network", "10.77.0.0/33")
        assert end.process.wait(PATIENCE) == 1
        os.set_blocking(end.process.stderr.fileno(), True)  # type: ignore[union-attr]
        assert "10.77.0.0/33" in end.log()
        end = only.end("host", [tmp_path / "nobody"])
        until(lambda: "no drive listens" in end.log(), "the end did not say that the drive is missing")
        assert end.process.poll() is None
        assert end.stop() == 0
