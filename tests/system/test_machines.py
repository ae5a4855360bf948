"""Machines of a testbed: reached, given files, rebooted, powered off, suspended; and nothing of them is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from emucsd.errors import CommandFailed
from emucsd.testbed import Testbed
from emucsd_femu.sweep import sweep
from tests.drive_process import until
from tests.system.conftest import Make

pytestmark = pytest.mark.vm

SECONDS = 120.0


def test_commands_and_files(testbed: Testbed) -> None:
    """A command's words, code, output and errors arrive as they are; files go there and back byte for byte."""
    host = testbed.host
    assert host.run(["printf", "%s|", "a b", "$x", "'"]).out == "a b|$x|'|"
    done = host.run("echo out; echo err >&2; exit 3")
    assert (done.status, done.out, done.err) == (3, "out\n", "err\n")
    assert host.run("cat", data=b"typed").out == "typed"
    content = bytes(range(256)) * 4099
    host.put(content, "/root/new/folder/file")
    assert host.get("/root/new/folder/file") == content
    with pytest.raises(CommandFailed, match="No such file"):
        host.get("/root/nothing")
    with pytest.raises(CommandFailed, match="ended with 7"):
        host.run("exit 7", check=True)


def test_a_reboot_keeps_the_disk_and_a_power_cut_what_was_synced(testbed: Testbed) -> None:
    """Each boot is another one by its boot id; the root disk and the drive are there again."""
    host = testbed.host
    seen = [host.run("cat /proc/sys/kernel/random/boot_id").out]
    host.run("echo kept >/root/kept && sync", check=True)
    host.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=1M count=4 oflag=direct 2>/dev/null && sync", check=True)
    written = host.run("head -c 4M /dev/nvme0n1 | md5sum").out
    for again in (host.reboot, host.power_cut):
        assert again()["state"] == "up"
        seen.append(host.run("cat /proc/sys/kernel/random/boot_id").out)
        assert host.run("cat /root/kept").out == "kept\n"
        assert host.run("head -c 4M /dev/nvme0n1 | md5sum").out == written
    assert len(set(seen)) == 3


def test_a_suspended_machine_goes_on(testbed: Testbed) -> None:
    """Its processors stand still while it is suspended; the same connection works afterwards."""
    host = testbed.host
    host.run("true", check=True)
    assert host.suspend()["state"] == "suspended"
    assert host.about["state"] == "suspended"
    assert host.resume()["state"] == "up"
    assert host.run("echo there").out == "there\n"


def test_the_machine_in_the_drive(testbed: Testbed) -> None:
    """Four A53 cores behind the tunnel: their disk is the drive's port 1, which reads what the host wrote."""
    isp = testbed.isp(0)
    assert isp.run("hostname; uname -m; nproc").out.split() == ["isp0", "aarch64", "4"]
    assert isp.run("cat", data=b"there and back").out == "there and back"
    testbed.host.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=1M seek=8 count=1 oflag=direct 2>/dev/null", check=True)
    read = "dd if=/dev/nvme0n1 bs=1M skip=8 count=1 iflag=direct 2>/dev/null | md5sum"
    assert isp.run(read).out == testbed.host.run(read).out
    assert testbed.host.run("ping -c 1 -w 30 isp0").status == 0
    assert isp.run("ping -c 1 -w 30 host").status == 0


@pytest.fixture
def at_hand(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> Testbed:
    """The shared one as the command line finds it."""
    monkeypatch.setenv("EMUCSD_RUNTIME", str(testbed.runtime.parent))
    return testbed


def emucsd(*words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The command line as a user's shell calls it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-m", "emucsd", *words], input=data, capture_output=True, env=environment, check=False,
        timeout=SECONDS,
    )  # fmt: skip


def test_ssh_from_the_command_line(at_hand: Testbed) -> None:
    """Exit code, both outputs and standard input pass as they are; words are not split again."""
    done = emucsd("ssh", "host", "cat; echo err >&2; exit 5", data=b"piped\n")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"piped\n", b"err\n")
    done = emucsd("ssh", "--json", "isp0", "printf", "%s|", "a b", "-n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == "a b|-n|"
    told = json.loads(emucsd("status", "--json").stdout)["testbeds"]["testbed"]
    assert set(told["machines"]) == {"host", "isp0"}
    assert set(told["seconds"]) == {"host", "isp0"}
    assert b"suspended" in emucsd("machine", "suspend", "host").stdout
    assert b"goes on" in emucsd("machine", "resume", "host").stdout


def test_a_terminal_on_a_machine(at_hand: Testbed) -> None:
    """`emucsd ssh host` is a shell on a terminal of this one's size; its exit code is ours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "TERM": "vt100"}
    environment = {key: value for key, value in environment.items() if key not in ("LINES", "COLUMNS")}
    words = [sys.executable, "-m", "emucsd", "ssh", "host"]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        os.write(ours, b"stty size; hostname; exit 4\n")
        said = b""
        try:
            with contextlib.suppress(OSError):  # EIO: the other side is closed
                while select.select([ours], [], [], SECONDS)[0] and (piece := os.read(ours, 4096)):
                    said += piece
            assert process.wait(SECONDS) == 4, said
        finally:
            process.kill()
    os.close(ours)
    assert b"33 111" in said
    assert b"\r\nhost\r\n" in said


TWO = """
[testbed]
name = "two"
images = "small"
[[drive]]
name = "first"
profile = "null"
size = "1GiB"
isp.engine = "none"
[[drive]]
name = "second"
profile = "null"
size = "2GiB"
isp.engine = "none"
"""


def gone(pid: int) -> bool:
    """Whether a process is no more."""
    return not Path(f"/proc/{pid}").exists()


def test_two_drives_and_a_supervisor_that_is_killed(make_testbed: Make) -> None:
    """The host machine tells drives apart by slot; a killed drive has at the next boot what was synced.

    Kill -9 of the supervisor ends QEMU and both drives, and the next sweep leaves no folder.
    """
    with make_testbed(TWO) as testbed:
        host = testbed.host
        sizes = host.run("for n in 10 11; do cat /sys/bus/pci/devices/0000:00:$n.0/nvme/nvme?/nvme*n1/size; done").out
        assert [int(blocks) << 9 for blocks in sizes.split()] == [1 << 30, 2 << 30]
        second = "/dev/$(ls /sys/bus/pci/devices/0000:00:11.0/nvme)n1"
        host.run(f"dd if=/dev/urandom of={second} bs=1M count=4 conv=fsync 2>/dev/null", check=True)
        written = host.run(f"head -c 4M {second} | md5sum").out
        for drive in (testbed.drive(0), testbed.drive(1)):
            drive.restart()
        host.power_cut()
        assert host.run(f"head -c 4M {second} | md5sum").out == written
        about = testbed.status()
        pids = [about["machines"]["host"]["pid"], *(drive["pid"] for drive in about["drives"])]
        assert not any(map(gone, pids))
        os.kill(about["pid"], signal.SIGKILL)
        until(lambda: all(map(gone, pids)), 60)
        assert sweep(testbed.runtime.parent) == ["two"]
        assert not testbed.runtime.exists()
