"""A drive's files, really mounted: bytes, file systems on them, tables, counters, and what happens when things end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from emucsd import Drive, Table
from emucsd.cli.command import FAILED, OK
from emucsd.cli.main import main
from emucsd.embedded import DriveProcess
from emucsd.errors import DriveBusy
from emucsd.extents import FileElsewhere
from emucsd.mount.errors import MountBusy, MountTaken
from emucsd.mount.mounts import mount_at, umount
from emucsd.mount.place import open_below
from emucsd.mount.process import Options, launch
from tests.protocol.mount_place import SIZE, Place, exercise, fallocate, needs, opened, pid_of, run, settle

if not os.access("/dev/fuse", os.R_OK | os.W_OK):
    pytest.skip("/dev/fuse can't be opened here", allow_module_level=True)
if os.geteuid() and shutil.which("fusermount") is None:
    pytest.skip("neither root nor fusermount: nothing can be mounted here", allow_module_level=True)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="emucsd-mount-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    ) as f:
        yield Path(f)


@pytest.fixture(scope="module")
def long_lived(folder: Path) -> Iterator[Place]:
    place = Place(folder / "shared")
    yield place
    place.close()


@pytest.fixture
def unmounted(long_lived: Place) -> Iterator[Place]:
    """A drive that runs, not mounted."""
    long_lived.umount()
    yield long_lived
    long_lived.umount()


@pytest.fixture
def place(long_lived: Place) -> Place:
    """A drive that is mounted."""
    if mount_at(long_lived.directory) is None:
        long_lived.mount()
    return long_lived


def test_files(place: Place) -> None:
    """A namespace has its size, and every description parses and says what the drive says."""
    assert sorted(os.listdir(place.directory)) == ["ns1", "smart.json", "stats.json", "status.json", "tables"]
    assert (place.directory / "ns1").stat().st_size == SIZE
    before = place.status()["mount"]["served"]
    with opened(place.directory / "ns1") as fd:
        os.pwrite(fd, bytes(8192), 0)
        os.pread(fd, 4096, 0)
        os.fsync(fd)
    after = place.status()["mount"]["served"]
    assert {name: after[name] - before[name] for name in after} == {"reads": 1, "writes": 1, "flushes": 1, "failed": 0}
    stats = json.loads((place.directory / "stats.json").read_text())
    assert stats["ports"][0]["blocks_written"] >= 16
    smart = json.loads((place.directory / "smart.json").read_text())
    assert smart["host_writes"] >= 1
    assert smart["available_spare"] == 100


@pytest.mark.parametrize("cache", [False, True])
def test_any_bytes(unmounted: Place, cache: bool) -> None:
    """A namespace's file takes reads, writes and holes of any place and length as a plain file does, and keeps them."""
    unmounted.mount(cache=cache)
    with opened(unmounted.directory / "ns1") as fd:
        model = exercise(fd, 4 << 20, 200, seed=int(cache))
    unmounted.umount()
    with Drive.open(unmounted.runtime) as drive:
        space = drive.namespace(1)
        assert space.read(0, len(model) // space.lba_bytes).tobytes() == model, "the direct client reads something else"


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_other_drives(folder: Path, clock: str) -> None:
    """The files are the same on a drive of virtual time, with blocks of 4 KiB, or without mapped doorbells."""
    place = Place(folder / clock, clock=clock, profile="femu", doorbells="trapped" if clock == "real" else "auto")
    try:
        with Drive.open(place.runtime) as drive:
            drive.admin.format(1, 4096)
        place.mount()
        with opened(place.directory / "ns1") as fd:
            exercise(fd, 2 << 20, 40, seed=3)
        assert place.status()["drive"]["clock"] == clock
        assert place.status()["mount"]["namespaces"][0]["lba_bytes"] == 4096
    finally:
        place.close()


def test_the_end(place: Place) -> None:
    """A namespace's file ends where the namespace ends, and keeps its size."""
    with opened(place.directory / "ns1") as fd:
        assert os.pwrite(fd, bytes(1000), SIZE - 512) == 512
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(fd, b"x", SIZE)
        assert os.pread(fd, 4096, SIZE - 10) == bytes(10)
        assert os.pread(fd, 10, SIZE) == b""
        for wrong, size in ((errno.EFBIG, SIZE + 1), (errno.EPERM, 4096)):
            with pytest.raises(OSError, match=os.strerror(wrong)):
                os.ftruncate(fd, size)
        with pytest.raises(OSError, match="File too large"):
            fallocate(fd, 0, SIZE, 4096)
        fallocate(fd, 0, 0, SIZE)
    with opened(place.directory / "ns1", os.O_RDWR | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == SIZE


def test_what_is_not_to_be_written(unmounted: Place) -> None:
    """Descriptions can't be written, names can't be made or removed, and --read-only holds for everything."""
    unmounted.mount(read_only=True)
    for path, mode in (("ns1", "r+b"), ("new", "wb")):
        with pytest.raises(OSError, match="Read-only file system"):
            (unmounted.directory / path).open(mode)
    unmounted.umount()
    unmounted.mount()
    for act in (
        lambda: (unmounted.directory / "new").write_text(""),
        lambda: (unmounted.directory / "ns1").unlink(),
        lambda: (unmounted.directory / "ns1").rename(unmounted.directory / "ns9"),
        lambda: os.chmod(unmounted.directory / "ns1", 0o777),
        lambda: os.truncate(unmounted.directory / "stats.json", 1),
    ):
        with pytest.raises(OSError, match=r"\[Errno"):
            act()
    assert (unmounted.directory / "ns1").stat().st_size == SIZE


def test_tables(folder: Path) -> None:
    """A stored table is a file of its rows, which can be mapped, and written; its shape is told beside it."""
    place = Place(folder / "tables")
    rows = np.random.default_rng(1).standard_normal((3000, 33), np.float32)
    try:
        with Drive.open(place.runtime) as drive:
            Table.create(drive, "items", rows, extent_bytes=1 << 16).close()
        place.mount()
        assert sorted(os.listdir(place.directory / "tables")) == ["items.f32", "items.json"]
        about = json.loads((place.directory / "tables" / "items.json").read_text())
        assert (about["rows"], about["dim"], about["bytes"]) == (3000, 33, rows.nbytes)
        assert len(about["extents"]) == -(-rows.nbytes // (1 << 16))
        path = place.directory / "tables" / "items.f32"
        assert np.array_equal(np.memmap(path, np.float32, "r", shape=rows.shape), rows)
        rows[1234:1240] = 7.5
        with opened(path) as fd:
            os.pwrite(fd, rows[1234:1240].tobytes(), 1234 * 33 * 4)
            os.fsync(fd)
        place.umount()
        with Drive.open(place.runtime) as drive, Table.open(drive, "items") as table:
            assert np.array_equal(table.read_rows(), rows)
            assert np.array_equal(table.lookup([1235, 3, 2999], [0]), rows[[1235, 3, 2999]].cumsum(axis=0)[-1:])
    finally:
        place.close()


@needs("mkfs.ext4", "fsck.ext4", "mount", "losetup")
def test_file_system(unmounted: Place, folder: Path) -> None:
    """ext4 on a namespace: files survive kill -9 of the drive after a sync, and the file system is whole."""
    unmounted.mount()
    image, inside = unmounted.directory / "ns1", folder / "ext4"
    inside.mkdir()
    run("mkfs.ext4", "-q", "-F", image)
    run("mount", "-o", "loop", image, inside)
    files = {f"d{n % 5}/f{n}": random.Random(n).randbytes(n * 997) for n in range(120)}
    try:
        for name, data in files.items():
            (inside / name).parent.mkdir(exist_ok=True)
            (inside / name).write_bytes(data)
        os.sync()
        with pytest.raises(MountBusy, match=r"/dev/loop\d+"):
            umount(unmounted.directory)
        os.kill(pid_of(unmounted.runtime), signal.SIGKILL)
        with pytest.raises(OSError, match="Input/output error"), opened(image) as fd:
            os.pread(fd, 4096, 0)
    finally:
        subprocess.run(["umount", inside], check=False, capture_output=True)
    unmounted.umount()
    unmounted.restart()
    unmounted.mount()
    run("fsck.ext4", "-p", image, codes=(0, 1))  # the journal is played back
    run("fsck.ext4", "-f", "-n", image)
    run("mount", "-o", "loop", image, inside)
    try:
        assert {name: (inside / name).read_bytes() for name in files} == files
        run("fstrim", inside)
        assert {name: (inside / name).read_bytes() for name in files} == files
    finally:
        run("umount", inside)


@needs("mkfs.ext4", "mount")
def test_table_of_a_file(unmounted: Place, folder: Path) -> None:
    """A file of a loop-mounted file system is a table: the drive sums its rows where ext4 put them."""
    unmounted.mount()
    inside = folder / "rows"
    inside.mkdir()
    run("mkfs.ext4", "-q", "-F", "-b", "4096", unmounted.directory / "ns1")
    run("mount", "-o", "loop", unmounted.directory / "ns1", inside)
    rows = np.random.default_rng(2).standard_normal((5000, 64), np.float32)
    try:
        drive, place = open_below(inside)
        with drive, Table.create_file(inside / "rows.f32", rows, drive=drive, place=place) as table:
            ids = np.random.default_rng(3).integers(0, len(rows), 400)
            assert np.array_equal(table.lookup(ids, [0]), rows[ids].cumsum(axis=0)[-1:])
            rows[int(ids[0])] = 9.25
            table.write_rows(int(ids[0]), rows[ids[:1]])
            assert np.array_equal(table.lookup(ids, [0]), rows[ids].cumsum(axis=0)[-1:])
        with pytest.raises(FileElsewhere):
            open_below(folder)
    finally:
        run("umount", inside)


@needs("fio", root=False)
@pytest.mark.parametrize(
    "how", [("--direct=1", "--iodepth=16", "--ioengine=libaio", "--size=16m"), ("--ioengine=mmap", "--size=2m")]
)
def test_fio_verifies(unmounted: Place, how: tuple[str, ...]) -> None:
    """fio reads back what it wrote, directly with many requests out, and through a mapping."""
    unmounted.mount(cache="--ioengine=mmap" in how)
    run(
        *("fio", "--name=v", f"--filename={unmounted.directory / 'ns1'}", "--rw=randrw", "--bsrange=4k-128k"),
        *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", *how),
    )


def test_drive_killed(folder: Path) -> None:
    """A drive that dies under its mount: EIO, a description that says what to do, and what was synced is kept."""
    place = Place(folder / "killed", profile="femu")
    path = place.directory / "ns1"
    try:
        pid = place.mount()["pid"]
        with opened(path) as fd:
            os.pwrite(fd, b"synced" * 1000, 5)
            os.fsync(fd)
        with opened(path, os.O_RDWR | os.O_SYNC) as fd:
            os.pwrite(fd, b"at once " * 512, 1 << 20)
        with opened(path) as fd:
            os.kill(pid_of(place.runtime), signal.SIGKILL)
            for act in (lambda: os.pread(fd, 4096, 0), lambda: os.pwrite(fd, bytes(4096), 0), lambda: os.fsync(fd)):
                with pytest.raises(OSError, match="Input/output error"):
                    act()
        told = place.status()
        assert "closed the connection" in told["error"]
        assert told["next"][0] == f"emucsd umount {place.directory}"
        assert sorted(os.listdir(place.directory))[0] == "ns1"
        place.umount()
        settle(lambda: not Path(f"/proc/{pid}").exists(), "the process is still there")
        place.restart()
        place.mount()
        with opened(path) as fd:
            assert os.pread(fd, 6000, 5) == b"synced" * 1000
            assert os.pread(fd, 4096, 1 << 20) == b"at once " * 512
    finally:
        place.close()


def read_on(fd: int) -> None:
    """:raises OSError: once it can't"""
    while True:
        os.pread(fd, 4096, 0)


def test_signals_end_it(unmounted: Place) -> None:
    """SIGTERM ends a mount though a file of it is open and read from: nothing stays mounted, and the port is free."""
    pid = unmounted.mount()["pid"]
    with opened(unmounted.directory / "ns1") as fd, ThreadPoolExecutor(1) as other:
        reading = other.submit(read_on, fd)
        with pytest.raises(MountBusy, match="a file or folder of it open"):
            umount(unmounted.directory)
        os.kill(pid, signal.SIGTERM)
        settle(lambda: not Path(f"/proc/{pid}").exists(), "the process is still there")
        with pytest.raises(OSError, match=r"\[Errno"):
            reading.result(20.0)
    assert mount_at(unmounted.directory) is None
    Drive.open(unmounted.runtime).close()


def test_lazy(unmounted: Place) -> None:
    """--lazy takes a mount away that is in use."""
    unmounted.mount()
    with opened(unmounted.directory / "ns1"):
        umount(unmounted.directory, lazy=True)
    assert os.listdir(unmounted.directory) == []
    Drive.open(unmounted.runtime).close()


def test_two_clients(place: Place, folder: Path) -> None:
    """While a port is mounted other clients of it are refused and told by whom; the other port goes on, same data."""
    with pytest.raises(DriveBusy, match=f"emucsd umount {place.directory} ends it"):
        Drive.open(place.runtime)
    other = folder / "other"
    other.mkdir()
    launch(Options("m0", str(place.runtime), str(other), port=1))
    try:
        with opened(place.directory / "ns1") as here, opened(other / "ns1") as there:
            for data in (b"a" * 4096, b"b" * 4096):
                os.pwrite(here, data, 4096)
                assert os.pread(there, 4096, 4096) == data
    finally:
        umount(other)


def test_command_line(unmounted: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """`mount` says what to do next, refuses what it must, and `umount` frees the port."""
    name, directory = str(unmounted.runtime), str(unmounted.directory)
    assert main(["mount", name, directory, "--dry-run"]) == OK
    assert mount_at(unmounted.directory) is None
    assert main(["mount", name, directory]) == OK
    assert f"next: mkfs.ext4 {directory}/ns1" in capsys.readouterr().out
    assert main(["mount", name, directory]) == FAILED
    assert f"emucsd umount {directory}" in capsys.readouterr().err
    assert main(["umount", directory, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["port"] == 0
    assert main(["umount", directory]) == FAILED
    assert "no drive is mounted there" in capsys.readouterr().err
    assert main(["mount", "no-such-drive", directory]) == FAILED
    assert "no drive 'no-such-drive'" in capsys.readouterr().err


def test_foreground(unmounted: Place) -> None:
    """In the foreground it serves until it is interrupted, says so in JSON, and leaves nothing mounted."""
    argv = ("-m", "emucsd", "mount", str(unmounted.runtime), str(unmounted.directory), "--foreground", "--json")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["pid"] == process.pid
        assert (unmounted.directory / "ns1").stat().st_size == SIZE
        process.send_signal(signal.SIGINT)
        assert process.wait(30.0) == OK
    assert mount_at(unmounted.directory) is None


def test_folders_that_will_not_do(unmounted: Place, folder: Path) -> None:
    """A folder that is missing, none, or not empty is refused with the reason, before the drive is touched."""
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("")
    for path, why in (
        (folder / "nowhere", "mkdir -p"),
        (folder / "full" / "file", "no folder"),
        (folder / "full", "not empty"),
    ):
        with pytest.raises(MountTaken, match=why):
            launch(Options("m0", str(unmounted.runtime), str(path)))


@needs("setpriv", "fusermount", root=True)
def test_without_root(folder: Path) -> None:
    """A user without any rights mounts a drive of his own, uses its files, and takes the mount away."""
    home = Path(tempfile.mkdtemp(prefix="emucsd-user-"))
    user = 65534
    cache = home / "compiled"  # what was compiled for us, so that it need not be again
    command = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    path = os.pathsep.join(filter(None, sys.path))
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(cache)}
    process = DriveProcess(profile="null", size=SIZE, store=folder / "user")
    try:
        (home / "mnt").mkdir()
        for part in Path(os.environ["NUMBA_CACHE_DIR"]).glob("*"):
            if part.name.startswith(("emucsd_", "mount_")) and not part.name.startswith("emucsd_firmware_"):
                shutil.copytree(part, cache / part.name)
        subprocess.run(["chown", "-R", f"{user}:{user}", home, process.runtime], check=True)

        def as_user(*argv: object) -> subprocess.CompletedProcess[str]:
            words = [*command, *map(str, argv)]
            return subprocess.run(words, env=environment, capture_output=True, text=True, cwd="/", check=False)

        version = "python{}.{}".format(*sys.version_info)
        can = "import subprocess, sys, numba; subprocess.run([sys.executable, '-c', ''], check=True)"
        python = next(
            (p for p in (sys.executable, f"/usr/bin/{version}") if not as_user(p, "-c", can).returncode), None
        )
        if python is None:
            pytest.skip("this Python may not be run by another user")
        done = as_user(python, "-m", "emucsd", "mount", process.runtime, home / "mnt")
        assert done.returncode == OK, done.stderr
        assert as_user("mkfs.ext4", "-q", "-F", home / "mnt" / "ns1").returncode == 0
        assert as_user("fsck.ext4", "-f", "-n", home / "mnt" / "ns1").returncode == 0
        done = as_user(python, "-m", "emucsd", "umount", home / "mnt")
        assert done.returncode == OK, done.stderr
        assert mount_at(home / "mnt") is None
    finally:
        with contextlib.suppress(Exception):
            umount(home / "mnt", lazy=True)
        process.stop()
        shutil.rmtree(home, ignore_errors=True)
