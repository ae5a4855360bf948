"""Images: what a machine boots. Made from a recipe, kept in the user's cache under a hash of it, whole or not there."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from emucsd_images import bytecode, disk, initrd, kernel
from emucsd_images.debian import tree
from emucsd_images.errors import ImageMissing, PackagesMissing
from emucsd_images.modules import Modules
from emucsd_images.recipe import Recipe, load
from emucsd_images.root import Root
from emucsd_images.tools import Tools, tools
from emucsd_wire.paths import cache_root

Progress = Callable[[str], None]


class Image(NamedTuple):
    """What QEMU takes to boot a machine."""

    name: str
    architecture: str  # "x86_64" or "aarch64"
    kernel: Path
    initrd: Path
    disk: Path  # raw ext4, the root filesystem; never written to: put an overlay on it
    append: str  # the kernel command line that it needs
    folder: Path


def image(name: str, *, build: bool = True, progress: Progress = print) -> Image:
    """An image, made first where it is not there yet.

    :param name: host-small, isp-small, host, isp
    :param build: False: only look
    :raises RecipeError: no such recipe
    :raises ImageMissing: it is not there and can't be made, or was not asked for
    """
    recipe = load(name)
    folder = image_folder(recipe)
    if not folder.is_dir():
        if not build:
            raise ImageMissing(f"image {name} is not there: python -m emucsd_images build {name}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # somebody else may be making it
            if not folder.is_dir():
                _build(recipe, folder, progress)
    return Image(
        name, recipe.architecture, folder / "kernel", folder / "initrd", folder / "disk.raw",
        f"console={recipe.console} {recipe.append}", folder,
    )  # fmt: skip


def image_folder(recipe: Recipe) -> Path:
    """Where a recipe's image is, or will be."""
    return cache_root() / f"image-{recipe.name}-{recipe.digest}"


def _build(recipe: Recipe, folder: Path, progress: Progress) -> None:
    begun = time.monotonic()
    draft = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        helpers = tools(progress=progress)
        unpacked = tree(recipe.unpacked, progress=progress)
        progress(f"making image {recipe.name}")
        draft.mkdir()
        _fill(recipe, unpacked, draft, helpers)
        draft.rename(folder)
    except PackagesMissing as problem:
        raise ImageMissing(f"image {recipe.name} can't be made: {problem}") from problem
    except OSError as problem:
        raise ImageMissing(f"image {recipe.name} can't be made in {draft}: {problem}") from problem
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    progress(f"made image {recipe.name} in {time.monotonic() - begun:.0f} s: {folder}")


def _fill(recipe: Recipe, unpacked: Path, draft: Path, helpers: Tools) -> None:
    modules = Modules(unpacked)
    extra = draft / "extra"
    modules.write(modules.closure([*recipe.initrd_modules, *recipe.modules]), extra, helpers)
    root = Root()
    root.tree(unpacked, recipe.exclude)
    root.tree(extra)
    python = [unpacked / path for path in root.entries if path.startswith("usr/lib/python3") and path.endswith(".py")]
    for path, content in bytecode.compiled(python, unpacked, "/", helpers).items():
        root.file(path, content)
    root.recipe(recipe)
    disk.write(root, draft / "disk.raw", recipe.disk_mib, helpers)
    shutil.rmtree(extra)
    (draft / "initrd").write_bytes(initrd.pack(recipe, unpacked, modules))
    kernel.write(unpacked / "boot" / f"vmlinuz-{modules.version}", draft / "kernel", helpers)
    told = {"name": recipe.name, "architecture": recipe.architecture, "kernel": modules.version, "made": time.time()}
    (draft / "image.json").write_text(json.dumps(told) + "\n")
