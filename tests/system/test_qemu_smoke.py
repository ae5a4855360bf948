"""Stock QEMU and a Debian kernel on one of our drives: probe, write, read back, reset, power off, and again.

Needs a QEMU from 10.1.1 on (a private one is unpacked when none is installed) and Debian's kernel and busybox packages;
skipped, with the reason, where they can't be had.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_femu import qemu, qemu_root
from emucsd_femu.errors import QemuMissing
from emucsd_femu.qemu import Machine
from emucsd_femu.qemu_root import Qemu
from emucsd_images.errors import PackagesMissing
from tests.drive_process import DriveProcess, until
from tests.system import guest
from tests.system.guest import Guest

pytestmark = pytest.mark.vm

BOOT_SECONDS = 90.0  # some 4 s here; other machines may be slow
PATTERN = random.Random(1).randbytes(4 << 20)
STEPS = ("first", "reset", "flr", "rescan")


@pytest.fixture(scope="module")
def emulator() -> Qemu:
    try:
        return qemu_root.find()
    except QemuMissing as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    try:
        return guest.make(tmp_path_factory.mktemp("guest"), PATTERN)
    except PackagesMissing as problem:
        pytest.skip(str(problem))


@pytest.fixture
def drive(artefacts: Path) -> Iterator[DriveProcess]:
    with DriveProcess(artefacts, "--profile", "null", "--size", "1GiB") as process:
        assert process.ready["ok"], process.ready
        yield process


def machine(emulator: Qemu, booted: Guest, drive: DriveProcess, mode: str, folder: Path) -> Machine:
    """A machine on the drive's port 0, not yet started."""
    folder.mkdir()
    words = qemu.command(
        emulator,
        kernel=booted.kernel,
        initrd=booted.initrd,
        append=f"console=ttyS0 panic=-1 quiet smoke={mode}",
        console_file=folder / "console",
        drives=[drive.port()],
    )
    return Machine(words, folder, emulator.environment)


def run(made: Machine) -> list[str]:
    """Boot it and wait for its own end. :returns: what it said for us"""
    begun = time.monotonic()
    with made:
        assert made.wait(BOOT_SECONDS) == 0
        text = made.text()
    said = re.findall(r"^SMOKE (\S+) (.*?)\r?$", text, re.MULTILINE)
    times = (f"{at:>7} s  {' '.join(line.split())}" for at, line in said)
    print(f"{made.console_file.parent.name}: {time.monotonic() - begun:.1f} s", *times, sep="\n  ")
    lines = [line for _, line in said]
    assert lines[-1:] == ["done"], text[-4000:]
    assert "nvme nvme0: I/O" not in text, "a command timed out"
    return lines


def detached(drive: DriveProcess) -> None:
    """Wait until the drive has noticed that its client is gone."""
    until(lambda: drive.ask("status")["ports"][0]["client"] is None)


def test_a_stock_machine_keeps_its_data(emulator: Qemu, booted: Guest, drive: DriveProcess, artefacts: Path) -> None:
    """Linux's own driver writes and reads back through controller reset, function level reset and removal.

    A second machine is killed while it writes, which harms nothing that was flushed; a third one reads the same as the
    first. Then the drive stops cleanly.
    """
    print(emulator)
    told = f"256 direct reads: md5 {hashlib.md5(PATTERN[: 256 * 4096], usedforsecurity=False).hexdigest()}"
    first = run(machine(emulator, booted, drive, "write", artefacts / "first"))
    assert f"wrote {len(PATTERN)}" in first
    assert told in first
    assert [line for line in first if line.endswith("equal")] == [f"{step} equal" for step in STEPS]
    detached(drive)
    with machine(emulator, booted, drive, "busy", artefacts / "second") as second:
        second.wait_for("busy", BOOT_SECONDS)
        written = drive.ask("stats")["ports"][0]["writes"]
        until(lambda: drive.ask("stats")["ports"][0]["writes"] > written + 50, BOOT_SECONDS)
        second.kill()
    detached(drive)
    third = run(machine(emulator, booted, drive, "read", artefacts / "third"))
    assert told in third
    assert "first equal" in third
    assert drive.ask("status")["ports"][0]["connections"] == 3
    assert "internal error" not in drive.log()
    assert drive.ask("stop")["ok"]
    assert drive.wait_end() == 0
