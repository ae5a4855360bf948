"""Mounts of drives on this machine: finding them, and taking them away."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from emucsd.mount.errors import MountBusy, MountError, MountMissing, MountUnavailable

KIND = "emucsd"  # of file system: the kernel says fuse.emucsd
_DETACH = 2  # MNT_DETACH
_HINT_S, _END_TIMEOUT_S = 1.0, 30.0
_LOOP_S = 3.0


class Mounted(NamedTuple):
    """One mount.

    :ivar directory: where
    :ivar pid: of the process that serves it
    :ivar port: of the drive
    :ivar runtime: the drive's runtime folder
    """

    directory: Path
    pid: int
    port: int
    runtime: Path

    @property
    def source(self) -> str:
        """What stands for it in the kernel's list."""
        return f"{KIND}#{self.pid}#{self.port}#{self.runtime}"


def mounts() -> list[Mounted]:
    """Every mount of ours in this mount namespace, the newest last."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        kind, source, *_ = tail.split(" ")
        parts = _unescaped(source).split("#", 3)
        if kind == f"fuse.{KIND}" and len(parts) == 4 and parts[0] == KIND:
            found.append(Mounted(Path(_unescaped(fields.split(" ")[4])), int(parts[1]), int(parts[2]), Path(parts[3])))
    return found


def mount_at(directory: Path) -> Mounted | None:
    """The mount of ours on a folder. Looks at names alone: the file system there may be dead."""
    path = Path(os.path.abspath(directory))
    with contextlib.suppress(OSError):
        path = Path(os.path.realpath(path.parent)) / path.name
    return next((mount for mount in reversed(mounts()) if mount.directory == path), None)


def read_ahead(directory: Path, kib: int) -> None:
    """Let the kernel read so far ahead, where its page cache is used. Root's to say; else it stays at 128 KiB.

    :param directory: as the kernel has it: the mount's own process calls this, and must not look at its own files
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split(" ")
        if _unescaped(words[4]) == str(directory) and f"fuse.{KIND}" in words:
            with contextlib.suppress(OSError):
                Path(f"/sys/class/bdi/{words[2]}/read_ahead_kb").write_text(str(kib))


def users(directory: Path) -> list[str]:
    """Loop devices whose file lies in a folder."""
    found = []
    for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            if Path(path.read_text().strip()).is_relative_to(directory):
                found.append(f"/dev/{path.parent.parent.name}")
    return found


def umount(directory: Path, *, lazy: bool = False) -> Mounted:
    """Take a mount away and wait until its process has left the drive.

    :param lazy: though it is in use: whoever uses it gets errors from then on
    :raises MountMissing: nothing of ours is mounted there
    :raises MountBusy: it is in use, by what
    """
    mount = mount_at(directory)
    if mount is None:
        known = ", ".join(str(other.directory) for other in mounts()) or "none"
        raise MountMissing(f"{directory}: no drive is mounted there; drives are mounted on: {known}")
    ended = _watch(mount.pid)
    try:
        deadline = time.monotonic() + _LOOP_S
        while not lazy and _going(users(mount.directory)) and time.monotonic() < deadline:
            time.sleep(0.02)
        _take_away(mount, lazy=lazy)
        if ended is not None and not _end(ended, at_once=lazy):
            raise MountError(
                f"{mount.directory} is no longer mounted, but process {mount.pid} still holds the drive after "
                f"{_END_TIMEOUT_S:g} s; kill -9 {mount.pid} ends it"
            )
    finally:
        if ended is not None:
            os.close(ended)
    return mount


def _watch(pid: int) -> int | None:
    """A descriptor of a mount's process; None: it has ended (and something else may have its number)."""
    try:
        if b"emucsd" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return None
        return os.pidfd_open(pid)
    except (OSError, ProcessLookupError):
        return None


def _going(loops: list[str]) -> bool:
    """Whether a loop device is about to go: its file system was unmounted, and the kernel clears it a moment later."""
    for loop in loops:
        clears = Path("/sys/block", Path(loop).name, "loop/autoclear")
        with contextlib.suppress(OSError):
            if clears.read_text().strip() == "1" and not _mounted_by(loop):
                return True
    return False


def _mounted_by(loop: str) -> list[int]:
    """Processes that see a file system of the device, one of each mount namespace that this user may look into."""
    number = Path("/sys/block", Path(loop).name, "dev").read_text().strip()
    found: dict[int, int] = {}
    for process in [Path("/proc/self"), *Path("/proc").glob("[0-9]*")]:
        with contextlib.suppress(OSError, ValueError):
            space = (process / "ns/mnt").stat().st_ino
            if space not in found and any(
                line.split(" ")[2] == number for line in (process / "mountinfo").read_text().splitlines()
            ):
                found[space] = os.getpid() if process.name == "self" else int(process.name)
    return list(found.values())


def _end(process: int, *, at_once: bool) -> bool:
    """Wait until a mount's process has left. The kernel tells it that the mount is gone, unless another mount namespace
    (a container's) has a copy of it, or somebody still uses it: then it is asked to end.
    """
    if not at_once and _wait(process, _HINT_S):
        return True
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGTERM)
    return _wait(process, _END_TIMEOUT_S)


def _wait(process: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(process, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _take_away(mount: Mounted, *, lazy: bool) -> None:
    """:raises MountBusy: it is in use"""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.umount2(os.fsencode(mount.directory), _DETACH if lazy else 0)
        number, text = ctypes.get_errno(), os.strerror(ctypes.get_errno())
    else:
        arguments = ["fusermount", "-u", *(["-z"] if lazy else []), str(mount.directory)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        except FileNotFoundError as exc:
            raise MountUnavailable(
                "without root this needs the program fusermount (Debian: apt install fuse3)"
            ) from exc
        failed, text = done.returncode, done.stderr.strip()
        number = errno.EBUSY if "busy" in text.lower() else errno.EPERM
    if not failed:
        return
    if number != errno.EBUSY:
        raise MountError(f"{mount.directory} could not be unmounted: {text}")
    loops = users(mount.directory)
    who = "; ".join(map(_told, loops)) if loops else "a program has a file or folder of it open"
    raise MountBusy(f"{mount.directory} is in use: {who}; or emucsd umount --lazy, which cuts off whoever uses it")


def _told(loop: str) -> str:
    """What a loop device is doing, and how to end it."""
    pids = _mounted_by(loop)
    if not pids:
        return f"losetup -d {loop} ends that loop device"
    if os.getpid() in pids:
        return f"umount {loop} ends that loop mount"
    return f"{loop} is mounted in another mount namespace, that of process {pids[0]}"


def _unescaped(text: str) -> str:
    """The kernel writes blanks and the like in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
