"""Control groups (version 2), where this process may make its own: the kernel then holds jobs to memory and processor.

Wanted is a group beside ours, or below the root group, whose parent hands out the cpu and memory controllers: so it is
for root, in the drive's machine, and in a scope that systemd delegates. Elsewhere ``find`` says why not, and the
governor does the same from outside.
"""

from __future__ import annotations

import contextlib
import os
import time

PERIOD_US = 50_000
_CONTROLLERS = ("cpu", "memory")


class Unavailable(Exception):
    """No group can be made here; the text says why."""


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def _mount() -> str:
    """Where the unified hierarchy is mounted."""
    with open("/proc/self/mounts") as file:
        for line in file:
            fields = line.split()
            if fields[2] == "cgroup2":
                return fields[1]
    raise Unavailable("no cgroup2 is mounted")


def _base() -> str:
    """The folder in which our group may lie."""
    mount = _mount()
    with open("/proc/self/cgroup") as file:
        own = next((line[3:].strip() for line in file if line.startswith("0::")), "/")
    return mount if own == "/" else os.path.dirname(mount + own)


class Group:
    """One group; made empty, removed by ``close``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._cpu_max = ""
        os.mkdir(path)

    @classmethod
    def find(cls) -> Group:
        """The engine's group: jobs' groups go below it. :raises Unavailable: says why"""
        try:
            base = _base()
            with contextlib.suppress(OSError):
                _write(f"{base}/cgroup.subtree_control", " ".join(f"+{name}" for name in _CONTROLLERS))
            missing = set(_CONTROLLERS) - set(_words(f"{base}/cgroup.subtree_control"))
            if missing:
                raise Unavailable(f"{base} hands out no {' and '.join(sorted(missing))} controller")
            group = cls(f"{base}/emucsd-isp-{os.urandom(4).hex()}")  # process ids repeat in other namespaces
            try:
                _write(f"{group.path}/cgroup.subtree_control", " ".join(f"+{name}" for name in _CONTROLLERS))
            except BaseException:
                group.close()
                raise
        except OSError as problem:
            raise Unavailable(f"{problem.filename}: {problem.strerror}") from problem
        return group

    def below(self, name: str) -> Group:
        """A job's group. :raises OSError: it can't be made"""
        return Group(f"{self.path}/{name}")

    def limit_memory(self, count: int) -> None:
        """All its processes together, page cache included; beyond it the kernel ends the whole group."""
        _write(f"{self.path}/memory.max", str(count))
        for name, text in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            with contextlib.suppress(OSError):  # absent in the root group, or without swap
                _write(f"{self.path}/{name}", text)

    def limit_cpu(self, cores: float) -> None:
        """Processor time, in cores of this machine."""
        wanted = f"{max(int(cores * PERIOD_US), 1000)} {PERIOD_US}"
        if wanted != self._cpu_max:  # each write fills the purse: written every period it would be twice the limit
            _write(f"{self.path}/cpu.max", wanted)
            self._cpu_max = wanted

    def ended_by_memory(self) -> bool:
        """Whether the kernel has ended something in it for want of memory."""
        with contextlib.suppress(OSError):
            events = _words(f"{self.path}/memory.events")
            return dict(zip(events[::2], events[1::2], strict=True)).get("oom_kill", "0") != "0"
        return False

    def resident(self) -> int:
        """Bytes that are charged to it now."""
        return int(_words(f"{self.path}/memory.current")[0])

    def close(self) -> None:
        """Kill what is left in it and below, and remove it: as soon as the dead are gone, or not at all."""
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.kill", "1")
        for _ in range(100):
            try:
                for below in [entry.path for entry in os.scandir(self.path) if entry.is_dir()]:
                    os.rmdir(below)
                os.rmdir(self.path)
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.01)
            else:
                return
