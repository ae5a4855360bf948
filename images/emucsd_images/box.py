"""A Vagrant box: Debian 13 installed on a disk that boots, for `vagrant up` where none can be downloaded.

Made by mmdebstrap, as root; no loop device, no boot of anything. The disk is one ext4 filesystem behind GRUB, which is
put where a BIOS looks for it byte by byte: its first sector, then the rest before the partition. The box is for the
libvirt provider (and what else takes QEMU's disks); it has the packages of scripts/provision.sh.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from emucsd_images.debian import Progress, mirror
from emucsd_images.errors import ImageMissing

SUITE = "trixie"
LABEL = "emucsd"  # of the root filesystem: how GRUB, the kernel and fstab find it
DISK_GIB = 24  # of holes, but for some 1.2 GiB
SECTOR = 512
FIRST_SECTOR = 2048  # of the partition; GRUB lies between the first sector and this one
SYSTEM = (
    *("linux-image-amd64", "initramfs-tools", "grub-pc-bin", "grub-common", "systemd-sysv", "systemd-resolved", "udev"),
    *("dbus", "libpam-systemd", "openssh-server", "sudo", "rsync", "apt-utils"),
    *("less", "nano", "iputils-ping", "netbase", "zstd", "systemd-timesyncd"),
)
PROVISIONED = (  # what scripts/provision.sh would install: no wait for it in the machine
    *("python3", "python3-venv", "mmdebstrap", "debian-archive-keyring", "e2fsprogs", "xfsprogs", "fio", "fuse3"),
    *("ca-certificates", "iperf3", "iproute2", "kmod", "openssh-client", "procps", "util-linux", "libfuse2t64"),
)
_SECONDS = 1800
# no orphan_file and no metadata_csum_seed: GRUB reads this filesystem
_FEATURES = "^orphan_file,^metadata_csum_seed"
_HOOK = """\
set -eu
root=$1
cp {setup} "$root/tmp/box.sh"
chroot "$root" env LABEL={label} sh /tmp/box.sh
rm -rf "$root/tmp/box.sh" "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
cp "$root/boot/grub/i386-pc/boot.img" "$root/boot/grub/i386-pc/core.img" {work}
mkdir {work}/root
mount --bind "$root" {work}/root  # and not what is mounted in it
truncate -s {disk_bytes} {disk}
mke2fs -q -F -t ext4 -m 1 -L {label} -O {features} -E offset={offset},assume_storage_prezeroed=1,nodiscard \\
    -d {work}/root {disk} {blocks}k
umount {work}/root
"""
_METADATA = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GIB}
_DEFAULTS = (
    'Vagrant.configure("2") { |config| config.vm.provider(:libvirt) { |machine| machine.disk_bus = "virtio" } }\n'
)


def make(out: Path, *, progress: Progress = print) -> None:
    """Write the box file: some 2 minutes, and 3 GB beside it meanwhile.

    :raises ImageMissing: not root, a program is missing, or one of them failed; says which
    :raises PackagesMissing: no mirror of Debian is known
    """
    if os.geteuid() != 0:
        raise ImageMissing("to install Debian into a box takes root: sudo, or the box of a machine where you have it")
    for program, package in (("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("qemu-img", "qemu-utils")):
        if shutil.which(program, path=_path()) is None:
            raise ImageMissing(f"{program} is not installed: apt-get install {package}")
    begun = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="emucsd-box-", dir=out.parent) as name:
        work = Path(name)
        work.chmod(0o755)  # the namespace's users look into it
        progress(f"installing Debian {SUITE} for the box: a minute or more")
        _install(work)
        _boot_code(work)
        progress("packing the box")
        _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(work / "disk.raw"), str(work / "box.img")])
        draft = work / "box"
        _pack(draft, work / "box.img")
        draft.replace(out)
    progress(f"made {out} in {time.monotonic() - begun:.0f} s: {out.stat().st_size >> 20} MiB")


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _install(work: Path) -> None:
    """An installed root, on the disk ``disk.raw``, and GRUB's two files beside it."""
    disk_bytes = DISK_GIB << 30
    offset = FIRST_SECTOR * SECTOR
    setup = work / "setup.sh"
    setup.write_bytes((resources.files("emucsd_images") / "guest" / "box.sh").read_bytes())
    hook = work / "hook.sh"
    hook.write_text(
        _HOOK.format(
            setup=shlex.quote(str(setup)), work=shlex.quote(str(work)), disk=shlex.quote(str(work / "disk.raw")),
            label=LABEL, features=_FEATURES, disk_bytes=disk_bytes, offset=offset, blocks=(disk_bytes - offset) >> 10,
        )
    )  # fmt: skip
    _run(
        [
            "mmdebstrap", "--quiet", "--variant=minbase", "--format=null",
            f"--include={','.join(SYSTEM + PROVISIONED)}",
            '--aptopt=Acquire::Languages "none"', "--dpkgopt=force-unsafe-io",
            f'--customize-hook=sh {shlex.quote(str(hook))} "$1"',
            SUITE, "/dev/null", f"deb {mirror()} {SUITE} main",
        ]
    )  # fmt: skip


def _boot_code(work: Path) -> None:
    """GRUB and a partition table on the disk.

    boot.img loads one sector, the second of the disk, unless it is told otherwise; that sector, the head of core.img,
    loads the rest from the third on, and knows how long it is since grub-mkimage made it. So both are only copied.
    """
    boot = (work / "boot.img").read_bytes()[:440]
    core = (work / "core.img").read_bytes()
    if len(core) > (FIRST_SECTOR - 1) * SECTOR:
        raise ImageMissing(f"GRUB's core is {len(core)} bytes and does not fit before sector {FIRST_SECTOR}")
    disk = work / "disk.raw"
    sectors = disk.stat().st_size // SECTOR - FIRST_SECTOR
    # active, and by LBA only (cylinders, heads and sectors at their limit); 83h: Linux
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", FIRST_SECTOR, sectors)
    with disk.open("r+b") as file:
        file.write(boot + b"emuc\0\0" + entry + bytes(48) + b"\x55\xaa")
        file.write(core)


def _pack(out: Path, image: Path) -> None:
    """A box is a gzipped tar of the disk, a description and a Vagrantfile with defaults."""
    with tarfile.open(out, "w:gz", compresslevel=1) as box:
        for name, text in (("metadata.json", json.dumps(_METADATA) + "\n"), ("Vagrantfile", _DEFAULTS)):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            box.addfile(member, io.BytesIO(text.encode()))
        box.add(image, "box.img")


def _run(words: Sequence[str]) -> None:
    environment = {**os.environ, "PATH": _path()}
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-12:])
        raise ImageMissing(f"{words[0]} failed with exit code {done.returncode}\n{shlex.join(words)}\n{tail}")
