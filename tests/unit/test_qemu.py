"""Machines: command lines, life and death, which QEMU is taken, and the guest's first filesystem."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from emucsd_femu import qemu, qemu_root
from emucsd_femu.errors import MachineError, MachineTimeout, QemuMissing
from emucsd_femu.qemu import Machine
from emucsd_femu.qemu_root import Qemu
from emucsd_images import debian
from emucsd_images.debian import Packages
from emucsd_images.errors import PackagesMissing
from emucsd_images.initramfs import Initramfs

FAKE = Qemu(("qemu-system-x86_64",), {}, (10, 1, 1), "a test")


def test_memory_is_shared_and_drives_are_json() -> None:
    """Guest memory is one shared memfd, each drive a device with a nested socket and a generous time-out."""
    words = qemu.command(
        FAKE,
        kernel=Path("/k"),
        initrd=Path("/i"),
        append="quiet",
        console_file=Path("/c"),
        drives=[Path("/a"), Path("/b")],
    )
    assert words[0] == "qemu-system-x86_64"
    assert any(word.startswith("memory-backend-memfd,") and word.endswith("share=on") for word in words)
    assert "q35,memory-backend=mem" in words
    devices = [json.loads(words[n + 1]) for n, word in enumerate(words) if word == "-device"]
    assert [device["socket"] for device in devices] == [{"type": "unix", "path": path} for path in ("/a", "/b")]
    assert all(device["driver"] == "vfio-user-pci" and device["x-msg-timeout"] > 5000 for device in devices)


def test_a_machine_prints_and_ends(tmp_path: Path) -> None:
    """The console is read while it runs; its end and exit code are seen."""
    script = f"echo one >> {tmp_path}/console; echo two >> {tmp_path}/console; exec sleep 0.1"
    with Machine(["sh", "-c", script], tmp_path) as machine:
        assert machine.wait_for("two", 10) == "one\ntwo"
        assert machine.wait(10) == 0
    assert machine.ended == "of itself"


def test_a_machine_that_ends_early_tells_all(tmp_path: Path) -> None:
    """The error carries the command as it can be pasted, the exit code, the console and QEMU's own words."""
    script = f"echo booting >> {tmp_path}/console; echo no such device >&2; exit 3"
    with Machine(["sh", "-c", script], tmp_path) as machine, pytest.raises(MachineError) as caught:
        machine.wait_for("login:", 10)
    text = str(caught.value)
    assert "exit code 3" in text
    assert "booting" in text
    assert "no such device" in text
    assert "sh -c '" in text


def test_a_machine_that_hangs_is_killed(tmp_path: Path) -> None:
    """A wait has a deadline; leaving the block ends even a machine that ignores being asked."""
    script = f"trap '' TERM; echo up >> {tmp_path}/console; while :; do sleep 0.05; done"
    machine = Machine(["sh", "-c", script], tmp_path)
    machine.asked_seconds = 0.2
    with machine:
        machine.wait_for("up", 10)
        with pytest.raises(MachineTimeout, match="login"):
            machine.wait_for("login", 0.1)
    assert machine.ended == "killed"
    assert machine.status is not None


def test_kill_is_no_goodbye(tmp_path: Path) -> None:
    """kill() ends it as a crash would."""
    with Machine(["sleep", "60"], tmp_path) as machine:
        machine.kill()
        assert machine.ended == "killed"
    assert machine.status == -9


def fake_qemu(folder: Path, version: str, *, devices: bool = True) -> Path:
    """A program that says it is QEMU."""
    path = folder / "qemu-system-x86_64"
    answer = "exit 0" if devices else "echo no vfio-user-pci >&2; exit 1"
    path.write_text(
        f'#!/bin/sh\ncase "$1" in --version) echo "QEMU emulator version {version} (x)";; *) {answer};; esac\n'
    )
    path.chmod(0o755)
    return path


