"""emucsd: the host's side of an emulated computational storage drive.

    from emucsd import Drive

    with Drive.start(profile="femu", size="4GiB") as drive:
        space = drive.namespace(1)
        space.write(0, bytes(space.lba_bytes))
        print(space.read(0, 1))

``Drive.open(name)`` attaches to a drive that ``emucsd up`` started. Names are loaded when they are used, so that
``import emucsd`` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emucsd.completion import Completion
    from emucsd.drive import Drive
    from emucsd.errors import EmucsdError, NvmeError
    from emucsd.namespace import Namespace
    from emucsd.outcome import Columns, Outcome
    from emucsd.queue import Queue
    from emucsd.table import Table

__all__ = ["Columns", "Completion", "Drive", "EmucsdError", "Namespace", "NvmeError", "Outcome", "Queue", "Table"]

_HOMES = {
    "Columns": "outcome",
    "Completion": "completion",
    "Drive": "drive",
    "EmucsdError": "errors",
    "Namespace": "namespace",
    "NvmeError": "errors",
    "Outcome": "outcome",
    "Queue": "queue",
    "Table": "table",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
