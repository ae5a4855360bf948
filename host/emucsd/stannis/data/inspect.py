"""What a location holds, as much of it as may be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emucsd.stannis.data.source import digest, open


@dataclass(frozen=True)
class Inspection:
    """Of a private pool there are the count, the mean size and the class names, and nothing else.

    :ivar count: samples
    :ivar classes: names, in the order of their labels
    :ivar sample_bytes: mean, as they are stored
    :ivar counts: samples of each class, or None where private
    :ivar bytes: of all samples, or None where private
    :ivar digest: equal for copies of one pool, or None where private
    """

    location: str
    private: bool
    count: int
    classes: tuple[str, ...]
    sample_bytes: int
    counts: tuple[int, ...] | None = None
    bytes: int | None = None
    digest: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {**asdict(self), "classes": list(self.classes), "counts": self.counts and list(self.counts)}


def inspect(location: str, *, private: bool = False) -> Inspection:
    """Open a location, count, close.

    :raises DataFormat, ShardMissing, ShardDamaged, DriveGone: as ``source.open``
    """
    with open(location, private=private) as source:
        total = int(source.sizes.sum())
        mean = round(total / source.count) if source.count else 0
        if private:
            return Inspection(location, True, source.count, source.classes, mean)
        counts = tuple(int(n) for n in np.bincount(source.labels, minlength=len(source.classes)))
        return Inspection(location, False, source.count, source.classes, mean, counts, total, digest(source))
