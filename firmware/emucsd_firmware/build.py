"""Where the compiled firmware is kept between runs. Import it, and call ``use_cache``, before anything imports numba.

Numba's own cache looks at the file of each function, not at what the function calls: edit a callee in another file and
the caller's stale code is run. So each state of the sources has a folder of its own, named by a hash over the firmware,
the wire declarations, the user's policy file, and the versions and the processor that the code was compiled for.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from emucsd_wire import paths

POLICY_VARIABLE = "EMUCSD_FIRMWARE"
CACHE_VARIABLE = "NUMBA_CACHE_DIR"
KEPT = 4  # builds, besides those of the last week
KEPT_SECONDS = 7 * 86_400
WARM = "warm"  # marker in a folder whose code is complete

_PACKAGES = ("emucsd_wire", "emucsd_firmware")
_FIRMWARE = Path(__file__).resolve().parent


class Build(NamedTuple):
    """One compiled state of the firmware."""

    folder: Path
    warm: bool  # everything was compiled here before: starting takes seconds, not tens of them

    def mark_warm(self) -> None:
        """All of it is compiled and saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / WARM).touch()


def sources() -> list[Path]:
    """Every Python file that compiled code may come from."""
    return [path for name in _PACKAGES for path in sorted((_FIRMWARE.parent / name).rglob("*.py"))]


def processor() -> str:
    """The processor's name and abilities, as far as the system tells: code is compiled for this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def key(policy: Path | None = None) -> str:
    """Hash that names the build. :param policy: the user's policy file"""
    digest = hashlib.blake2b(digest_size=12)
    for word in (sys.version, platform.machine(), processor(), *map(_version, ("numba", "llvmlite", "numpy"))):
        digest.update(word.encode() + b"\0")
    for path in sources():
        digest.update(f"{path.relative_to(_FIRMWARE.parent)}\0".encode() + path.read_bytes() + b"\0")
    if policy is not None:
        digest.update(f"{policy.resolve()}\0".encode() + (policy.read_bytes() if policy.is_file() else b""))
    return digest.hexdigest()


def cache_root() -> Path:
    """Folder of all builds."""
    return paths.cache_root() / "firmware"


def prune(root: Path, keep: Path) -> list[Path]:
    """Remove builds that nobody has used for a week, beyond the newest few. :returns: what went"""
    if not root.is_dir():
        return []
    folders = [(path.stat().st_mtime, path) for path in root.iterdir() if path.is_dir() and path != keep]
    old = [path for used, path in sorted(folders, reverse=True)[KEPT:] if used < time.time() - KEPT_SECONDS]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return old


def use_cache(policy: str | Path | None = None) -> Build:
    """Choose this build's folder, and the policy file, for this process and those it starts.

    A NUMBA_CACHE_DIR that is set already stays: then its owner answers for its being fresh.

    :param policy: the user's policy file; None: $EMUCSD_FIRMWARE, if that is set
    :raises RuntimeError: numba was imported before, and would not see the choice
    """
    if policy is not None:
        os.environ[POLICY_VARIABLE] = str(Path(policy).resolve())
    named = os.environ.get(POLICY_VARIABLE)
    if given := os.environ.get(CACHE_VARIABLE):
        return Build(Path(given), (Path(given) / WARM).exists())
    if "numba" in sys.modules:
        raise RuntimeError("numba is imported already: call emucsd_firmware.build.use_cache() first")
    root = cache_root()
    folder = root / key(Path(named) if named else None)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    prune(root, folder)
    os.environ[CACHE_VARIABLE] = str(folder)
    return Build(folder, (folder / WARM).exists())
