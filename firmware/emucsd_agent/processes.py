"""Processes, as /proc tells them: a job's whole tree, what it runs and what memory it holds."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """:raises OSError: the kernel refused"""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def _read(path: str) -> str:
    """A small file of /proc; "" once its process is gone."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(1 << 16).decode(errors="replace")
    except OSError:
        return ""


def threads(pid: int) -> list[str]:
    """Ids of its threads; none once it is gone."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # CONFIG_PROC_CHILDREN


def children(pid: int) -> list[int]:
    """Direct children, of all its threads."""
    found: list[int] = []
    if _LISTS_CHILDREN:
        for thread in threads(pid):
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
        return found
    for name in os.listdir("/proc"):
        if name.isdecimal() and _fields(f"/proc/{name}/stat")[1:2] == [str(pid)]:
            found.append(int(name))
    return found


def _fields(path: str) -> list[str]:
    """What follows the name in a ``stat``: state, parent, group ..."""
    return _read(path).rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """All descendants, parents before their children; ``pid`` itself is not among them."""
    found = children(pid)
    for one in found:  # grows while it is walked
        found += children(one)
    return found


def signal_tree(pid: int, number: int) -> int:
    """Send a signal to all descendants. :returns: how many there were"""
    sent = 0
    for one in tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)
            sent += 1
    return sent


def resident(pid: int) -> int:
    """Bytes of resident memory of one process that are its own: shared files' pages are nobody's."""
    fields = _read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else 0


def shared_memory(pid: int) -> int:
    """Bytes of shared anonymous memory that one process has touched (tmpfs, memfd, shm)."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("RssShmem:"):
            return int(line.split()[1]) << 10
    return 0


class Load(NamedTuple):
    """What threads have done and want."""

    runnable: int  # threads that run, or wait for a core
    ran_ns: dict[str, int]  # processor time of each thread since it began


def load(pids: Iterable[int]) -> Load:
    """Over all threads of these processes."""
    runnable, ran = 0, {}
    for pid in pids:
        for thread in threads(pid):
            base = f"/proc/{pid}/task/{thread}"
            stat = _fields(f"{base}/stat")
            if stat:
                runnable += stat[0] == "R"
                exact = _read(f"{base}/schedstat").split()
                ran[thread] = int(exact[0]) if exact else (int(stat[11]) + int(stat[12])) * _TICK_NS
    return Load(runnable, ran)
