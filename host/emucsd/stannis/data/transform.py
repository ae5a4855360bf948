"""From a picture to what the network sees: augmentation and normalisation.

What is random about a sample comes from (seed, epoch, pool, index) and nothing else: Philox, a counter-based generator,
is keyed with them. So a sample looks the same whoever trains on it, in whatever batch, and k ranks see what one process
would see.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from emucsd.stannis.data.decode import decode, fit
from emucsd.stannis.data.errors import DataFormat
from emucsd.stannis.data.samples import Payload
from emucsd.stannis.errors import FactoryFailed

PADDING = 4  # pixels of black around a picture before it is cropped: He et al. 2016, section 4.2, on CIFAR-10
MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet's RGB: torchvision's
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
BUILT_IN = ("standard", "flip", "none")

Function = Callable[[NDArray[np.uint8], Generator], NDArray[Any]]


class Transform:
    """``standard``: a random crop after padding by 4, and a flip left to right half of the time. ``flip``: that alone.
    ``none``: neither, for evaluation. Else the user's function.

    The user's ``function(picture, rng)`` is given u8[H, W, C] in the picture's own size and a NumPy Generator of this
    sample, and returns u8[H', W', C], which is brought to the run's size and normalised, or f32[C, H, W], which is
    taken as it is.

    :param what: ``standard``, ``flip``, ``none``, ``module:function`` or ``file.py:function``, or a function
    :param image: (C, H, W) of the run; with other than 1 or 3 channels samples must be f32 tensors
    :param mean, std: per channel, of values from 0 to 1: (value / 255 - mean) / std; default: ImageNet's
    :raises FactoryFailed: there is no such function
    :raises DataFormat: mean and std for another number of channels
    """

    def __init__(
        self,
        what: str | Function,
        image: tuple[int, int, int],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        self.image = image
        channels, self._size = image[0], image[1:]
        self._what = what if isinstance(what, str) and what in BUILT_IN else ""
        self._function = None if self._what else _find(what) if isinstance(what, str) else what
        mean = mean or (MEAN if channels == 3 else GREY_MEAN * channels)
        std = std or (STD if channels == 3 else GREY_STD * channels)
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise DataFormat(f"mean {mean}, std {std}: one of each for {channels} channels, std above 0")
        values = np.arange(256) / 255
        self._tables = [((values - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True)]

    def __call__(
        self, payload: Payload, out: NDArray[np.float32], seed: int, epoch: int, pool: int, index: int, private: bool
    ) -> None:
        """One sample into ``out``, f32[C, H, W].

        :param pool: ``pool_key`` of its pool's name
        :raises ShardDamaged: it can't be decoded
        :raises FactoryFailed: the user's function failed; DataFormat: an array of another size
        """
        if isinstance(payload, np.ndarray) and payload.dtype == np.float32:
            if payload.shape != self.image:
                raise DataFormat(f"samples are f32{list(payload.shape)}, and the run's image is {self.image}")
            self._crop(payload, out, seed, epoch, pool, index)
            return
        size = self._size if self._function is None else None
        channels = self.image[0]
        if channels not in (1, 3):
            raise DataFormat(f"samples are pictures, which have 1 or 3 channels, and the run's image is {self.image}")
        picture = decode(payload, channels, size) if isinstance(payload, bytes) else fit(payload, channels, size)
        if self._function is not None:
            made = _apply(self._function, picture, Generator(_philox(seed, epoch, pool, index)), private)
            if made.dtype == np.float32 and made.shape == self.image:
                out[...] = made
                return
            picture = fit(_picture(made, channels), channels, self._size)
        pixels = np.zeros(self.image, np.uint8)
        self._crop(picture.transpose(2, 0, 1), pixels, seed, epoch, pool, index)
        for channel, table in enumerate(self._tables):
            np.take(table, pixels[channel], out=out[channel])

    def _crop(self, image: NDArray[Any], out: NDArray[Any], seed: int, epoch: int, pool: int, index: int) -> None:
        """Crop and flip as this transform does. Both are [C, H, W]; ``out`` is zeros before."""
        if self._what not in ("standard", "flip"):
            out[...] = image
            return
        words = _philox(seed, epoch, pool, index).random_raw(3)
        if words[0] & 1:
            image = image[..., ::-1]
        if self._what == "flip":
            out[...] = image
            return
        out[...] = 0
        height, width = self._size
        down, right = (int(word % (2 * PADDING + 1)) - PADDING for word in words[1:])
        out[:, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)] = image[
            :, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)
        ]


def pool_key(name: str) -> int:
    """64 bits that stand for a pool's name in the random numbers of its samples."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _philox(seed: int, epoch: int, pool: int, index: int) -> Philox:
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, pool], np.uint64)  # a plain list would go through floats
    return Philox(key=key, counter=np.array([0, index, epoch, 0], np.uint64))


def _apply(function: Function, picture: NDArray[np.uint8], rng: Generator, private: bool) -> NDArray[Any]:
    """:raises FactoryFailed: with the user's file and line, and of a private pool nothing else"""
    try:
        return np.asarray(function(picture, rng))
    except Exception as problem:
        last = traceback.extract_tb(problem.__traceback__)[-1]
        said = "" if private else f": {problem}"
        where = f"{last.filename}:{last.lineno}"
        told = f"the transform raised {type(problem).__name__}{said} at {where}"
    raise FactoryFailed(told, where)


def _picture(made: NDArray[Any], channels: int) -> NDArray[np.uint8]:
    if made.dtype != np.uint8 or made.ndim != 3 or made.shape[2] != channels:
        raise FactoryFailed(
            f"the transform returned {made.dtype}{list(made.shape)}; u8[H, W, {channels}] is wanted, or f32 of the "
            "run's (C, H, W)"
        )
    return made


def _find(text: str) -> Function:
    """``module:function`` or ``file.py:function``. :raises FactoryFailed: there is none"""
    home, _, name = text.rpartition(":")
    if not home or not name.isidentifier():
        raise FactoryFailed(f"transform {text!r}: {', '.join(BUILT_IN)}, module:function or file.py:function")
    try:
        found = getattr(_import_file(Path(home)) if home.endswith(".py") else importlib.import_module(home), name)
    except (ImportError, OSError, AttributeError, SyntaxError) as problem:
        raise FactoryFailed(f"transform {text!r}: {problem}") from problem
    if not callable(found):
        raise FactoryFailed(f"transform {text!r}: {name} is no function")
    function: Function = found
    return function


def _import_file(path: Path) -> Any:
    name = f"emucsd_transform_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} can't be imported")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
