"""The Linux inside the drive: jobs on the ISP engine, from the host.

    from emucsd.isp import connect

    with connect("testbed") as isp:
        job = isp.run(["python3", "train.py"], inputs={"train.py": Path("train.py")}, outputs=["model.bin"])
        for line in job:
            print(line)
        model = job.outputs["model.bin"]

Names are loaded when they are used: the agent, which runs on a small machine, shares ``emucsd.isp.protocol`` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emucsd.isp.client import Isp
    from emucsd.isp.disk import Disk
    from emucsd.isp.job import Job, Result
    from emucsd.isp.local import LocalEngine
    from emucsd.isp.protocol import Limits
    from emucsd.isp.testbed import connect

__all__ = ["Disk", "Isp", "Job", "Limits", "LocalEngine", "Result", "connect"]

_HOMES = {
    "Disk": "disk",
    "Isp": "client",
    "Job": "job",
    "Limits": "protocol",
    "LocalEngine": "local",
    "Result": "job",
    "connect": "testbed",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
