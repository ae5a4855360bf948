"""Opening a location: whatever holds the samples, what comes back is a ``Source``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from emucsd.stannis.data.folder import FolderSource
from emucsd.stannis.data.location import ordered, parse
from emucsd.stannis.data.samples import Payload, Source
from emucsd.stannis.data.tar import TarSource
from emucsd.stannis.data.tensors import TensorSource

_LOOKED_AT = 16  # samples whose bytes are in a digest

__all__ = ["Payload", "Source", "classes_of", "digest", "open"]


def open(location: str, *, private: bool = False) -> Source:
    """Open a location and number its samples: from names and headers, no sample is read.

    :param private: no text, and no error, will have a name of a file or member in it
    :raises DataFormat: no form or layout that can be read; the text says what would do
    :raises ShardMissing: nothing is there
    :raises ShardDamaged: a shard is cut off or garbage; the text has location and offset
    :raises DriveGone: the drive does not answer
    """
    found = parse(location)
    if found.kind == "folder":
        return FolderSource(found, private=private)
    if found.kind == "tensors":
        return TensorSource(found, private=private)
    return TarSource(found, private=private)


def digest(source: Source) -> str:
    """Equal for copies of a pool, whatever holds them; different pools differ.

    Of the count, the classes, each sample's label and size, and the bytes of some samples, evenly spaced.
    """
    told = hashlib.blake2b(digest_size=16)
    told.update("\0".join((str(source.count), *source.classes)).encode(errors="surrogateescape"))
    told.update(source.labels.astype("<i8").tobytes())
    told.update(source.sizes.astype("<i8").tobytes())
    some = sorted({number * source.count // _LOOKED_AT for number in range(_LOOKED_AT)}) if source.count else []
    for payload in source.samples(some):
        if isinstance(payload, bytes | np.ndarray):
            told.update(payload if isinstance(payload, bytes) else payload.tobytes())
    return told.hexdigest()


def classes_of(sources: Sequence[Source]) -> tuple[str, ...]:
    """The class list of a run: all classes of its pools, in the order of their labels."""
    return ordered({name for source in sources for name in source.classes})
