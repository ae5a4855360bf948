"""Which QEMU can attach a drive: one that is installed, else a private one unpacked from Debian backports.

``vfio-user-pci`` works from QEMU 10.1.1 on (10.1.0 has a regression in it). A private QEMU runs without root, through
the dynamic loader and the libraries of its own tree.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emucsd_femu.errors import QemuMissing
from emucsd_images.debian import Packages, Progress, tree
from emucsd_images.errors import PackagesMissing

OLDEST = (10, 1, 1)
OLDEST_CHOSEN = (10, 1, 0)  # FEMU's binary: it loses the class code, so its guests bind the driver by id
CHOSEN = {"x86_64": "EMUCSD_QEMU", "aarch64": "EMUCSD_QEMU_AARCH64"}  # the user's own choice, a target each
_PACKAGES = ("qemu-system-arm", "qemu-system-x86", "qemu-utils")
_LOADER = {"x86_64": "usr/lib64/ld-linux-x86-64.so.2", "aarch64": "usr/lib/ld-linux-aarch64.so.1"}
_VERSION = re.compile(r"version (\d+)\.(\d+)\.(\d+)")
_SECONDS = 60


class Qemu(NamedTuple):
    """A QEMU that can attach drives."""

    command: tuple[str, ...]  # how to call it
    environment: dict[str, str]  # what it needs besides
    version: tuple[int, int, int]
    reason: str  # why this one

    def __str__(self) -> str:
        return f"QEMU {'.'.join(map(str, self.version))}: {self.reason}"


def private_packages() -> Packages:
    """The tree that holds a private QEMU, for every target, and its tools."""
    return Packages("qemu-root", _PACKAGES, backports=True)


def _loaded(root: Path, program: str) -> list[str]:
    """A program of the tree, through the tree's own loader."""
    libraries = root / "usr/lib" / f"{platform.machine()}-linux-gnu"
    return [str(root / _LOADER[platform.machine()]), "--library-path", str(libraries), str(root / "usr/bin" / program)]


def in_tree(root: Path, target: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Command and environment of the QEMU unpacked in ``root``."""
    libraries = root / "usr/lib" / f"{platform.machine()}-linux-gnu"
    command = _loaded(root, f"qemu-system-{target}")
    for data in ("qemu", "seabios", "ipxe/qemu", "qemu-efi-aarch64"):
        if (root / "usr/share" / data).is_dir():
            command += ["-L", str(root / "usr/share" / data)]
    return tuple(command), {"QEMU_MODULE_DIR": str(libraries / "qemu")}


def probe(
    command: tuple[str, ...], environment: dict[str, str], oldest: tuple[int, int, int] = OLDEST
) -> tuple[int, int, int]:
    """Its version. :raises QemuMissing: it does not run, is too old, or lacks vfio-user-pci"""
    name = command[0] if len(command) == 1 else command[3]
    version_text = _ask(command, environment, "--version")
    found = _VERSION.search(version_text)
    if found is None:
        raise QemuMissing(f"{name} says no version: {version_text[:100]!r}")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < oldest:
        needed = ".".join(map(str, oldest))
        raise QemuMissing(f"{name} is version {'.'.join(map(str, version))}, at least {needed} is needed")
    _ask(command, environment, "-device", "vfio-user-pci,help")
    return version


def _ask(command: tuple[str, ...], environment: dict[str, str], *question: str) -> str:
    try:
        return subprocess.run(
            [*command, *question], env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=_SECONDS, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as problem:
        detail = getattr(problem, "stderr", None) or problem
        raise QemuMissing(f"{command[-1]} {' '.join(question)}: {str(detail).strip()[:300]}") from problem


def image_tool(*, build: bool = True, progress: Progress = print) -> tuple[str, ...]:
    """How to call qemu-img: the chosen QEMU's, an installed one, else the private tree's. Any version does.

    :raises QemuMissing: none can be had
    """
    if (chosen := os.environ.get(CHOSEN["x86_64"])) and os.access(
        beside := Path(chosen).with_name("qemu-img"), os.X_OK
    ):
        return (str(beside),)
    if installed := shutil.which("qemu-img"):
        return (installed,)
    try:
        return tuple(_loaded(tree(private_packages(), build=build, progress=progress), "qemu-img"))
    except PackagesMissing as problem:
        raise QemuMissing(f"no qemu-img: none is installed (Debian: qemu-utils); {problem}") from problem


def find(target: str = "x86_64", *, build: bool = True, progress: Progress = print) -> Qemu:
    """$EMUCSD_QEMU (aarch64: $EMUCSD_QEMU_AARCH64), else an installed one that is new enough, else a private one.

    :param target: the machine that it emulates
    :param build: False: do not make a private one
    :raises QemuMissing: none can be had; says why each one was no use
    """
    if chosen := os.environ.get(CHOSEN[target]):
        return Qemu((chosen,), {}, probe((chosen,), {}, OLDEST_CHOSEN), f"{chosen}, chosen by {CHOSEN[target]}")
    why: list[str] = []
    installed = shutil.which(f"qemu-system-{target}")
    if installed is None:
        why.append(f"no qemu-system-{target} is installed")
    else:
        try:
            return Qemu((installed,), {}, probe((installed,), {}), f"{installed} is installed and new enough")
        except QemuMissing as problem:
            why.append(str(problem))
    try:
        root = tree(private_packages(), build=build, progress=progress)
        command, environment = in_tree(root, target)
        return Qemu(command, environment, probe(command, environment), f"private one in {root} ({why[0]})")
    except (PackagesMissing, QemuMissing) as problem:
        raise QemuMissing(f"no QEMU that can attach a drive: {'; '.join(why)}; {problem}") from problem


def main(arguments: Sequence[str]) -> int:
    """Find it, or make it, and say which and why."""
    parser = argparse.ArgumentParser(prog="python -m emucsd_femu qemu", description="Find or make a QEMU for drives.")
    parser.add_argument("--target", choices=sorted(CHOSEN), default="x86_64")
    parser.add_argument("--no-build", action="store_true", help="do not make a private one")
    options = parser.parse_args(arguments)
    try:
        found = find(options.target, build=not options.no_build, progress=lambda text: print(text, file=sys.stderr))
    except QemuMissing as problem:
        print(problem, file=sys.stderr)
        return 1
    print(found)
    return 0
