"""Errors of training data, beside those of ``emucsd.stannis.errors``.

    DataError
    ├── DataFormat          the caller's: a location of no known form, a layout, classes or shapes that differ
    │   └── SplitsFound     its folders are train, test, …: one of them is to be named
    ├── ShardMissing        ) of a sample or its shard: ``Lost`` is either
    ├── ShardDamaged        )
    ├── DriveGone           the drive or its agent stopped answering: no matter of one sample
    ├── DecoderMissing      the installation's: Pillow or PyTorch is not there
    ├── NoRoom              the drive has no capacity left for the samples
    └── PutFailed           the medium's: what was written did not read back equal

A text about a private pool has the pool's name, indices, offsets and counts in it, and nothing of a sample: no bytes,
no file's or member's name. That goes for the cause of an error as well, so such errors are raised without one.
"""

from __future__ import annotations

from emucsd.stannis.errors import DataError, DataFormat, ShardDamaged, ShardMissing

__all__ = [
    "DataError",
    "DataFormat",
    "DecoderMissing",
    "DriveGone",
    "Lost",
    "NoRoom",
    "PutFailed",
    "ShardDamaged",
    "ShardMissing",
    "SplitsFound",
    "about",
]

Lost = ShardMissing | ShardDamaged


class SplitsFound(DataFormat):
    """The caller's: a data set's parts, where classes should be. ``parts`` has their locations by name."""

    def __init__(self, text: str, parts: dict[str, str]) -> None:
        super().__init__(text)
        self.parts = parts


class DriveGone(DataError):
    """The drive's, or its agent's: reads fail as a whole; skipping samples would skip all of them."""


class DecoderMissing(DataError):
    """The installation's: JPEG and PNG need Pillow, .pt files PyTorch."""


class NoRoom(DataError):
    """The caller's: capacity; the text says how much is missing and how to make room."""


class PutFailed(DataError):
    """The medium's: the samples are not on the drive as they should be."""


def about(error: Lost, pool: str, index: int, where: str = "") -> Lost:
    """The same error, of a sample of a pool."""
    place = f"{where}: " if where else ""
    return type(error)(f"pool {pool!r}, sample {index}: {place}{error}", pool, index)
