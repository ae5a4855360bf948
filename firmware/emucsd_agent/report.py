"""What the engine has and how busy it is."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emucsd_agent.governor import Governor
from emucsd_agent.jobs import Jobs

_STARTED = time.monotonic()


def memory() -> tuple[int, int]:
    """(total, available) bytes of this machine."""
    with open("/proc/meminfo") as file:
        fields = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in file}
    return fields["MemTotal"], fields.get("MemAvailable", fields["MemFree"])


def report(jobs: Jobs, governor: Governor, more: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values. Memory is the engine's: what the machine has, or what the profile gives it, the less.

    :param more: of the tunnel and the drive
    """
    engine = governor.engine
    total, available = memory()
    held = governor.resident()
    disk = shutil.disk_usage(jobs.folder)
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "cores": engine.cores,
        "cpu_share": engine.cpu_share,
        "throttle": governor.throttle,
        "throttled_seconds": round(governor.throttled_seconds, 3),
        "load": list(os.getloadavg()),
        "memory": {
            "total_bytes": min(total, engine.memory_bytes),
            "available_bytes": max(min(available, engine.memory_bytes - held), 0),
            "jobs_bytes": held,
        },
        "disk": {"folder": str(Path(jobs.folder)), "total_bytes": disk.total, "free_bytes": disk.free},
        "uptime_seconds": uptime,
        "agent_seconds": round(time.monotonic() - _STARTED, 3),
        "jobs": jobs.counts(),
        **more,
    }
