"""The Vagrant box: what a BIOS finds on its disk, what Vagrant finds in its file, and which packages it has."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from emucsd_images import __main__ as command
from emucsd_images import box
from emucsd_images.errors import ImageMissing

ROOT = Path(__file__).parents[2]
SIZE = 64 << 20


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a disk and GRUB's two files, as the installation leaves it."""
    (tmp_path / "boot.img").write_bytes(bytes(range(256)) * 2)
    (tmp_path / "core.img").write_bytes(b"C" * 30_000)
    with (tmp_path / "disk.raw").open("wb") as disk:
        disk.truncate(SIZE)
        disk.seek(box.FIRST_SECTOR * box.SECTOR)
        disk.write(b"filesystem")
    return tmp_path


def test_boot_code_is_where_a_bios_looks(work: Path) -> None:
    """The first sector is GRUB's and a partition table, the rest of GRUB follows, the partition is untouched."""
    box._boot_code(work)
    disk = (work / "disk.raw").read_bytes()
    assert len(disk) == SIZE
    assert disk[:440] == (bytes(range(256)) * 2)[:440]
    assert disk[510:512] == b"\x55\xaa"
    active, _, kind, _, first, count = struct.unpack("<B3sB3sII", disk[446:462])
    assert (active, kind, first) == (0x80, 0x83, box.FIRST_SECTOR)
    assert (first + count) * box.SECTOR == SIZE
    assert disk[462:510] == bytes(48)
    assert disk[512 : 512 + 30_000] == b"C" * 30_000
    assert disk[box.FIRST_SECTOR * box.SECTOR :][:10] == b"filesystem"


def test_grub_that_is_too_long_is_refused(work: Path) -> None:
    """It must end before the partition begins."""
    (work / "core.img").write_bytes(bytes(box.FIRST_SECTOR * box.SECTOR))
    with pytest.raises(ImageMissing, match="does not fit before sector 2048"):
        box._boot_code(work)


def test_a_box_is_what_vagrant_reads(work: Path) -> None:
    """A gzipped tar: the disk as box.img, metadata with provider, format and size in GiB, a Vagrantfile."""
    box._pack(work / "box", work / "disk.raw")
    with tarfile.open(work / "box", "r:gz") as packed:
        assert packed.getnames() == ["metadata.json", "Vagrantfile", "box.img"]
        described = packed.extractfile("metadata.json")
        assert described is not None
        assert json.load(described) == {"provider": "libvirt", "format": "qcow2", "virtual_size": box.DISK_GIB}


def test_the_box_is_provisioned_already() -> None:
    """Every package that scripts/provision.sh installs on Debian 13 is in it: no wait for them in the machine."""
    text = (ROOT / "scripts/provision.sh").read_text()
    wanted = set(" ".join(re.findall(r'^wanted="(.*)"$', text, re.MULTILINE)).split()) - {"$wanted", "$fuse"}
    assert wanted | {"libfuse2t64"} == set(box.PROVISIONED)
    assert not set(box.SYSTEM) & set(box.PROVISIONED)


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is downloaded: the program and its package."""
    monkeypatch.setattr(box, "_path", lambda: "/nowhere")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(ImageMissing, match="mmdebstrap is not installed: apt-get install mmdebstrap"):
        box.make(tmp_path / "emucsd.box")
    assert not list(tmp_path.iterdir())


def test_without_root_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing packages needs their scripts run as root."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ImageMissing, match="takes root"):
        box.make(tmp_path / "emucsd.box")


def test_dry_run_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`box --dry-run` tells the packages and how to use the box."""
    out = tmp_path / "emucsd.box"
    assert command.main(["box", "--out", str(out), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "openssh-server" in told["packages"]
    assert f"EMUCSD_BOX_URL={out}" in told["use"]
    assert not out.exists()


def test_the_setup_script_is_a_shells() -> None:
    """What runs in the box while it is made parses."""
    script = ROOT / "images/emucsd_images/guest/box.sh"
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=30)
