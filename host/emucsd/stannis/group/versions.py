"""What a rank is: its program's versions and the machine that it runs on."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

from emucsd.stannis.errors import VersionMismatch

EQUAL = ("program", "torch")
"""What must be equal on all ranks: else they would not compute, or not say, the same."""


def versions() -> dict[str, str]:
    """Name -> version. ``program`` is a digest of Stannis' own sources; ``torch`` is empty where there is none."""
    return {
        "program": _program(),
        "torch": _torch(),
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def check(node: str, theirs: dict[str, str], other: str, ours: dict[str, str]) -> None:
    """Compare two ranks. :raises VersionMismatch: they would not compute the same; names both"""
    for name in EQUAL:
        mine, yours = _comparable(name, ours.get(name, "")), _comparable(name, theirs.get(name, ""))
        if mine and yours and mine != yours:
            what = "sources of emucsd.stannis" if name == "program" else "PyTorch"
            raise VersionMismatch(
                f"{what} differ: {node} has {theirs[name]}, {other} has {ours[name]}; install the same release on both",
                ours[name],
                theirs[name],
            )


def machine() -> str:
    """Architecture and processor, as benchmarks depend on them."""
    return f"{platform.machine()} {_processor()}".strip()[:200]


def computer() -> str:
    """The same for all that run under one kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def memory_bytes() -> int:
    """Of the machine; less where a limit holds this process."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        held = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(held)) if held.isdecimal() else total


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0))


def _comparable(name: str, version: str) -> str:
    """2.6.0+debian and 2.6.1+cpu speak alike; 2.6 and 2.13 need not."""
    return ".".join(version.split("+")[0].split(".")[:2]) if name == "torch" else version


def _program() -> str:
    """Of the parts that every rank computes with."""
    told = hashlib.blake2b(digest_size=8)
    home = Path(__file__).parent.parent
    for folder in ("group", "plan", "training", "data"):
        for path in sorted((home / folder).glob("*.py")):
            told.update(f"{folder}/{path.name}\0".encode() + path.read_bytes() + b"\0")
    return told.hexdigest()


def _torch() -> str:
    """Read from its files: importing it takes a minute on a drive's own processor."""
    found = importlib.util.find_spec("torch")
    for folder in (found.submodule_search_locations or []) if found else []:
        try:
            said = Path(folder, "version.py").read_text()
        except OSError:
            continue
        if match := re.search(r"__version__\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", said):
            return match[1]
    return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    names = ("model name", "CPU part")
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""
