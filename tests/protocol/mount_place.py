"""A drive to mount, and what tests of its files need: programs, descriptors, a model of what a file holds."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emucsd.embedded import DriveProcess
from emucsd.mount.mounts import mount_at, umount, users
from emucsd.mount.process import Options, launch

SIZE = 64 << 20
PUNCH, ZERO = 0x03, 0x10


def needs(*programs: str, root: bool = True) -> pytest.MarkDecorator:
    missing = [name for name in programs if shutil.which(name) is None]
    if root and (os.geteuid() or not os.access("/dev/loop-control", os.R_OK | os.W_OK)):
        missing.append("root with loop devices")
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


class Place:
    """A drive's process over one store, and a folder to mount it on."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.store, self.directory = folder / "store", folder / "mnt"
        self.directory.mkdir(parents=True)
        self.options = {"profile": "null", "size": SIZE, "store": self.store, **options}
        self.process = DriveProcess(**self.options)

    @property
    def runtime(self) -> Path:
        return self.process.runtime

    def mount(self, **options: Any) -> dict[str, Any]:
        return launch(Options("m0", str(self.runtime), str(self.directory), **options))

    def umount(self) -> None:
        if mount_at(self.directory) is not None:
            umount(self.directory, lazy=bool(users(self.directory)))

    def restart(self, *, kill: bool = False) -> None:
        if kill:
            os.kill(pid_of(self.runtime), signal.SIGKILL)
        self.process.stop()
        self.process = DriveProcess(**self.options)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "status.json").read_text())
        return found

    def close(self) -> None:
        self.umount()
        self.process.stop()


def pid_of(runtime: Path) -> int:
    return int(json.loads((runtime / "drive.json").read_text())["pid"])


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # what is open may be gone
            os.close(fd)


def exercise(fd: int, size: int, steps: int, seed: int) -> bytearray:
    """Reads, writes and holes of any place and length, compared with what a plain file would hold."""
    rng, model = random.Random(seed), bytearray(os.pread(fd, size, 0))
    for _ in range(steps):
        length = rng.choice([1, 100, 512, 4096, 5000, 40_000, 131_072, 1 << 20])
        at = rng.randrange(size - length)
        at, length = (at & ~4095, max(length & ~4095, 4096)) if rng.random() < 0.4 else (at, length)
        kind = rng.random()
        if kind < 0.45:
            assert os.pread(fd, length, at) == model[at : at + length]
        elif kind < 0.85:
            data = rng.randbytes(length)
            assert os.pwrite(fd, data, at) == length
            model[at : at + length] = data
        elif kind < 0.97:
            fallocate(fd, rng.choice([PUNCH, ZERO]), at, length)
            model[at : at + length] = bytes(length)
        else:
            os.fsync(fd)
    return model


def run(*argv: object, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
    assert done.returncode in codes, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def settle(condition: Any, what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
