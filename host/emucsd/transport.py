"""How commands get to a drive: what the rest of the library needs of a queue, of memory and of an attachment.

Two ways there are: ``direct``, this library's own NVMe driver over vfio-user, and ``linux``, the kernel's driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emucsd.clock import Clock
from emucsd.completion import Command, Completion
from emucsd.errors import ConnectionLost
from emucsd.outcome import Columns, Outcome
from emucsd_wire.nvme import PAGE

Lost = Callable[[str], ConnectionLost]  # what happened, in words -> the error to raise


class Memory(Protocol):
    """Memory that the drive reads and writes in place."""

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8, align: int = PAGE) -> NDArray[Any]:
        """An uninitialised array in it."""

    def borrow(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> AbstractContextManager[NDArray[Any]]:
        """``array`` for the time of a ``with``."""

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether the drive reaches this array as it is."""


class CommandQueue(Protocol):
    """A queue of commands; any thread may use it, one call at a time.

    :ivar qid: 0 is the admin queue
    :ivar entries: one more than the commands that can be out
    :ivar timeout: seconds without progress
    """

    qid: int
    entries: int
    timeout: float

    @property
    def memory(self) -> Memory:
        """Where a command's data lie."""

    @property
    def outstanding(self) -> int:
        """Commands that are out, or completed and not yet taken."""

    @property
    def counters(self) -> dict[str, int]:
        """Since the queue was made."""

    def submit_one(self, command: Command, data: NDArray[Any] | None = None, *, ring: bool = True) -> int:
        """Enter one command and come back at once. :returns: a token"""

    def flush(self) -> None:
        """Send what ``submit_one(ring=False)`` entered."""

    def poll(self, want: int = 0, timeout: float | None = None) -> list[Completion]:
        """Take completions that are there, after waiting until there are ``want``."""

    def wait(self, token: int, timeout: float | None = None) -> Completion:
        """Wait for one command."""

    def call(self, command: Command, data: NDArray[Any] | None = None, timeout: float | None = None) -> Completion:
        """Submit one command and wait for it."""

    def abandon(self, token: int) -> None:
        """Nobody will wait for this command."""

    def submit(self, columns: Columns, *, depth: int = 32, burst: int | None = None) -> Outcome:
        """Run a batch, keeping ``depth`` commands out."""


class Attachment(Protocol):
    """One port of a drive, attached.

    :ivar name: for people
    :ivar most_bytes: that this way carries in one command; 0: as many as the drive takes
    """

    name: str
    most_bytes: int

    @property
    def memory(self) -> Memory:
        """For data."""

    @property
    def clock(self) -> Clock:
        """The drive's time."""

    @property
    def admin(self) -> CommandQueue:
        """The admin queue; another one after a reset."""

    @property
    def queues(self) -> Sequence[CommandQueue]:
        """The I/O queues; others after a reset."""

    def prepare(self) -> None:
        """Make the I/O queues: after attaching, and after each reset."""

    def reset(self) -> None:
        """Controller reset; commands that are out are lost."""

    def close(self) -> None:
        """Leave, politely where the drive still answers. Harmless when repeated."""
