"""Encoded images to arrays: JPEG and PNG by Pillow, which is loaded when the first one comes."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.stannis.data.errors import DecoderMissing, ShardDamaged

_MODES = {1: "L", 3: "RGB"}


def pillow() -> ModuleType:
    """``PIL.Image``. :raises DecoderMissing: it is not installed"""
    try:
        from PIL import Image
    except ImportError:
        raise DecoderMissing(
            "JPEG and PNG images need Pillow: pip install pillow, or on Debian apt install python3-pil (the machines' "
            "full image has it: emucsd up without --small); a .npz of uint8 images needs nothing"
        ) from None
    return Image


def decode(data: bytes, channels: int, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A picture from its file's bytes.

    Grey becomes RGB and RGB grey (ITU-R 601 luma) as ``channels`` asks; transparency is dropped. The size is changed by
    Pillow's bilinear filter with antialiasing, without keeping the aspect. Versions of libjpeg may differ by a step of
    255 or so; on one machine the result is always the same.

    :param channels: 1 or 3
    :param size: (height, width) of the result; None: the picture's own
    :returns: u8[H, W, channels]
    :raises ShardDamaged: not a whole JPEG or PNG; the text has nothing of its content
    :raises DecoderMissing: there is no Pillow
    """
    image = pillow()
    try:
        with image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
            return _as_array(image, opened, channels, size)
    except MemoryError:
        raise
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more for bad files
        pass
    raise ShardDamaged(f"its {len(data)} bytes are no whole JPEG or PNG image; replace it, or train with policy 'skip'")


def _as_array(image: ModuleType, opened: Any, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    if opened.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        opened = image.fromarray((np.asarray(opened).astype(np.int64) >> 8).astype(np.uint8))
    if opened.mode == "P":
        opened = opened.convert("RGBA" if "transparency" in opened.info else "RGB")
    if opened.mode != _MODES[channels]:
        opened = opened.convert(_MODES[channels])
    if size is not None and opened.size != (size[1], size[0]):
        opened = opened.resize((size[1], size[0]), image.Resampling.BILINEAR)
    picture: NDArray[np.uint8] = np.asarray(opened)
    return picture.reshape(*picture.shape[:2], channels)


def fit(picture: NDArray[np.uint8], channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The same for a picture that is an array already, u8[H, W, 1 or 3]."""
    if picture.shape[2] == channels and size in (None, picture.shape[:2]):
        return picture
    image = pillow()
    squeezed = np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    return _as_array(image, image.fromarray(squeezed), channels, size)


def encode(picture: NDArray[np.uint8]) -> bytes:
    """A picture u8[H, W, 1 or 3] as PNG, which loses nothing."""
    file = io.BytesIO()
    squeezed = np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    pillow().fromarray(squeezed).save(file, "PNG")
    return file.getvalue()
