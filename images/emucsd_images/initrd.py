"""A machine's first filesystem: a static busybox, the few modules that its disk needs, and our init."""

from __future__ import annotations

from pathlib import Path

from emucsd_images.initramfs import Initramfs
from emucsd_images.modules import Modules
from emucsd_images.recipe import Recipe, guest_script

_APPLETS = ("sh", "mount", "insmod", "cut", "usleep", "cp", "cmp", "rm", "switch_root", "poweroff", "echo")


def pack(recipe: Recipe, tree: Path, modules: Modules) -> bytes:
    """The archive. It is not compressed: it is small, and unpacking would be the emulated processor's work."""
    archive = Initramfs()
    archive.console()
    archive.program("bin/busybox", tree / "usr/bin/busybox")
    for applet in _APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    for folder in ("proc", "root"):
        archive.folder(folder)
    order = modules.closure(recipe.initrd_modules)
    for name in order:
        archive.file(f"modules/{name}.ko", modules.content(name))
    archive.file("modules/order", "".join(f"{name}.ko\n" for name in order).encode())
    archive.file("init", guest_script("init.sh"), 0o755)
    return archive.pack()
