"""``python -m emucsd_femu compile``: the firmware into the cache, as the first drive would, with no limit on its time.

A drive that is started and waited for has ten minutes to compile; a processor that is emulated or busy may take longer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from emucsd_femu.drives import environment
from emucsd_femu.errors import SettingsError

_STOP_SECONDS = 600.0
_TAIL = 2000


def compiled(folder: Path) -> None:
    """Start a small drive in a folder, wait until it serves, end it.

    :raises SettingsError: it did not serve; says why
    """
    ready, theirs = os.pipe()
    words = [
        sys.executable, "-m", "emucsd_femu", "serve", "--name", "compile", "--runtime", str(folder / "run"),
        "--store", str(folder / "store"), "--profile", "null", "--size", "64MiB", "--ready-fd", str(theirs),
    ]  # fmt: skip
    (folder / "run").mkdir()
    with open(theirs, "wb"), open(folder / "output", "w+b") as output:
        drive = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), pass_fds=(theirs,)
        )
    with open(ready) as told:
        try:
            said = told.readline()
        finally:
            drive.terminate()
            drive.wait(_STOP_SECONDS)
    if not said or not json.loads(said)["ok"]:
        tail = (folder / "output").read_text(errors="replace")[-_TAIL:]
        raise SettingsError(f"the drive did not start: {said or f'exit code {drive.returncode}'}\n{tail}")


def main(arguments: Sequence[str]) -> int:
    """Compile what is not compiled yet, and say how long it took."""
    parser = argparse.ArgumentParser(
        prog="python -m emucsd_femu compile", description="Compile the firmware into the cache, however long it takes."
    )
    parser.parse_args(arguments)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="emucsd-") as name:
        try:
            compiled(Path(name))
        except SettingsError as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
    print(f"the firmware is compiled ({time.monotonic() - begun:.0f} s)")
    return 0
