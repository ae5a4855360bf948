"""The local ISP engine on real drives: its jobs, the drive's flash from a job, the tunnel, restarts, no root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd.cli.main import main
from emucsd.drive import Drive
from emucsd.embedded import DriveProcess
from emucsd.errors import InvalidArgument
from emucsd.isp import local
from emucsd.isp.client import Isp
from emucsd.isp.errors import IspError, IspLost, IspRefused, IspUnavailable, IspUnreachable, LimitExceeded
from emucsd.isp.local import LocalEngine
from emucsd.isp.protocol import Limits
from emucsd.isp.testbed import connect
from emucsd.tunnel.errors import TunnelError
from emucsd.tunnel.inside import Tunnel
from tests.drive_process import until

PYTHON = sys.executable
SIZE = "64MiB"
SECONDS = 60.0
NOBODY = 65534
READ = """
import sys
from emucsd.isp.disk import Disk
with Disk.open() as disk:
    print(disk.size, disk.block_bytes, flush=True)
    sys.stdout.buffer.write(disk.read(int(sys.argv[1]), int(sys.argv[2])))
"""
WRITE = """
from emucsd.isp.disk import Disk
with Disk.open() as disk:
    disk.write(1 << 20, open("data", "rb").read())
    disk.flush()
    disk.trim(0, 1 << 16)
    for offset, data in ((100, bytes(512)), (disk.size, bytes(512)), (0, bytes(100))):
        try:
            disk.write(offset, data)
        except Exception as problem:
            print(type(problem).__name__)
"""


def namespaces() -> None:
    """Skip where this machine allows none."""
    try:
        local.probe()
    except IspUnavailable as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    """A drive with its engine, as a user starts them."""
    namespaces()
    try:
        made = Drive.start("null", size=SIZE, isp="local", queues=2)
    except IspUnavailable as problem:
        if isinstance(problem.__cause__, TunnelError):
            pytest.skip(str(problem))
        raise
    with made:
        yield made


@pytest.fixture
def isp(drive: Drive) -> Isp:
    return drive.isp


def test_files_over_the_tunnel(isp: Isp) -> None:
    """A job's files go through the drive and come back equal."""
    data = os.urandom(5_000_001)
    job = isp.run(["sh", "-c", "cp in out; echo $EMUCSD_TUNNEL_ADDRESS $EMUCSD_HOST_ADDRESS"], inputs={"in": data},
                  outputs=["out"])  # fmt: skip
    assert list(job) == ["10.77.0.2 10.77.0.1"]
    assert job.outputs["out"] == data


def test_a_machine_of_its_own(isp: Isp) -> None:
    """Jobs see their own network and processes, not this machine's."""
    lines = list(isp.run(["sh", "-c", "ls /proc | grep -c '^[0-9]'; cat /proc/net/dev | grep -c :; id -u; echo $$"]))
    processes, interfaces, user, pid = map(int, lines)
    assert processes < 12
    assert interfaces == 2
    assert user == 0
    assert pid < 10_000


def test_flash_is_read_directly(drive: Drive, isp: Isp) -> None:
    """What the host wrote, a job reads by port 1, any alignment; port 0 sees nothing of it."""
    space = drive.namespace(1)
    data = os.urandom(3 << 20)
    space.write(0, data)
    before = drive.control.stats()["ports"]
    job = isp.run([PYTHON, "-c", READ, "12345", "2000000"])
    said = b"".join(iter(job.read, b""))
    head, _, rest = said.partition(b"\n")
    assert head == f"{space.size} {space.lba_bytes}".encode()
    assert rest == data[12345 : 12345 + 2_000_000]
    after = drive.control.stats()["ports"]
    assert after[1]["reads"] > before[1]["reads"]
    assert after[0]["reads"] == before[0]["reads"]


