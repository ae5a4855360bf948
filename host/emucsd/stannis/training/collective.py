"""What the trainer asks of the ranks' group: three calls, which a Gloo group, or nobody at all, can serve.

Every rank makes the same calls in the same order. Tensors are contiguous and on the CPU. When a call raises, the group
is of no more use: the worker abandons it and forms another, and the trainer is at the last step boundary.
"""

from __future__ import annotations

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
