"""Programs that images are made with: Debian 13's own, from an unpacked tree, run through that tree's own loader.

So an image comes out the same on any build machine: mke2fs is new enough to take an archive (which makes every file
root's without root rights), depmod is there, and Python is the version that runs in the machines (its bytecode is the
same on every architecture).
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from emucsd_images.debian import Packages, Progress, tree
from emucsd_images.errors import ImageMissing

log = logging.getLogger(__name__)

_LOADER = {"x86_64": "usr/lib64/ld-linux-x86-64.so.2", "aarch64": "usr/lib/ld-linux-aarch64.so.1"}
_SECONDS = 600
PACKAGES = Packages("image-tools", ("e2fsprogs", "kmod", "libarchive13t64", "python3", "zstd"))


class Tools(NamedTuple):
    """The unpacked tree."""

    root: Path

    def command(self, program: str, *words: str) -> list[str]:
        """How to run one of its programs, e.g. ``usr/sbin/mke2fs``."""
        libraries = self.root / "usr/lib" / f"{platform.machine()}-linux-gnu"
        loader = self.root / _LOADER[platform.machine()]
        return [str(loader), "--library-path", str(libraries), str(self.root / program), *words]

    def start(
        self, program: str, words: Sequence[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one; its input is a pipe, its complaints are kept in another."""
        return subprocess.Popen(
            self.command(program, *words),
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=self._environment(environment),
        )  # fmt: skip

    def run(self, program: str, *words: str, environment: dict[str, str] | None = None) -> bytes:
        """Run one to its end. :returns: its output :raises ImageMissing: it failed"""
        done = subprocess.run(
            self.command(program, *words), stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS,
            env=self._environment(environment),
        )  # fmt: skip
        if done.returncode:
            raise failed(program, done.returncode, done.stderr)
        return done.stdout

    def python(self, *words: str, environment: dict[str, str] | None = None) -> bytes:
        """Run the machines' Python. :raises ImageMissing: it failed"""
        home = {"PYTHONHOME": str(self.root / "usr"), **(environment or {})}
        return self.run("usr/bin/python3", *words, environment=home)

    def _environment(self, more: dict[str, str] | None) -> dict[str, str]:
        return {**{key: os.environ[key] for key in ("PATH", "TMPDIR") if key in os.environ}, **(more or {})}


def failed(program: str, status: int, words: bytes | IO[bytes]) -> ImageMissing:
    """What to raise when a tool failed."""
    text = words if isinstance(words, bytes) else words.read()
    tail = "\n".join(text.decode(errors="replace").splitlines()[-5:])
    return ImageMissing(f"{Path(program).name} failed with exit code {status}; is there space left?\n{tail}")


def tools(*, build: bool = True, progress: Progress = log.info) -> Tools:
    """The tools, unpacked first where they are not there yet. :raises PackagesMissing: they can't be had"""
    return Tools(tree(PACKAGES, build=build, progress=progress))
