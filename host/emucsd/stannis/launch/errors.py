"""Errors of starting and keeping a run.

StannisError
├── NodeFailed          a command on a node could not be started, or ended badly
├── RunFailed           the run ended without a result: what the coordinator or a worker said last; ``hint``: what to do
└── RunTaken            the run folder holds another run
"""

from __future__ import annotations

from emucsd.stannis.errors import StannisError


class RunFailed(StannisError):
    """A run ended without a result. :ivar hint: what to do next"""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


class RunTaken(StannisError):
    """A run folder is another run's, or holds no run where one is to go on."""
