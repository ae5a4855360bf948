"""`emucsd bench vm`: a guest machine's own view, measured by `python -m emucsd_femu bench-vm`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from emucsd.bench.environment import environment
from emucsd.errors import EmucsdError
from emucsd.process import environment as child_environment


def run_vm_bench(*, rounds: int, seconds: float) -> dict[str, Any]:
    """Run it; its progress goes to standard error.

    :param rounds: of all disks and queue depths
    :param seconds: of each single run
    :raises EmucsdError: it can't be run here; it has said why
    """
    argv = [sys.executable, "-m", "emucsd_femu", "bench-vm", "--rounds", str(rounds), "--seconds", str(seconds)]
    before = environment()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=child_environment())
    if done.returncode:
        raise EmucsdError("the benchmark in a guest machine failed; the reason is above. `emucsd doctor` may help")
    result: dict[str, Any] = json.loads(done.stdout)
    now = environment()["load_average"]
    result["environment"] = {**before, "load_average_after": now, "guest": result.pop("guest")}
    return result
