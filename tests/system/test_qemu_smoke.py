"""Stock QEMU and a Debian kernel on one of our drives: probe, write, read back, reset, power off, and again.

Needs a QEMU from 10.1.1 on (a private one is unpacked when none is installed) and Debian's kernel and busybox packages;
skipped, with the reason, where they can't be had.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_femu import qemu, qemu_root
from emucsd_femu.errors import PackagesMissing, QemuMissing
from emucsd_femu.qemu_root import Qemu
from tests.drive_process import DriveProcess
from tests.system import guest
from tests.system.guest import Guest

pytestmark = pytest.mark.vm

BOOT_SECONDS = 90.0  # some 4 s here; other machines may be slow
BYTES = 4 << 20
DONE = "SMOKE done"


@pytest.fixture(scope="module")
def emulator() -> Qemu:
    try:
        return qemu_root.find()
    except QemuMissing as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    try:
        return guest.make(tmp_path_factory.mktemp("guest"))
    except PackagesMissing as problem:
        pytest.skip(str(problem))


@pytest.fixture
def drive(artefacts: Path) -> Iterator[DriveProcess]:
    with DriveProcess(artefacts, "--profile", "null", "--size", "1GiB") as process:
        assert process.ready["ok"], process.ready
        yield process


def pattern() -> bytes:
    """The guest's pattern: numbered lines."""
    text = b"".join(b"%d\n" % n for n in range(1, 700_000))
    assert len(text) > BYTES
    return text[:BYTES]


def boot(emulator: Qemu, booted: Guest, drive: DriveProcess, mode: str, folder: Path) -> list[str]:
    """Boot, wait for the guest's own end. :returns: what it said for us"""
    folder.mkdir()
    words = qemu.command(
        emulator,
        kernel=booted.kernel,
        initrd=booted.initrd,
        append=f"console=ttyS0 panic=-1 quiet smoke={mode}",
        console_file=folder / "console",
        drives=[drive.port()],
    )
    begun = time.monotonic()
    with qemu.Machine(words, folder, emulator.environment) as machine:
        text = machine.wait_for("SMOKE ", BOOT_SECONDS)
        text = machine.wait_for(DONE, BOOT_SECONDS) if "FAILED" not in text else text
        assert machine.wait(BOOT_SECONDS) == 0
        text = machine.text()
    said = re.findall(r"^SMOKE (.*?)\r?$", text, re.MULTILINE)
    print(f"{emulator}; {mode}: {time.monotonic() - begun:.1f} s", *said, sep="\n  ")
    assert not [line for line in said if line.startswith("FAILED")], text[-4000:]
    assert "nvme nvme0: I/O" not in text, "a command timed out"
    return said


def test_a_stock_machine_keeps_its_data(emulator: Qemu, booted: Guest, drive: DriveProcess, artefacts: Path) -> None:
    """Linux's own driver writes and reads back through controller reset, function level reset and removal; a second
    boot reads the same; the drive saw each machine shut down cleanly, and stops cleanly itself."""
    digest = hashlib.md5(pattern(), usedforsecurity=False).hexdigest()
    first = boot(emulator, booted, drive, "write", artefacts / "first")
    assert f"wrote {BYTES}" in first
    assert [line for line in first if line.endswith(digest)] == [
        f"{step} equal {digest}" for step in ("first", "reset", "flr", "rescan")
    ]
    status = drive.ask("status")
    assert status["ports"][0]["client"] is None
    assert status["ports"][0]["connections"] == 1
    second = boot(emulator, booted, drive, "read", artefacts / "second")
    assert f"first equal {digest}" in second
    assert "SMOKE" not in drive.log()
    assert "internal error" not in drive.log()
    assert drive.ask("stop")["ok"]
    assert drive.wait_end() == 0