def test_an_installed_qemu_is_taken_when_it_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10.1.1 and later with the device: no private one is made."""
    monkeypatch.delenv("EMUCSD_QEMU", raising=False)
    path = fake_qemu(tmp_path, "10.1.1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = qemu_root.find(build=False)
    assert found.command == (str(path),)
    assert found.version == (10, 1, 1)
    assert "installed" in str(found)


@pytest.mark.parametrize(
    ("version", "devices", "why"), [("7.2.22", True, "7.2.22"), ("11.0.0", False, "no vfio-user-pci")]
)
def test_why_a_qemu_is_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, devices: bool, why: str
) -> None:
    """Too old, or without the device: the error names it, and why no private one was made."""
    monkeypatch.delenv("EMUCSD_QEMU", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake_qemu(tmp_path, version, devices=devices)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(QemuMissing, match=why):
        qemu_root.find(build=False)


def test_a_chosen_qemu_is_not_second_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMUCSD_QEMU is taken or refused, nothing else is tried."""
    monkeypatch.setenv("EMUCSD_QEMU", str(fake_qemu(tmp_path, "9.0.0")))
    with pytest.raises(QemuMissing, match=r"9\.0\.0"):
        qemu_root.find()
    monkeypatch.setenv("EMUCSD_QEMU", str(tmp_path / "nothing"))
    with pytest.raises(QemuMissing, match="nothing"):
        qemu_root.find()


def test_trees_are_named_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package, suite or architecture is another folder; one that is there is not made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = Packages("root", ("a",))
    others = [one._replace(include=("b",)), one._replace(suite="forky"), one._replace(architecture="riscv64")]
    assert len({packages.folder for packages in (one, *others)}) == 4
    one.folder.mkdir(parents=True)
    assert debian.tree(one) == one.folder
    with pytest.raises(PackagesMissing):
        debian.tree(others[0], build=False)


def test_a_tree_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdebstrap missing or failing: a PackagesMissing with its last words, and no half of a tree."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packages = Packages("root", ("a",))
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(PackagesMissing, match="apt-get install mmdebstrap"):
        debian.tree(packages)
    broken = tools / "mmdebstrap"
    broken.write_text(
        '#!/bin/sh\nfor word; do case "$word" in */root-*) /bin/mkdir -p "$word";; esac; done\n'
        "echo E: lost >&2\nexit 7\n"
    )
    broken.chmod(0o755)
    with pytest.raises(PackagesMissing, match="EMUCSD_DEBIAN_MIRROR"):  # no apt here to ask
        debian.tree(packages)
    monkeypatch.setenv("EMUCSD_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(PackagesMissing, match="E: lost"):
        debian.tree(packages)
    assert [path.suffix for path in (tmp_path / "cache" / "emucsd").iterdir()] == [".lock"]


def test_initramfs_is_a_cpio_archive(tmp_path: Path) -> None:
    """Folders come before their content and once; cpio, where there is one, unpacks the same."""
    archive = Initramfs()
    archive.console()
    archive.file("etc/deep/name", b"content\n", 0o600)
    archive.file("etc/deep/other", b"")
    archive.link("bin/sh", "busybox")
    data = archive.pack()
    assert data.startswith(b"070701")
    assert len(data) % 4 == 0
    assert data.index(b"etc\0") < data.index(b"etc/deep\0") < data.index(b"etc/deep/name\0")
    assert data.count(b"etc/deep\0") == 1
    if shutil.which("cpio") is None:
        return
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=data, capture_output=True, check=True).stdout.split()
    assert listed == [
        b"dev",
        b"dev/console",
        b"etc",
        b"etc/deep",
        b"etc/deep/name",
        b"etc/deep/other",
        b"bin",
        b"bin/sh",
    ]


def test_waits_are_short_looks(tmp_path: Path) -> None:
    """A line that is there already is found at once."""
    with Machine(["sleep", "60"], tmp_path) as machine:
        machine.console_file.write_text("ready\n")
        begun = time.monotonic()
        machine.wait_for("ready", 5)
        assert time.monotonic() - begun < 1
