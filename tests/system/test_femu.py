"""The launcher on FEMU's binary, here a stand-in for it (femu_stand_in.py): our drive and FEMU's SSD in one guest.

Where EMUCSD_FEMU names a real binary, or one was built, the same test runs on that as well.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from emucsd_femu import femu, qemu, qemu_root
from emucsd_femu.errors import QemuMissing
from emucsd_femu.qemu import FIRST_DRIVE_SLOT, Machine
from emucsd_femu.qemu_root import Qemu
from emucsd_firmware.profile import load
from emucsd_images.debian import tree
from emucsd_images.errors import PackagesMissing
from emucsd_images.initramfs import Initramfs
from tests.drive_process import DriveProcess
from tests.system import guest

pytestmark = pytest.mark.vm

BOOT_SECONDS = 180.0
STAND_IN = Path(__file__).with_name("femu_stand_in.py")
INIT = Path(__file__).with_name("femu_init.sh")
OURS, THEIRS = 512 << 20, 256 << 20


@pytest.fixture(params=["stand-in", "built"])
def emulator(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    """FEMU's binary as the launcher finds it."""
    if request.param == "built":
        try:
            return femu.find()
        except QemuMissing as problem:
            pytest.skip(str(problem))
    try:
        stock = qemu_root.find()
    except QemuMissing as problem:
        pytest.skip(str(problem))
    wrapper = tmp_path / femu.BINARY
    told = json.dumps({"command": stock.command, "environment": stock.environment})
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(STAND_IN), told])} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv(femu.CHOSEN, str(wrapper))
    return femu.find()


@pytest.fixture
def booted(tmp_path: Path) -> guest.Guest:
    try:
        root = tree(guest.PACKAGES, progress=print)
    except PackagesMissing as problem:
        pytest.skip(str(problem))
    archive = Initramfs()
    archive.console()
    archive.program("bin/busybox", root / "usr/bin/busybox")
    archive.file("init", INIT.read_bytes(), 0o755)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(archive.pack())
    (kernel,) = sorted((root / "boot").glob("vmlinuz-*"))
    return guest.Guest(kernel, initrd)


def test_our_drive_and_femus_in_one_guest(emulator: Qemu, booted: guest.Guest, artefacts: Path) -> None:
    """The guest binds our drive by its ids, keeps data on it, and sees FEMU's SSD of the profile's size beside it."""
    print(emulator)
    assert emulator.version < qemu_root.OLDEST  # what the command line's and the guest's special cases hang on
    words = femu.device(load("femu", capacity_bytes=THEIRS))
    with DriveProcess(artefacts, "--profile", "null", "--size", "512MiB") as drive:
        line = qemu.command(
            emulator,
            kernel=booted.kernel,
            initrd=booted.initrd,
            append="console=ttyS0 panic=-1 quiet",
            console_file=artefacts / "console",
            drives=[drive.port()],
            more=words,
        )
        with Machine(line, artefacts, emulator.environment) as machine:
            assert machine.wait(BOOT_SECONDS) == 0
            text = machine.text()
    said = re.findall(r"^FEMU (.*?)\r?$", text, re.MULTILINE)
    assert said[0] in ("class 0x000000", "class 0xff0000"), text[-3000:]
    assert said[1:] == [
        f"slot {FIRST_DRIVE_SLOT:x}: {OURS} bytes",
        f"slot {femu.SLOT:x}: {THEIRS} bytes",
        "read back equal",
        "FEMU's read",
        "done",
    ], text[-3000:]


def test_a_knob_that_femu_has_not_got_is_refused(emulator: Qemu, booted: guest.Guest, artefacts: Path) -> None:
    """A property that the binary does not know ends it with that property's name: nothing is dropped in silence."""
    line = qemu.command(
        emulator, kernel=booted.kernel, initrd=booted.initrd, append="", console_file=artefacts / "console",
        more=["-device", json.dumps({"driver": "femu", "devsz_mb": 64, "no_such_knob": 1})],
    )  # fmt: skip
    with Machine(line, artefacts, emulator.environment) as machine:
        assert machine.wait(60) != 0
    assert "no_such_knob" in (artefacts / "qemu.log").read_text()
