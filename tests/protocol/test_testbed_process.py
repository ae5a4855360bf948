"""The supervisor without any machine: a drive with a local engine, started, asked, and ended in every way.

Needs namespaces and /dev/net/tun for the engine; skipped, with the reason, where they can't be had.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd.cli.main import main
from emucsd.errors import ControlError, MachineNotFound, StartFailed
from emucsd.isp.errors import IspUnavailable
from emucsd.isp.local import probe
from emucsd.isp.testbed import engine_of
from emucsd.testbed import Testbed, names
from tests.drive_process import until

DESCRIPTION = """
[testbed]
name = "bed"
[host]
engine = "none"
[[drive]]
name = "disk"
profile = "null"
size = "64MiB"
isp.engine = "{engine}"
"""
SECONDS = 60.0


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where everything of this test lies; its path is short, for sockets."""
    made = Path(tempfile.mkdtemp(prefix="emucsd-s-"))
    monkeypatch.setenv("EMUCSD_RUNTIME", str(made / "run"))
    monkeypatch.setenv("EMUCSD_STORE", str(made / "store"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def described(folder: Path, engine: str = "none") -> Path:
    """The description's file."""
    path = folder / "bed.toml"
    path.write_text(DESCRIPTION.format(engine=engine))
    return path


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def pids(testbed: Testbed) -> list[int]:
    """Everything that it runs."""
    about = testbed.status()
    return [about["pid"], *(one["pid"] for one in [*about["drives"], *about["services"].values()])]


def test_a_local_engine_answers(folder: Path) -> None:
    """Its agent is reached through the tunnel's proxy and runs a job; stopping the testbed ends all of it."""
    try:
        probe()
    except IspUnavailable as problem:
        pytest.skip(str(problem))
    if not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("/dev/net/tun is not writable: no tunnel here")
    with Testbed.start(described(folder, "local")) as testbed:
        about = testbed.status()
        assert about["state"] == "up"
        assert about["seconds"]["isp0"] > 0
        with engine_of(about) as isp:
            assert isp.report()["cores"] >= 1
        everything = pids(testbed)
        assert len(everything) == 4  # supervisor, drive, tunnel, engine
        engine = about["services"]["isp0"]["pid"]
        os.kill(engine, signal.SIGKILL)  # it is started again
        until(lambda: testbed.status()["services"]["isp0"]["pid"] not in (engine, None), SECONDS)
    until(lambda: all(map(gone, everything)), SECONDS)
    assert names() == []


def test_what_a_testbed_without_machines_refuses(folder: Path) -> None:
    """A machine or a drive that is not there is an error that names those that are."""
    with Testbed.start(described(folder)) as testbed:
        with pytest.raises(MachineNotFound, match="there are none"):
            testbed.machine("host")
        with pytest.raises(ControlError, match="no machine 'host'"):
            testbed.control.call("machine", name="host", action="reboot")
        with pytest.raises(ControlError, match="Invalid enum value 'explode'"):
            testbed.control.call("machine", name="host", action="explode")
        with pytest.raises(ControlError, match="no drive 'other'; there are disk"):
            testbed.control.call("drive", name="other", action="kill")
        drive = testbed.drive(0)
        before = drive.control.status()["pid"]
        drive.kill()
        assert testbed.status()["drives"][0]["running"] is False
        drive.start()
        assert drive.control.status()["pid"] != before
    assert list((folder / "run").iterdir()) == []


def test_a_supervisor_that_is_killed_takes_its_drives_with_it(folder: Path) -> None:
    """kill -9: drives end by their lifeline; the next start of any testbed sweeps the folders."""
    testbed = Testbed.start(described(folder))
    everything = pids(testbed)
    os.kill(everything[0], signal.SIGKILL)
    until(lambda: all(map(gone, everything)), SECONDS)
    assert names() == ["bed"]
    testbed.close()
    with Testbed.start(described(folder)) as again:
        assert again.status()["state"] == "up"
    assert list((folder / "run").iterdir()) == []


def test_its_owners_end_is_its_own(folder: Path) -> None:
    """A program that started a testbed and is killed leaves nothing that runs."""
    code = (
        "from emucsd.testbed import Testbed\n"
        f"bed = Testbed.start({str(described(folder))!r})\n"
        "print(bed.status()['pid'], bed.status()['drives'][0]['pid'], flush=True)\n"
        "input()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        started = [int(word) for word in owner.stdout.readline().split()]
        owner.kill()
    assert len(started) == 2
    until(lambda: all(map(gone, started)), SECONDS)
    assert list((folder / "run").iterdir()) == []


def test_a_start_that_fails_leaves_nothing_running(folder: Path) -> None:
    """The error says which drive and why; its log stays for reading, and is in nobody's way."""
    path = described(folder)
    good = path.read_text()
    path.write_text(good.replace('"null"', '"no-such-profile"'))
    with pytest.raises(StartFailed, match=r"(?s)drive disk: .*no-such-profile"):
        Testbed.start(path)
    assert names() == []
    assert (folder / "run" / "bed" / "log").exists()
    path.write_text(good.replace("[host]", "[hots]"))
    with pytest.raises(StartFailed, match="unknown key hots"):
        Testbed.start(path)
    path.write_text(good)
    with Testbed.start(path) as testbed:
        assert testbed.status()["state"] == "up"


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """up, status and down by a file; a drive of a testbed is not stopped by itself, and a second up is refused."""
    path = str(described(folder))
    assert main(["up", "--file", path, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["description"]["drives"][0]["name"] == "disk"
    assert not (folder / "run").exists()
    assert main(["up", "--file", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "up"
    try:
        assert main(["up", "--file", path]) == 1
        assert "runs already" in capsys.readouterr().err
        assert main(["status", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["testbeds"]["bed"]["running"] is True
        assert found["drives"]["disk"]["running"] is True
        assert main(["down", "disk"]) == 1
        assert "belongs to testbed 'bed'" in capsys.readouterr().err
        assert main(["ssh", "--testbed", "bed", "host", "true"]) == 1
        assert "no machine 'host'" in capsys.readouterr().err
    finally:
        assert main(["down"]) == 0
    assert main(["down"]) == 1
    assert main(["up", "--file", path, "--drive-only"]) == 2
    assert main(["up", "x", "--durability", "machine"]) == 2


def test_an_interrupted_start_leaves_nothing(folder: Path) -> None:
    """Ctrl-C while `emucsd up` waits: the testbed is asked to end, and its drives with it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-m", "emucsd", "up", "--file", str(described(folder))]
    record = folder / "run" / "bed" / "testbed.json"
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(record.exists, SECONDS)
        supervisor = json.loads(record.read_text())["pid"]
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) in (0, 130)  # 0: it was up a moment before
    if process.returncode == 130:
        until(lambda: gone(supervisor), SECONDS)
        assert names() == []
    else:
        assert main(["down"]) == 0
