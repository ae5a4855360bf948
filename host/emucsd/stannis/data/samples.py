"""A source: the samples of one location, numbered from 0 in an order that depends on names and nothing else.

The order is by class, then by the path below the class. So a folder, a tar of it, and shards of that tar have the same
sample at the same index, and copies of a pool on several nodes need no table of what is where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from emucsd.stannis.data.errors import Lost

Payload = bytes | NDArray[Any]  # an encoded image; u8[H, W, C], or f32[C, H, W] that is normalised already


class Source(Protocol):
    """Samples of one location. Threads may share one; reads go one after the other.

    :ivar location: as it was given
    :ivar private: texts about it name nothing of a sample
    :ivar count: samples
    :ivar classes: names, in the order of this source's own labels
    :ivar labels: i64[count], the index into ``classes`` of each sample
    :ivar sizes: i64[count], bytes of each sample as it is stored
    """

    location: str
    private: bool
    count: int
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def sample(self, index: int) -> tuple[Payload, int]:
        """One sample and its label.

        :raises ShardMissing: its file is gone
        :raises ShardDamaged: it can't be read whole
        :raises DriveGone: the drive does not answer
        """

    def samples(self, indices: Sequence[int]) -> list[Payload | Lost]:
        """Several at once, in the order asked for; an error stands where its sample would.

        :raises DriveGone: the drive does not answer
        """

    def bytes_of(self, index: int) -> int:
        """Bytes of a sample as it is stored."""

    def where(self, index: int) -> str:
        """Where a sample lies, for a text: an offset; a file's name only where the source is not private."""

    def close(self) -> None:
        """Let files and devices go. Harmless when repeated."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Indexed(ABC):
    """What every source shares: numbers, labels, sizes."""

    def __init__(
        self,
        location: str,
        classes: tuple[str, ...],
        labels: NDArray[np.int64],
        sizes: NDArray[np.int64],
        *,
        private: bool,
    ) -> None:
        self.location, self.private, self.classes = location, private, classes
        self.labels, self.sizes, self.count = labels, sizes, len(labels)

    def bytes_of(self, index: int) -> int:
        """Bytes of a sample as it is stored."""
        return int(self.sizes[index])

    @abstractmethod
    def samples(self, indices: Sequence[int]) -> list[Payload | Lost]:
        """Several at once, in the order asked for; an error stands where its sample would."""

    def sample(self, index: int) -> tuple[Payload, int]:
        """One sample and its label. :raises Lost: it can't be read"""
        found = self.samples([index])[0]
        if isinstance(found, Lost):
            raise found
        return found, int(self.labels[index])

    def close(self) -> None:  # noqa: B027 - sources that hold nothing open have nothing to do
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
