"""The record of a run: what it ran on, what was planned, what came of it, and what crossed where."""

from __future__ import annotations

import contextlib
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emucsd.bench.environment import environment
from emucsd.errors import EmucsdError
from emucsd.stannis import fields
from emucsd.stannis.group.cluster import Cluster
from emucsd.stannis.launch.fleet import Fleet
from emucsd.stannis.launch.request import Request
from emucsd.stannis.launch.run import Run
from emucsd.stannis.launch.standing import Standing

VERSION = 1


def make(
    request: Request,
    fleet: Fleet,
    cluster: Cluster,
    standing: Standing,
    run: Run,
    begun: float,
    failure: EmucsdError | None,
    privacy: dict[str, Any],
) -> dict[str, Any]:
    """The record, as plain values."""
    how = dict(standing.final) or {"how": "failed"}
    if failure is not None:
        how |= {"how": "failed", "error": type(failure).__name__, "text": str(failure)}
    return {
        "version": VERSION,
        "ended": how,
        "begun": begun,
        "seconds": round(time.time() - begun, 3),
        "environment": {**environment(), "emucsd": version("emucsd"), "torch": _torch()},
        "request": fields.dump(request),
        "nodes": fleet.record(),
        "starts": run.starts,
        "cluster": fields.dump(cluster),
        "training": standing.record(),
        "privacy": privacy,
    }


def _torch() -> str | None:
    with contextlib.suppress(ModuleNotFoundError):
        return version("torch")
    return None


def write(path: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(path)