def test_flash_is_written(drive: Drive, isp: Isp) -> None:
    """What a job wrote and flushed, the host reads; what can't be written is refused with a reason."""
    space = drive.namespace(1)
    space.write(0, bytes([7]) * (1 << 16))
    data = os.urandom(1 << 20)
    assert list(isp.run([PYTHON, "-c", WRITE], inputs={"data": data})) == ["IspError"] * 3
    assert bytes(space.read((1 << 20) // space.lba_bytes, (1 << 20) // space.lba_bytes)) == data
    assert not space.read(0, (1 << 16) // space.lba_bytes).any()


def test_limits(isp: Isp) -> None:
    """Time and memory are held in the engine's namespaces as well."""
    with pytest.raises(LimitExceeded, match="its limit"):
        isp.run(["sleep", "60"], limits=Limits(seconds=0.2)).wait()
    grow = "x = []\nwhile True: x.append(bytearray(b'1' * (1 << 22)))"
    with pytest.raises(LimitExceeded, match="its limit is 83886080"):
        isp.run([PYTHON, "-c", grow], limits=Limits(memory_bytes=80 << 20)).wait()


def test_report_is_the_profiles(drive: Drive, isp: Isp) -> None:
    """The engine has the cores and memory that the profile says, and tells of its tunnel."""
    report = isp.report()
    wanted = drive.control.status()["drive"]["isp"]
    assert (report["cores"], report["cpu_share"]) == (wanted["cores"], wanted["cpu_share"])
    assert report["memory"]["total_bytes"] <= wanted["memory_bytes"]
    assert report["drive"]["tunnel"]["address"] == "10.77.0.2"


def test_noted_for_the_command_line(drive: Drive) -> None:
    """Whoever owns the drive finds its engine by the drive's folder; the token is nobody else's to read."""
    assert connect(drive.folder).report()["drive"]["attached"]
    assert (drive.folder / "isp.json").stat().st_mode & 0o077 == 0
    note = connect(drive.folder)
    stranger = Isp(note.address, proxy=note.proxy, token="guess")
    with pytest.raises(IspRefused, match="token"):
        stranger.report()


def test_command_line(drive: Drive, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`emucsd isp` by the drive's folder: state, a job with files and exit code, one left running, cancel."""
    folder = str(drive.folder)
    assert main(["isp", "status", folder]) == 0
    assert "4 cores" in capfd.readouterr().out
    (tmp_path / "in").write_text("text")
    words = ["isp", "run", "--input", f"{tmp_path / 'in'}:a", "--output", f"b:{tmp_path / 'out'}", "--seconds", "1min"]
    assert main([*words, folder, "--", "sh", "-c", "tr a-z A-Z <a | tee b"]) == 0
    said = capfd.readouterr()
    assert said.out == "TEXT"
    assert "ended with status 0" in said.err
    assert (tmp_path / "out").read_text() == "TEXT"
    assert main(["isp", "run", "--json", folder, "sh", "-c", "echo to standard error; exit 3"]) == 1
    said = capfd.readouterr()
    assert json.loads(said.out)["result"]["status"] == 3
    assert said.err == "to standard error\n"
    assert main(["isp", "run", "--detach", "--json", folder, "sleep", "60"]) == 0
    job = json.loads(capfd.readouterr().out)["job"]
    assert main(["isp", "cancel", folder, job]) == 0
    assert main(["isp", "attach", folder, job]) == 1
    assert "cancelled" in capfd.readouterr().err
    assert main(["isp", "run", folder, "--seconds", "5", "true"]) == 1
    assert "come before NAME" in capfd.readouterr().err


def test_client_resets_the_controller(drive: Drive, isp: Isp) -> None:
    """A controller reset of port 0 takes the tunnel's queue with it; the tunnel comes back, jobs go on."""
    job = isp.run(["sh", "-c", "echo one; sleep 0.3; echo two"], on_disconnect="detach")
    lines = iter(job)
    assert next(lines) == "one"
    drive.reset()
    assert list(lines) == ["two"]
    assert isp.wait_ready(SECONDS)["drive"]["tunnel"]["up"]


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_restarts_of_engine_and_tunnel() -> None:
    """kill -9 of the engine loses its jobs, a tunnel that the host closes does not; both come back."""
    namespaces()
    with Drive.start("null", size=SIZE) as drive:
        with pytest.raises(InvalidArgument, match="isp='local'"):
            _ = drive.isp
        with pytest.raises(IspError, match="start the drive with one"):
            connect(drive.folder)
        with LocalEngine(drive.folder) as engine, tunnel_of(drive) as tunnel:
            isp = engine.client(tunnel.isp_address(0), tunnel.proxy)
            isp.wait_ready(SECONDS)
            job = isp.run(["sh", "-c", "echo here; sleep 60"])
            assert next(iter(job)) == "here"
            engine.kill()
            job.close()
            engine.restart()
            report = isp.wait_ready(SECONDS)
            assert report["jobs"] == {"receiving": 0, "running": 0, "ended": 0}
            job = isp.run(["sh", "-c", "echo one; while [ ! -e go ]; do sleep 0.05; done; echo two"], inputs={"x": b""},
                          on_disconnect="detach")  # fmt: skip
            assert next(iter(job)) == "one"
            job.close()
            tunnel.close()
            with pytest.raises(IspUnreachable):
                isp.report()
            with tunnel_of(drive) as again:
                isp = engine.client(again.isp_address(0), again.proxy)
                isp.wait_ready(SECONDS)
                (engine.folder / job.id / "go").touch()
                assert list(isp.attach(job.id, log_offset=job.log_offset)) == ["two"]


def tunnel_of(drive: Drive) -> Tunnel:
    """The host's end, or skip where no network is to be had."""
    try:
        return Tunnel([drive], private=True)
    except TunnelError as problem:
        pytest.skip(str(problem))


def test_no_tunnel_and_a_drive_that_comes_back(tmp_path: Path) -> None:
    """Without a tunnel the engine has a socket; it outlives its drive, attaches to the next one, and is missed."""
    namespaces()
    process = DriveProcess(profile="null", size=SIZE, store=tmp_path / "store", settings={"isp.cores": 2})
    runtime = process.runtime
    with LocalEngine(runtime, tunnel=False) as engine:
        isp = engine.client()
        until(lambda: isp.report()["drive"]["attached"], SECONDS)
        assert isp.report()["cores"] == 2
        process.kill()
        until(lambda: not isp.report()["drive"]["attached"], SECONDS)
        assert list(isp.run(["echo", "still here"])) == ["still here"]
        again = subprocess.Popen(process.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            until(lambda: isp.report()["drive"]["attached"], SECONDS)
            assert isp.run([PYTHON, "-c", READ, "0", "10"]).wait().ok
            job = isp.run(["sh", "-c", "echo on; sleep 60"])
            assert next(iter(job)) == "on"
            engine.kill()
            with pytest.raises(IspLost):
                job.wait()
        finally:
            again.terminate()
            again.wait(SECONDS)
    process.stop()


def test_engine_ends_with_its_owner(tmp_path: Path) -> None:
    """A program that dies without a word takes drive, engine and jobs with it."""
    namespaces()
    code = (
        "import os, sys\nfrom emucsd.embedded import DriveProcess\nfrom emucsd.isp.local import LocalEngine\n"
        "p = DriveProcess(profile='null', size='64MiB')\ne = LocalEngine(p.runtime, tunnel=False)\n"
        "j = e.client().run(['sleep', '60'])\nprint(e.pid, flush=True)\nsys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as owner:
        assert owner.stdout
        engine = int(owner.stdout.readline())
        owner.kill()
    until(lambda: not Path(f"/proc/{engine}").exists(), SECONDS)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_virtual_clock_is_refused() -> None:
    """Jobs run in real time: on a virtual clock there is no such engine."""
    with pytest.raises(InvalidArgument, match="real clock"):
        Drive.start("null", size=SIZE, clock="virtual", isp="local")


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "max_user_namespaces=10000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict_unprivileged_userns=0"),
        ("none", "", "seccomp=unconfined"),
    ],
)
def test_advice(tmp_path: Path, setting: str, value: str, advice: str) -> None:
    """Where namespaces are not allowed, the text says which setting keeps them away."""
    path = tmp_path / setting
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value)
    assert advice in local._advice(tmp_path)


def test_refused_by_the_system() -> None:
    """A system without user namespaces for this user: the refusal is unshare's own, with the advice."""
    if os.geteuid() != 0:
        pytest.skip("needs root to take the right away")
    code = "from emucsd.isp import local\ntry: local.probe()\nexcept Exception as e: print(type(e).__name__, e)"
    inside = f"echo 0 >/proc/sys/user/max_user_namespaces; exec '{PYTHON}' -c '{code}'"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(["unshare", "-Ur", "sh", "-c", inside], capture_output=True, text=True, env=environment)
    assert "IspUnavailable" in done.stdout, done.stderr
    assert "max_user_namespaces=10000" in done.stdout


# -- without root ------------------------------------------------------------------------------------------------------


def test_without_root(tmp_path: Path) -> None:
    """A user without any rights has a drive with its engine, its tunnel and its jobs."""
    if os.geteuid() != 0:
        pytest.skip("every other test here runs without root already")
    namespaces()
    home = Path(tempfile.mkdtemp(prefix="emucsd-user-"))
    try:
        cache = os.environ.get("NUMBA_CACHE_DIR")
        if cache:
            shutil.copytree(cache, home / "cache")
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(home)], check=True)
        code = (
            "from emucsd.drive import Drive\n"
            f"with Drive.start('null', size='{SIZE}', isp='local') as drive:\n"
            "    print(*drive.isp.run(['sh', '-c', 'cat in; echo $EMUCSD_TUNNEL_ADDRESS'], inputs={'in': 'data '}))\n"
        )
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "NUMBA_CACHE_DIR": str(home / "cache"),
                       "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}  # fmt: skip
        done = subprocess.run([*as_nobody(home), PYTHON, "-c", code], env=environment, cwd="/", capture_output=True,
                              text=True, timeout=300)  # fmt: skip
        assert done.stdout == "data 10.77.0.2\n", done.stderr
    finally:
        shutil.rmtree(home, ignore_errors=True)


def as_nobody(home: Path) -> list[str]:
    """A command that drops root. Where this Python lies in root's own home, that is opened in a mount namespace."""
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
    python = Path(PYTHON).resolve()
    closed = next((p for p in reversed(python.parents) if p != Path("/") and not p.stat().st_mode & 0o001), None)
    if closed is None:
        return [*drop, "--"]
    inner = closed / python.relative_to(closed).parts[0]
    keep = home / "python"
    keep.mkdir()
    script = (
        f"mount --bind '{inner}' '{keep}' && mount -t tmpfs -o mode=755 none '{closed}' && mkdir '{inner}' && "
        f"mount --bind '{keep}' '{inner}' && exec \"$@\""
    )
    return ["unshare", "--mount", "sh", "-ec", script, "sh", *drop, "--"]
