"""Samples of the real run: a public pool that all ranks read, private ones of five ranks, and a test set, as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emucsd.reproduce.stannis.settings import Settings

CLASSES, SIDE = 10, 32
PRIVATE_SHARE = 0.2
PRIVATE_PARTS = (3, 2, 2, 1, 1)  # of the private samples, for the five slower ranks
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Files:
    """:ivar private: by rank, from 1
    :ivar about: what the images are, for the report
    :ivar counts: public, then private by rank
    """

    public: Path
    private: tuple[Path, ...]
    test: Path
    about: str
    counts: tuple[int, ...]
    tests: int


def prepare(folder: Path, data: str | None, settings: Settings, seed: int) -> Files:
    """Write the files.

    :param data: a location with ``train`` and ``test`` (a tar of CLASS/*.jpg in each); None: generated images
    :raises DataError: it holds no such samples
    """
    train, test = settings.images
    if data is None:
        about = f"generated images of {CLASSES} classes (each with a colour of its own, under noise)"
        images, labels = generated(train + test, seed)
        pictures = [(images[:train], labels[:train]), (images[train:], labels[train:])]
    else:
        about = f"images of {Path(data).name}"
        pictures = [_some(f"{data}/train", train, seed), _some(f"{data}/test", test, seed)]
    (images, labels), tests = pictures
    cuts = _cuts(len(labels))
    parts = np.split(np.arange(len(labels)), cuts)
    names = ["public", *(f"private{rank}" for rank in range(1, len(parts)))]
    for name, part in zip(names, parts, strict=True):
        _write(folder / f"{name}.npz", images[part], labels[part])
    _write(folder / "test.npz", *tests)
    return Files(
        folder / "public.npz",
        tuple(folder / f"{name}.npz" for name in names[1:]),
        folder / "test.npz",
        about,
        tuple(len(part) for part in parts),
        len(tests[1]),
    )


def _cuts(count: int) -> list[int]:
    """Where public samples end, then each rank's private ones but for the last's."""
    hidden = round(PRIVATE_SHARE * count)
    ends = np.round(np.cumsum((0, *PRIVATE_PARTS[:-1])) / sum(PRIVATE_PARTS) * hidden).astype(int)
    return [int(end) + count - hidden for end in ends]


def _write(path: Path, images: Images, labels: NDArray[np.int64]) -> None:
    np.savez(path, images=images, labels=labels)


def _some(location: str, count: int, seed: int) -> tuple[Images, NDArray[np.int64]]:
    """So many samples of a location, of every class alike, decoded."""
    from emucsd.stannis.data import source
    from emucsd.stannis.data.decode import decode, fit
    from emucsd.stannis.data.split import even

    opened = source.open(location)
    try:
        chosen: Sequence[int] = even(opened.labels, seed)[:count].tolist()
        images = np.empty((len(chosen), SIDE, SIDE, 3), np.uint8)
        for place, index in enumerate(chosen):
            payload, _ = opened.sample(index)
            size = (SIDE, SIDE)
            images[place] = decode(payload, 3, size) if isinstance(payload, bytes) else fit(payload, 3, size)
        return images, opened.labels[chosen]
    finally:
        opened.close()


def generated(count: int, seed: int) -> tuple[Images, NDArray[np.int64]]:
    """Images whose classes overlap, so that no network tells all of them: by a colour, under much noise."""
    random = np.random.Generator(np.random.PCG64(seed))
    tints = random.normal(0, 1, (CLASSES, 1, 1, 3))
    labels = np.arange(count, dtype=np.int64) % CLASSES
    random.shuffle(labels)
    others = random.normal(0, 0.7, (count, 1, 1, 3))  # an image's own colour, whatever its class
    noise = random.normal(0, 1, (count, SIDE, SIDE, 3))
    images = np.clip(128 + 24 * (tints[labels] + others + noise), 0, 255)
    return images.astype(np.uint8), labels
