"""The smoke test's guest: Debian's cloud kernel (nvme built in) and a busybox, unpacked and never installed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from emucsd_images.debian import Packages, tree
from emucsd_images.initramfs import Initramfs

PACKAGES = Packages("guest-root", ("linux-image-cloud-amd64", "busybox-static"), architecture="amd64")
INIT = Path(__file__).with_name("smoke_init.sh")


class Guest(NamedTuple):
    """What QEMU boots."""

    kernel: Path
    initrd: Path


def make(folder: Path, pattern: bytes) -> Guest:
    """Find the kernel and pack the first filesystem, with what the guest is to write in it.

    :raises PackagesMissing: the packages can't be had
    """
    root = tree(PACKAGES, progress=print)
    archive = Initramfs()
    archive.console()
    archive.program("bin/busybox", root / "usr/bin/busybox")
    archive.file("init", INIT.read_bytes(), 0o755)
    archive.file("pattern", pattern)
    initrd = folder / "initrd"
    initrd.write_bytes(archive.pack())
    (kernel,) = sorted((root / "boot").glob("vmlinuz-*"))
    return Guest(kernel, initrd)
