"""How the samples of a set are dealt out to drives: public or private, each class in equal parts everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emucsd.stannis.data.errors import DataFormat
from emucsd.stannis.data.samples import Source


@dataclass(frozen=True)
class Part:
    """Samples for one namespace of one drive.

    :ivar drive: number of the drive, from 0
    :ivar indices: of the source's samples, rising
    """

    drive: int
    private: bool
    indices: NDArray[np.int64]


def split(
    source: Source,
    drives: int,
    private_share: float,
    *,
    shares: Sequence[float] = (),
    copies: bool = False,
    seed: int = 0,
) -> list[Part]:
    """Deal samples out. Classes are spread evenly: each part has its share of every class, to within one sample.

    :param private_share: of all samples; each goes to one drive, and no other node will read it
    :param shares: how much each drive gets, in proportion, of private and of public samples; empty: equal parts
    :param copies: every drive gets all public samples, not a part of them: more room, and more freedom for the plan
    :returns: a drive's private part before its public one; parts without samples are left out
    :raises DataFormat: shares for another number of drives, or that are no share
    """
    shares = list(shares) or [1.0] * drives
    if len(shares) != drives or min(shares) < 0 or not sum(shares) or not 0 <= private_share <= 1:
        raise DataFormat(
            f"shares {':'.join(map(str, shares))}, private share {private_share}: one share for each of {drives} "
            "drives, from 0; the private share is 0 to 1"
        )
    order = even(source.labels, seed)
    hidden = round(private_share * source.count)
    private = _cut(order[:hidden], shares)
    public = [order[hidden:]] * drives if copies else _cut(order[hidden:], shares)
    parts = [
        Part(drive, kind is private, np.sort(kind[drive])) for drive in range(drives) for kind in (private, public)
    ]
    return [part for part in parts if len(part.indices)]


def even(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """An order of which every contiguous piece has nearly as much of each class, in proportion, as the whole."""
    rng = np.random.Generator(np.random.PCG64(seed))
    shuffled = rng.permutation(len(labels))
    where = np.empty(len(labels))
    for label in np.unique(labels):
        mine = shuffled[labels[shuffled] == label]
        where[mine] = (np.arange(len(mine)) + rng.random()) / len(mine)
    found: NDArray[np.int64] = np.argsort(where, kind="stable")
    return found


def _cut(order: NDArray[np.int64], shares: Sequence[float]) -> list[NDArray[np.int64]]:
    ends = np.round(np.cumsum(shares) / sum(shares) * len(order)).astype(np.int64)
    return np.split(order, ends[:-1])
