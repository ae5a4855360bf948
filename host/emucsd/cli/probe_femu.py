"""Whether there is a FEMU build, for `emucsd doctor`."""

from __future__ import annotations

import json
import subprocess
import sys

from emucsd.cli.finding import GOOD, MISSING, Finding
from emucsd.process import environment


def femu() -> Finding:
    """FEMU's binary, as `python -m emucsd_femu femu status` finds it; nothing but the comparison needs it."""
    needed_for = "the testbed on FEMU's QEMU, and FEMU's own SSD beside a drive (docs/femu.md)"
    argv = [sys.executable, "-m", "emucsd_femu", "femu", "status", "--json"]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), check=False
    )
    step = "python -m emucsd_femu femu build fetches and compiles it"
    try:
        told = json.loads(done.stdout)
    except ValueError:
        return Finding("FEMU", MISSING, (done.stderr.strip().splitlines() or ["no answer"])[-1], needed_for, step)
    if not told["there"]:
        return Finding("FEMU", MISSING, told["why"].partition(":")[0], needed_for, step)
    return Finding("FEMU", GOOD, f"QEMU {told['version']}: {told['why']}", needed_for)
