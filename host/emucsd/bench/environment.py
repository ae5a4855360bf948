"""What a figure depends on besides this software: the machine, its load, and where the stores lay."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

_MEMORY_DISK = Path("/dev/shm")
_SPARE = 2 << 30  # memory that a benchmark leaves to everyone else


def environment(folder: Path | None = None) -> dict[str, Any]:
    """The machine as plain values for JSON.

    :param folder: where stores lie, to name its file system
    """
    info = _memory()
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(info["MemTotal"] / 1e9, 1),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numba": version("numba"),
        "numpy": version("numpy"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
    if folder is not None:
        found["store_folder"] = str(folder)
        found["store_filesystem"] = file_system(folder)
    return found


@contextmanager
def scratch_folder(need_bytes: int, *, on_disk: bool = False) -> Iterator[Path]:
    """A temporary folder for stores: in memory (/dev/shm) where ``need_bytes`` fit, else where temporary files go.

    :param on_disk: the latter in any case. What is read at random is read faster there: a disk's page cache comes in
        large folios, which cost few TLB misses, and tmpfs in single pages
    """
    parent = _MEMORY_DISK if _fits(need_bytes) and not on_disk else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="emucsd-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def own_cores(pid: int) -> Iterator[bool]:
    """This thread on one core and a drive's on another, as SPDK's core masks do it. :yields: whether there were two"""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield False
        return
    before = set(cores)
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    os.sched_setaffinity(0, {cores[0]})
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # a thread may end between the listing and here
            os.sched_setaffinity(thread, {cores[1]})
    try:
        yield True
    finally:
        for thread in (0, *threads):
            with contextlib.suppress(ProcessLookupError):  # it may have ended, or been killed
                os.sched_setaffinity(thread, before)


def file_system(folder: Path) -> str:
    """Type of the file system that a folder lies on, from the mount with the longest matching path."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        inside = folder == Path(mount) or Path(mount) in folder.resolve().parents
        if inside and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def resident(pid: int) -> dict[str, int]:
    """Bytes of a process's resident memory: all of it, and the parts that are anonymous, files, and shared memory."""
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssFile", "RssShmem"):
            fields[name] = int(rest.split()[0]) * 1024
    return fields


def _fits(need_bytes: int) -> bool:
    if not os.access(_MEMORY_DISK, os.W_OK):
        return False
    room = shutil.disk_usage(_MEMORY_DISK).free
    return min(room, _memory()["MemAvailable"] - _SPARE) > need_bytes


def _memory() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
