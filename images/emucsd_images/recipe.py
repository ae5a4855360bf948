"""Recipes: what a machine's image is made of, one TOML file each, merged with the one that it extends."""

from __future__ import annotations

import hashlib
import json
import tomllib
from importlib import resources
from typing import Any, NamedTuple

from emucsd_images.debian import Packages
from emucsd_images.errors import RecipeError

NAMES = ("host-small", "isp-small", "host", "isp")
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
# the builder's own files that decide what is in an image: a change in one of them makes new images
_SOURCES = ("recipe.py", "root.py", "disk.py", "initrd.py", "kernel.py", "modules.py", "bytecode.py", "initramfs.py")
_PACKAGE = "emucsd_images"


class Recipe(NamedTuple):
    """One image. Paths are relative to its root; patterns are fnmatch's, over the whole path."""

    name: str
    architecture: str  # QEMU's name: x86_64, aarch64
    packages: tuple[str, ...]
    exclude: tuple[str, ...]  # patterns of what is left out
    modules: tuple[str, ...]  # kernel modules on the disk
    initrd_modules: tuple[str, ...]  # kernel modules before the disk, in order
    console: str
    append: str  # kernel command line, without the console
    disk_mib: int
    links: dict[str, str]  # path -> target
    folders: dict[str, str]  # path -> mode, octal
    scripts: dict[str, str]  # file in guest/ -> path
    files: dict[str, str]  # path -> text

    @property
    def debian(self) -> str:
        """Debian's name of the architecture."""
        return DEBIAN[self.architecture]

    @property
    def triplet(self) -> str:
        """Debian's name of the architecture's library folder."""
        return f"{self.architecture}-linux-gnu"

    @property
    def unpacked(self) -> Packages:
        """The tree of packages that the image is made from."""
        return Packages(f"root-{self.name}", self.packages, architecture=self.debian)

    @property
    def digest(self) -> str:
        """Names this image: another one for another recipe, script or builder."""
        hashed = hashlib.blake2b(json.dumps([self, self.unpacked.folder.name]).encode(), digest_size=6)
        for source in _SOURCES:
            hashed.update((resources.files(_PACKAGE) / source).read_bytes())
        for script in sorted([*self.scripts, "init.sh"]):
            hashed.update(guest_script(script))
        return hashed.hexdigest()


def guest_script(name: str) -> bytes:
    """A script that runs in the machine."""
    return (resources.files(_PACKAGE) / "guest" / name).read_bytes()


def load(name: str) -> Recipe:
    """:raises RecipeError: no such recipe, or a wrong one"""
    merged = _merged(name)
    merged.pop("extends", None)
    merged["name"] = name
    architecture = merged.get("architecture")
    if architecture not in DEBIAN:
        raise RecipeError(f"recipe {name}: architecture {architecture!r}; known are {', '.join(DEBIAN)}")
    words = {"debian": DEBIAN[architecture], "triplet": f"{architecture}-linux-gnu"}
    merged["packages"] = [package.format_map(words) for package in merged["packages"]]
    merged["links"] = {path.format_map(words): target.format_map(words) for path, target in merged["links"].items()}
    unknown = merged.keys() - set(Recipe._fields)
    missing = set(Recipe._fields) - merged.keys()
    if unknown or missing:
        raise RecipeError(f"recipe {name}: unknown {sorted(unknown)}, missing {sorted(missing)}")
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in merged.items()}
    return Recipe(**fields)


def _merged(name: str) -> dict[str, Any]:
    """Lists and kernel words grow, tables are merged, everything else is replaced."""
    source = resources.files(_PACKAGE) / "recipes" / f"{name}.toml"
    if not source.is_file():
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(NAMES)}")
    own = tomllib.loads(source.read_text())
    if "extends" not in own:
        return own
    merged = _merged(own["extends"])
    for key, value in own.items():
        before = merged.get(key)
        if isinstance(value, list):
            merged[key] = [*(before or []), *(item for item in value if item not in (before or []))]
        elif isinstance(value, dict):
            merged[key] = {**(before or {}), **value}
        elif key == "append" and before:
            merged[key] = f"{before} {value}"
        else:
            merged[key] = value
    return merged
