"""Kernel modules of an image: those that are wanted and what they need, uncompressed, with their index.

Uncompressed, because the machine that loads them is emulated: xz would be its work at every boot.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from emucsd_images.errors import RecipeError
from emucsd_images.tools import Tools

_INDEX = ("modules.builtin", "modules.builtin.modinfo", "modules.order")


class Modules:
    """The modules of one unpacked kernel package.

    :param root: the tree
    """

    def __init__(self, root: Path) -> None:
        found = sorted((root / "usr/lib/modules").iterdir())
        if len(found) != 1:
            raise RecipeError(f"{root} has {len(found)} kernels, one is needed")
        self.folder = found[0]
        self.version = self.folder.name
        self._files = {_name(path): path for path in (self.folder / "kernel").rglob("*.ko*")}
        built_in = (self.folder / "modules.builtin").read_text().split()
        self._built_in = {_name(Path(path)) for path in built_in}
        self._content: dict[str, bytes] = {}

    def content(self, name: str) -> bytes:
        """A module as the kernel takes it."""
        if name not in self._content:
            data = self._files[name].read_bytes()
            self._content[name] = lzma.decompress(data) if self._files[name].suffix == ".xz" else data
        return self._content[name]

    def closure(self, wanted: Sequence[str]) -> list[str]:
        """The wanted ones and all that they need, in an order in which they can be loaded.

        What is built into the kernel, or is not made for this architecture at all, is left out.
        """
        order: dict[str, None] = {}
        for name in wanted:
            self._add(name.replace("-", "_"), order, ())
        return list(order)

    def path(self, name: str) -> Path:
        """Where a module lies, below the kernel's folder."""
        path = self._files[name].relative_to(self.folder)
        return path.with_suffix("") if path.suffix == ".xz" else path

    def write(self, names: Sequence[str], target: Path, tools: Tools) -> None:
        """Copy modules below ``target`` (a root) and index them there."""
        folder = target / "usr/lib/modules" / self.version
        for name in names:
            path = folder / self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content(name))
        for index in _INDEX:
            (folder / index).write_bytes((self.folder / index).read_bytes())
        if not (target / "lib").exists():
            (target / "lib").symlink_to("usr/lib")  # where depmod looks
        tools.run("usr/sbin/depmod", "-b", str(target), self.version)
        (target / "lib").unlink()

    def _add(self, name: str, order: dict[str, None], above: tuple[str, ...]) -> None:
        if name in order or name in above or name in self._built_in or name not in self._files:
            return
        for needed in _needs(self.content(name)):
            self._add(needed, order, (*above, name))
        order[name] = None


def _needs(module: bytes) -> Iterator[str]:
    """What a module's own information says it needs, hard and soft."""
    for text in re.findall(rb"\0depends=([^\0]*)\0", module):
        yield from filter(None, text.decode().replace("-", "_").split(","))
    for text in re.findall(rb"\0softdep=pre: ([^\0]*)\0", module):
        yield from text.decode().replace("-", "_").split()


def _name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")
