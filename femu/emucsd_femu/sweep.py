"""What testbeds left behind whose supervisor was killed: folders, disks, and a machine that outlived it after all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def held(folder: Path) -> bool:
    """Whether a live process holds a runtime folder."""
    try:
        with open(folder / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def sweep(root: Path) -> list[str]:
    """Remove what dead testbeds left below ``root``. :returns: their names"""
    swept: list[str] = []
    for record in sorted(root.glob("*/testbed.json")) if root.is_dir() else []:
        folder = record.parent
        if held(folder):
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            _remove(folder, json.loads(record.read_text()))
        shutil.rmtree(folder, ignore_errors=True)
        swept.append(folder.name)
        log.info("swept %s, whose supervisor is dead", folder)
    return swept


def _remove(folder: Path, about: dict[str, Any]) -> None:
    for machine in about["machines"].values():
        if machine["pid"] is not None and _is_ours(machine["pid"], folder):
            os.kill(machine["pid"], signal.SIGKILL)
        disk = Path(machine["disk"])
        disk.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            disk.parent.rmdir()
    for drive in about["drives"]:
        runtime = Path(drive["runtime"])
        if not held(runtime):  # one that is still writing its last checkpoint keeps its folder
            shutil.rmtree(runtime, ignore_errors=True)


def _is_ours(pid: int, folder: Path) -> bool:
    """A process id may be another process's by now: ours has the testbed's folder on its command line."""
    with contextlib.suppress(OSError):
        return os.fsencode(folder) + b"/" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
