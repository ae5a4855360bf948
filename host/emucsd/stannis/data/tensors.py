"""Tensors: ``images`` and ``labels`` in one .npz or .pt file, whole in memory.

``images`` is u8[n, H, W, C], u8[n, C, H, W] or u8[n, H, W], which are treated as pictures are; or f32[n, C, H, W],
which is taken as it is: normalised already, of the run's size. ``labels`` is an integer array [n]. ``classes``, where
it is there, names them; else a class is named by its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.stannis.data.errors import DataFormat, DecoderMissing, Lost, ShardDamaged, ShardMissing
from emucsd.stannis.data.location import Location, ordered
from emucsd.stannis.data.samples import Indexed, Payload

_CHANNELS = (1, 3)


class TensorSource(Indexed):
    """Samples of a file of arrays.

    :raises ShardMissing: there is no such file
    :raises ShardDamaged: it is no .npz or .pt file
    :raises DataFormat: it lacks the arrays, or they have other shapes or dtypes
    """

    def __init__(self, location: Location, *, private: bool = False) -> None:
        held = _load(location)
        images = _pictures(location, held)
        numbers = _numbers(location, held, len(images))
        names = _names(location, held, numbers)
        classes = ordered(set(names))
        place = {name: index for index, name in enumerate(classes)}
        labels = np.array([place[name] for name in names], np.int64)[numbers] if len(names) else numbers
        kept = np.argsort(labels, kind="stable")  # by class, then as they lie: the order of all sources
        self._images = images
        self._rows = kept
        sizes = np.full(len(images), images[0].nbytes if len(images) else 0, np.int64)
        super().__init__(location.text, classes, labels[kept], sizes, private=private)

    def where(self, index: int) -> str:
        """The file and the row."""
        return f"{self.location}, row {self._rows[index]}"

    def samples(self, indices: Sequence[int]) -> list[Payload | Lost]:
        """Several at once, in the order asked for: views of the file's array."""
        return [self._images[self._rows[index]] for index in indices]


def _load(location: Location) -> Mapping[str, Any]:
    why = ""
    try:
        return _load_torch(location.path) if location.path.endswith(".pt") else _load_numpy(location.path)
    except FileNotFoundError:
        raise ShardMissing(f"{location.text}: no such file") from None
    except DecoderMissing:
        raise
    except Exception as problem:  # a zip, pickle or array error, of whatever library reads it
        why = f"{type(problem).__name__}"
    raise ShardDamaged(
        f"{location.text}: can't be read as arrays ({why}); write it with numpy.savez(file, images=..., labels=...) "
        "or torch.save({'images': ..., 'labels': ...}, file)"
    )


def _load_numpy(path: str) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in ("images", "labels", "classes") if name in archive}


def _load_torch(path: str) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise DecoderMissing(f"{path}: a .pt file needs PyTorch; install it, or write a .npz file") from None
    found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, list | tuple) and len(found) == 2:
        found = {"images": found[0], "labels": found[1]}
    if not isinstance(found, dict):
        raise TypeError("neither a dict nor a pair")
    return {name: value.numpy() if hasattr(value, "numpy") else value for name, value in found.items()}


def _pictures(location: Location, held: Mapping[str, Any]) -> NDArray[Any]:
    """u8[n, H, W, C] or f32[n, C, H, W]."""
    images = np.asarray(held.get("images", 0))
    told = f"{location.text}: images is {images.dtype}{list(images.shape)}"
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[..., None]
    if images.ndim != 4 or not len(images):
        raise DataFormat(f"{told}; an array 'images' of [n, H, W, C] or [n, C, H, W] is wanted, n at least 1")
    if images.dtype == np.float32:
        return images
    if images.dtype != np.uint8:
        raise DataFormat(f"{told}; uint8 is wanted (0 to 255), or float32 that is normalised already")
    if images.shape[1] in _CHANNELS:
        return images.transpose(0, 2, 3, 1)
    if images.shape[3] in _CHANNELS:
        return images
    raise DataFormat(f"{told}; neither axis 1 nor axis 3 has 1 or 3 channels")


def _numbers(location: Location, held: Mapping[str, Any], count: int) -> NDArray[np.int64]:
    labels = np.asarray(held.get("labels", 0.0))
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or (count and int(labels.min()) < 0):
        raise DataFormat(
            f"{location.text}: labels is {labels.dtype}{list(labels.shape)}; whole numbers from 0 up are wanted, "
            f"one for each of {count} images"
        )
    return labels.astype(np.int64)


def _names(location: Location, held: Mapping[str, Any], numbers: NDArray[np.int64]) -> list[str]:
    most = int(numbers.max()) + 1
    if "classes" not in held:
        if most > 1 << 20:
            raise DataFormat(f"{location.text}: a label is {most - 1}; labels count classes from 0")
        return [str(number) for number in range(most)]
    names = [str(name) for name in held["classes"]]
    if len(names) < most or len(set(names)) != len(names):
        raise DataFormat(
            f"{location.text}: {len(names)} names in 'classes' for labels up to {most - 1}; one each, all different"
        )
    if odd := [name for name in names if not name or "/" in name or name.startswith(".")]:
        raise DataFormat(f"{location.text}: a class is called {odd[0]!r}; use names that a folder could have")
    return names
