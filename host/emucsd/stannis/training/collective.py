"""What the trainer asks of the ranks' group: three calls, which a Gloo group, or nobody at all, can serve.

Every rank makes the same calls in the same order. Tensors are contiguous and on the CPU. When a call raises, the group
is of no more use: the worker abandons it and forms another, and the trainer is at the last step boundary.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Pending(Protocol):
    """An all-reduce under way."""

    def wait(self) -> None:
        """Return when the tensor holds the sum.

        :raises PeerLost: a rank is gone or did not answer in time; the tensor's content is undefined
        """


class Collective(Protocol):
    """A group of ranks."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """How many ranks there are: the world size."""

    def begin(self, tensor: torch.Tensor) -> Pending:
        """Start to replace ``tensor`` by its sum over all ranks. Several may be under way: all ranks begin them in one
        order. The tensor is not touched before ``wait`` has returned.

        :raises PeerLost: a rank is gone
        """

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Replace ``tensor`` by its sum over all ranks, with the same bits on every rank.

        :raises PeerLost: a rank is gone or did not answer in time; the tensor's content is undefined
        """

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Replace ``tensor`` by that of rank ``source``.

        :raises PeerLost: as above
        """


class Done:
    """A ``Pending`` that was never pending."""

    def wait(self) -> None:
        """Return at once."""


class Alone:
    """A group of one: nothing to add, nobody to wait for."""

    rank = 0
    size = 1

    def begin(self, tensor: torch.Tensor) -> Pending:
        """The sum over one rank is there already."""
        return Done()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Leave the tensor as it is."""

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Leave the tensor as it is."""


class Metered:
    """A group whose own time is counted: what a model spends in additions of its own (batch norm) is no computing.

    :ivar seconds: in calls since ``take`` was called last
    """

    def __init__(self, group: Collective) -> None:
        self.group = group
        self.seconds = 0.0

    @property
    def rank(self) -> int:
        """This process."""
        return self.group.rank

    @property
    def size(self) -> int:
        """World size."""
        return self.group.size

    def begin(self, tensor: torch.Tensor) -> Pending:
        """Not counted: nobody waits yet."""
        return self.group.begin(tensor)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Counted."""
        begun = time.perf_counter()
        self.group.all_reduce(tensor)
        self.seconds += time.perf_counter() - begun

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Counted."""
        begun = time.perf_counter()
        self.group.broadcast(tensor, source)
        self.seconds += time.perf_counter() - begun

    def take(self) -> float:
        """Seconds since the last time."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
