"""Errors of jobs on the ISP engine.

EmucsdError
└── IspError
    ├── IspUnreachable      no agent answers there
    ├── IspRefused          the agent said no; ``kind``: BadToken, NoJob, NoSpace, TooMany, Running, Violation
    ├── IspLost             the connection ended in the middle; a job that was to be kept can be attached to again
    ├── IspUnavailable      this machine can't run the ``local`` engine; the text says what to change
    └── JobFailed           a job ended otherwise than with status 0; ``result`` and ``log`` tell
        ├── JobCancelled    ... because somebody cancelled it
        └── LimitExceeded   ... because it passed a limit: ``result.reason`` is seconds, memory or output
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emucsd.errors import EmucsdError

if TYPE_CHECKING:
    from emucsd.isp.job import Result


class IspError(EmucsdError):
    """Base of what the ISP engine's client raises."""


class IspUnreachable(IspError):
    """Nothing accepts connections where the agent should, or no way leads there."""


class IspRefused(IspError):
    """The agent understood and said no."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"the ISP engine refused: {text}")
        self.kind = kind


class IspLost(IspError):
    """The connection ended before the job did, or broke the protocol."""


class IspUnavailable(IspError):
    """The ``local`` engine needs something that this machine does not give."""


class JobFailed(IspError):
    """The job ended otherwise than with status 0.

    :ivar result: how
    :ivar log: the end of what it printed
    """

    def __init__(self, name: str, result: Result, log: str) -> None:
        how = f"ended with status {result.status}" if result.reason == "exited" else f"{result.reason}: {result.text}"
        tail = f"\n{log}" if log else "; it printed nothing"
        super().__init__(f"{name} {how}{tail}")
        self.result, self.log = result, log


class JobCancelled(JobFailed):
    """Somebody cancelled it."""


class LimitExceeded(JobFailed):
    """It passed one of its limits, or the engine's memory."""


def job_error(name: str, result: Result, log: str) -> JobFailed:
    """The typed error of a job that did not end well."""
    kinds = {"cancelled": JobCancelled, "seconds": LimitExceeded, "memory": LimitExceeded, "output": LimitExceeded}
    return kinds.get(result.reason, JobFailed)(name, result, log)
