"""Where the client's compiled code is kept between runs. Import it before anything of ``emucsd_wire.words``.

Numba's own cache does not see that a function called from another file has changed, so each state of the sources has a
folder of its own. It is chosen for this process alone: a drive process that is started from here chooses its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numba

import emucsd_wire
from emucsd_wire import paths

_KEPT_SECONDS = 30 * 86_400
_CLIENT = ("ring.py", "poll.py")


def key() -> str:
    """Hash that names this state of the sources."""
    digest = hashlib.blake2b(digest_size=12)
    for word in (sys.version, os.uname().machine, *map(version, ("numba", "llvmlite", "numpy"))):
        digest.update(word.encode() + b"\0")
    wire = sorted(Path(emucsd_wire.__file__ or "").parent.glob("*.py"))
    for path in [*wire, *(Path(__file__).with_name(name) for name in _CLIENT)]:
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def use_cache() -> Path | None:
    """Choose the folder, unless NUMBA_CACHE_DIR has; remove those unused for a month. :returns: the folder"""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return None
    root = paths.cache_root() / "client"
    folder = root / key()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    numba.config.CACHE_DIR = str(folder)
    for other in root.iterdir():
        if other.stat().st_mtime < time.time() - _KEPT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    return folder


FOLDER = use_cache()
