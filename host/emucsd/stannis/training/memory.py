"""This process's memory: what it has, what it had at most, and a ceiling that raises instead of killing."""

from __future__ import annotations

import ctypes
import gc
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5), clear_refs: VmHWM starts anew
_SAMPLE_SECONDS = 0.002


def status() -> dict[str, int]:
    """VmRSS, VmHWM, VmData and their like, in bytes."""
    fields = {}
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value.removesuffix(" kB")) * 1024
    return fields


def resident() -> int:
    """Bytes of this process that lie in memory now."""
    return status()["VmRSS"]


def available() -> int:
    """The most that this process could have, by what the system and its control group leave, in bytes."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    most = int(fields["MemAvailable"].split()[0]) * 1024 + resident()
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].splitlines()[0]
        group = Path("/sys/fs/cgroup") / own.lstrip("/")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            most = min(most, int(limit) - used + resident())
    except (OSError, IndexError):
        pass  # no control groups of version 2, or none of our own
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return most if soft == resource.RLIM_INFINITY else min(most, soft)


def release(*, cycles: bool = False) -> None:
    """Give back to the system what was freed, so that the next peak starts from what is really in use.

    :param cycles: look for cycles first, which takes a while; after an exception, whose traceback holds tensors
    """
    if cycles:
        gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


class Peak:
    """The most that was resident while the ``with`` lasted.

    :ivar bytes: afterwards
    """

    def __enter__(self) -> Peak:
        self.bytes = 0
        self._done = threading.Event()
        self._sampler: threading.Thread | None = None
        try:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        except OSError:  # not this process's to write: look often instead
            self._sampler = threading.Thread(target=self._sample, name="peak", daemon=True)
            self._sampler.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._sampler is None:
            self.bytes = status()["VmHWM"]
        else:
            self._sampler.join()
            self.bytes = max(self.bytes, resident())


@contextmanager
def ceiling(data_bytes: int) -> Iterator[None]:
    """Have allocations fail, rather than the process end, beyond so many bytes of private memory (VmData)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data_bytes if hard == resource.RLIM_INFINITY else min(data_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
