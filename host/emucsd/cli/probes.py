"""What this machine has: each probe looks at one thing and says what follows from it."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from emucsd.cli import probe_machines
from emucsd.cli.finding import GOOD, MISSING, PARTLY, Finding
from emucsd.cli.probe_femu import femu
from emucsd.cli.units import show_size


def first_match(path: str, pattern: str) -> str:
    """First group of a pattern in a small text file of the system; empty when there is none."""
    try:
        match = re.search(pattern, Path(path).read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return match[1].strip() if match else ""


def processor() -> Finding:
    model = first_match("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    found = f"{model}, {cores} core{'s' * (cores != 1)} usable"
    if platform.machine() not in ("x86_64", "aarch64"):
        return Finding("processor", MISSING, found, "everything", "the drive runs on x86-64 and 64-bit Arm")
    if cores < 2:
        return Finding("processor", PARTLY, found, "real-time figures", "drive and host each want a core of their own")
    return Finding("processor", GOOD, found, "everything")


def memory() -> Finding:
    available = int(first_match("/proc/meminfo", r"^MemAvailable:\s*(\d+) kB") or 0) << 10
    total = int(first_match("/proc/meminfo", r"^MemTotal:\s*(\d+) kB") or 0) << 10
    found = f"{show_size(available)} free of {show_size(total)}"
    if available < 1 << 30:
        return Finding("memory", PARTLY, found, "large drives", "1 GiB free is wanted; choose a smaller --size")
    return Finding("memory", GOOD, found, "everything")


def python() -> Finding:
    names = ("numpy", "numba", "msgspec", "rich")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return Finding("python", GOOD, f"{platform.python_version()} ({sys.executable}), {versions}", "everything")


def optional(package: str, needed_for: str, next_step: str) -> Finding:
    """A Python package that only some commands need; found without importing it."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, MISSING, "not installed", needed_for, next_step)
    return Finding(package, GOOD, version, needed_for)


def folder(name: str, path: Path, needed_for: str, wanted: int) -> Finding:
    """Space and rights of a folder that may not exist yet."""
    there = path
    while not there.exists():
        there = there.parent
    usage = shutil.disk_usage(there)
    found = f"{path}: {show_size(usage.free)} free"
    if not os.access(there, os.W_OK):
        return Finding(name, MISSING, f"{path}: not writable", needed_for, "give another folder, or fix its rights")
    if usage.free < wanted:
        return Finding(name, PARTLY, found, needed_for, f"{show_size(wanted)} free is wanted")
    return Finding(name, GOOD, found, needed_for)


def device_node(path: str, needed_for: str, next_step: str) -> Finding:
    if not Path(path).exists():
        return Finding(path, MISSING, "not there", needed_for, next_step)
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding(path, PARTLY, "there, but not for this user", needed_for, next_step)
    return Finding(path, GOOD, "readable and writable", needed_for)


def fuse_library() -> Finding:
    name = ctypes.util.find_library("fuse")
    needed_for = "a drive's namespaces as files (a later version)"
    if not name:
        return Finding("libfuse2", MISSING, "not found", needed_for, "Debian's package is libfuse2 (libfuse2t64)")
    return Finding("libfuse2", GOOD, name, needed_for)


def program(name: str, needed_for: str, package: str) -> Finding:
    """A program on PATH."""
    path = shutil.which(name)
    if not path:
        return Finding(name, MISSING, "not on PATH", needed_for, f"Debian's package is {package}")
    return Finding(name, GOOD, path, needed_for)


Probe = Callable[[], Finding]


def probes(runtime: Path, store: Path, cache: Path) -> list[Probe]:
    """Every probe, in the order in which a newcomer meets what it looks at."""
    plots = "pip install 'emucsd[plots]'"
    torch = "pip install 'emucsd[torch]'"
    return [
        processor,
        memory,
        python,
        lambda: optional("matplotlib", "the demo's picture", plots),
        lambda: optional("torch", "checking and timing lookups against PyTorch", torch),
        lambda: folder("compile cache", cache, "warm starts", 100 << 20),
        lambda: folder("runtime folder", runtime, "sockets of running drives", 1 << 20),
        lambda: folder("store folder", store, "what drives hold", 1 << 30),
        lambda: folder("/dev/shm", Path("/dev/shm"), "memory shared with virtual machines", 512 << 20),
        lambda: probe_machines.qemu("host machine"),
        lambda: probe_machines.qemu("ISP machine"),
        femu,
        probe_machines.accelerator,
        probe_machines.images,
        probe_machines.namespaces,
        lambda: program("mmdebstrap", "making a private QEMU and machines' images", "mmdebstrap"),
        lambda: device_node("/dev/fuse", "a drive's namespaces as files (a later version)", "modprobe fuse"),
        fuse_library,
        lambda: device_node("/dev/net/tun", "the tunnel where there is no host machine", "modprobe tun"),
    ]
