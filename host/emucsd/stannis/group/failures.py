"""Errors on their way from a worker to its coordinator: name, text, and the figures that may be told."""

from __future__ import annotations

import traceback
from typing import Any

from emucsd.errors import EmucsdError
from emucsd.stannis import errors
from emucsd.stannis.group.protocol import TEXT_LIMIT, Failure

_FACTS = ("batch", "needed", "limit", "pool", "index", "parameter", "step", "where", "free")

FATAL = (
    "SpecError",
    "FactoryFailed",
    "ModelFailed",
    "PlanError",
    "NoRanks",
    "NonFinite",
    "ParameterRefused",
    "BatchNormRefused",
    "LayoutDiffers",
    "DataFormat",
    "ShardMissing",
    "ShardDamaged",
    "DecoderMissing",
    "CheckpointMismatch",
    "VersionMismatch",
    "PrivacyBroken",
)
"""Errors that end the run: the others would meet them too, or the user asked for it. Any other costs the node alone."""


class WorkerFailed(errors.NodeFailed):
    """What a node's worker said when it failed.

    :ivar kind: the error's class, there
    :ivar facts: its figures: batch, needed, limit, pool, index, parameter
    :ivar where: file:line of the user's own code
    """

    def __init__(self, node: str, failure: Failure) -> None:
        super().__init__(failure.text, node, failure.trace)
        self.kind, self.facts, self.where = failure.error, failure.facts, failure.where

    @property
    def fatal(self) -> bool:
        """Whether the run can't go on, with or without this node."""
        return self.kind in FATAL


def failure_of(request: int, problem: BaseException, *, debug: bool = False) -> Failure:
    """An exception as a message. The text of one that isn't ours stays here: it may quote a sample or a file's name."""
    facts: dict[str, Any] = {}
    where = ""
    if isinstance(problem, EmucsdError):
        text = str(problem)
        facts = {
            n: v for n in _FACTS if isinstance(v := getattr(problem, n, None), int | float | str) and v not in ("", -1)
        }
        where = str(facts.pop("where", ""))
    else:
        text = f"{type(problem).__name__} at {_line(problem)}; --debug shows the traceback"
    trace = "".join(traceback.format_exception(problem)) if debug else ""
    return Failure(request, type(problem).__name__, text[:TEXT_LIMIT], where[:TEXT_LIMIT], facts, trace[-100_000:])


def error_of(node: str, failure: Failure) -> errors.StannisError:
    """The message as an exception again: memory errors as they are, for tuner and planner; else ``WorkerFailed``."""
    kind = _MEMORY.get(failure.error)
    if kind is None:
        return WorkerFailed(node, failure)
    batch, needed, limit = (
        int(n) if isinstance(n := failure.facts.get(name), int) else 0 for name in ("batch", "needed", "limit")
    )
    return kind(failure.text, batch, needed, limit, node)


_MEMORY: dict[str, type[errors.MemoryExceeded]] = {
    "MemoryExceeded": errors.MemoryExceeded,
    "DoesNotFit": errors.DoesNotFit,
}


def _line(problem: BaseException) -> str:
    frames = traceback.extract_tb(problem.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "no line"
