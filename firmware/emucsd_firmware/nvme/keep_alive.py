"""Keep Alive (Base 3.9): a host that asked for it must be heard from in time."""

from __future__ import annotations

from collections.abc import Callable

MS = 1_000_000


class KeepAlive:
    """One controller's timer, on the wall clock: it is about the host's life, not about modelled time."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._timeout = 0
        self.deadline: int | None = None

    def start(self, milliseconds: int) -> None:
        """Use this timeout from now on; 0 stops the timer."""
        self._timeout = milliseconds * MS
        self.feed()

    def feed(self) -> None:
        """The host was heard from."""
        self.deadline = self._now() + self._timeout if self._timeout else None

    @property
    def expired(self) -> bool:
        return self.deadline is not None and self._now() >= self.deadline
