"""What a benchmark of one batch size on one engine gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emucsd.stannis.errors import PlanError


@dataclass(frozen=True)
class Measured:
    """A training step of ``batch`` samples, measured.

    :ivar seconds: of one step: forward, backward, optimizer; without synchronisation
    :ivar memory_bytes: the process's peak; 0: not measured
    :raises PlanError: a time that is none
    """

    batch: int
    seconds: float
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 < self.seconds < float("inf") or self.memory_bytes < 0:
            raise PlanError(f"a benchmark says {self.seconds} s for a batch of {self.batch}; above 0 s, a batch from 1")

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.batch / self.seconds


Bench = Callable[[int], Measured]
"""batch -> what a step of it takes. :raises MemoryExceeded: it doesn't fit"""
