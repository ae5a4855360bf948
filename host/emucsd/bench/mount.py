"""A mounted namespace under fio: the file itself, through the page cache, and (as root) a loop device on it.

A drive of the bench's own, without delays, filled before: what is measured is the way to the drive.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emucsd.bench.environment import environment, scratch_folder
from emucsd.embedded import DriveProcess
from emucsd.errors import EmucsdError
from emucsd.mount.mounts import umount
from emucsd.mount.process import Options, launch

_MB = 1e6
_BYTES = "bw_bytes"
# key -> fio's mode, block, depth, figure, divisor
JOBS: dict[str, tuple[str, str, int, str, float]] = {
    "mount_read_qd1_iops": ("randread", "4k", 1, "iops", 1),
    "mount_read_qd32_iops": ("randread", "4k", 32, "iops", 1),
    "mount_write_qd1_iops": ("randwrite", "4k", 1, "iops", 1),
    "mount_write_qd32_iops": ("randwrite", "4k", 32, "iops", 1),
    "mount_read_mb": ("read", "1m", 4, _BYTES, _MB),
    "mount_write_mb": ("write", "1m", 4, _BYTES, _MB),
}
CACHED = {"mount_cached_read_mb": ("read", "128k", 1, _BYTES, _MB)}
LOOP: dict[str, tuple[str, str, int, str, float]] = {
    "mount_loop_read_qd32_iops": ("randread", "4k", 32, "iops", 1),
    "mount_loop_read_mb": ("read", "1m", 4, _BYTES, _MB),
}


class FioMissing(EmucsdError):
    """fio is not installed, or did not run."""


def run_mount_bench(*, seconds: float = 2.0, size: int = 512 << 20, profile: str = "null") -> dict[str, Any]:
    """Measure. :returns: the figures of JOBS, CACHED and LOOP (None: not root), and ``environment``

    :param seconds: that each job takes
    :raises FioMissing: there is no fio
    :raises MountUnavailable: nothing can be mounted here
    """
    if shutil.which("fio") is None:
        raise FioMissing("fio is not installed (Debian: apt install fio)")
    found: dict[str, Any] = {}
    with scratch_folder(3 * size) as folder, contextlib.ExitStack() as stack:
        drive = stack.enter_context(DriveProcess(profile=profile, size=2 * size, store=folder / "store"))
        with _mounted(drive.runtime) as file:
            _fio(file, "write", "1m", 4, "--size", str(size))
            found |= _jobs(file, JOBS, seconds, size)
            found |= _loop(file, seconds, size)
        with _mounted(drive.runtime, cache=True) as file:
            found |= _jobs(file, CACHED, seconds, size, direct=False)
        found["environment"] = environment(folder)
    return found


@contextmanager
def _mounted(runtime: Path, *, cache: bool = False) -> Iterator[Path]:
    """The file of namespace 1."""
    directory = Path(tempfile.mkdtemp(prefix="emucsd-mount-"))
    try:
        launch(Options("bench", str(runtime), str(directory), cache=cache))
        try:
            yield directory / "ns1"
        finally:
            umount(directory, lazy=True)
    finally:
        directory.rmdir()


def _jobs(
    file: Path, jobs: dict[str, tuple[str, str, int, str, float]], seconds: float, size: int, *, direct: bool = True
) -> dict[str, float]:
    timed = ("--time_based", f"--runtime={seconds:g}", f"--size={size}")
    return {
        key: _fio(file, mode, block, depth, *timed, direct=direct)[figure] / divisor
        for key, (mode, block, depth, figure, divisor) in jobs.items()
    }


def _loop(file: Path, seconds: float, size: int) -> dict[str, float | None]:
    """Through a loop device with direct I/O; figures are None without root."""
    if os.geteuid() or shutil.which("losetup") is None:
        return dict.fromkeys(LOOP)
    words = ["losetup", "--find", "--show", "--direct-io=on", str(file)]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode:
        return dict.fromkeys(LOOP)
    device = made.stdout.strip()
    try:
        return dict(_jobs(Path(device), LOOP, seconds, size))
    finally:
        subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def _fio(file: Path, mode: str, block: str, depth: int, *more: str, direct: bool = True) -> dict[str, Any]:
    """One job's figures for its direction. :raises FioMissing: it failed, with its own words"""
    engine = "libaio" if direct else "psync"
    done = subprocess.run(
        ["fio", "--name=bench", f"--filename={file}", f"--rw={mode}", f"--bs={block}", f"--iodepth={depth}",
         f"--direct={int(direct)}", f"--ioengine={engine}", "--output-format=json", *more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FioMissing(f"fio failed on {file}: {(done.stderr or done.stdout).strip()[-500:]}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    direction: dict[str, Any] = job["read" if "read" in mode else "write"]
    return direction
