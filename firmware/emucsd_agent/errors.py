"""Errors of the agent.

AgentError              base; ``kind`` is what a client is told
├── Refused             a request that can't be granted: token, unknown job, no room, too many
├── StartFailed         a job's program could not be started
└── SetupFailed         the agent itself can't run here: its folder, address, namespaces or drive
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of everything that the agent raises on purpose."""

    @property
    def kind(self) -> str:
        """What clients are told."""
        return type(self).__name__


class Refused(AgentError):
    """The request is well-formed and can't be granted. ``kind`` says why, in one word."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self._kind = kind

    @property
    def kind(self) -> str:
        return self._kind


class StartFailed(AgentError):
    """The program does not exist, is not executable, or the system refused it."""


class SetupFailed(AgentError):
    """The agent can't run; the text says what to change."""
