"""Data sets for tests: real JPEG and PNG files, in folders and tars, made on the spot."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def picture(
    seed: int, height: int = 32, width: int = 32, channels: int = 3
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A smooth picture, which JPEG keeps nearly as it is."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, channels), np.uint8)
    return np.kron(small, np.ones((height // 4, width // 4, 1), np.uint8))


def encoded(seed: int, kind: str = "JPEG", **shape: int) -> bytes:
    """Its file."""
    file = io.BytesIO()
    pixels = picture(seed, **shape)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, kind)
    return file.getvalue()


def folder(root: Path, count: int = 12, suffix: str = "jpg") -> Path:
    """``count`` images over three classes, and things that are none."""
    kind = "JPEG" if suffix == "jpg" else "PNG"
    for number in range(count):
        home = root / CLASSES[number % 3]
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{number * 37 % 101:03}.{suffix}").write_bytes(encoded(number, kind))
    (root / "README").write_text("no class")
    (root / "ant" / "notes.txt").write_text("no sample")
    (root / "ant" / ".hidden.jpg").write_bytes(b"no sample")
    (root / "empty").mkdir()
    return root


def tarred(path: Path, root: Path, *, step: int = 1, first: int = 0, kind: int = tarfile.GNU_FORMAT) -> Path:
    """Every ``step``th file of a folder as a tar, in an order of its own."""
    files = sorted(file for file in root.rglob("*") if file.is_file())[first::step]
    with tarfile.open(path, "w", format=kind) as archive:
        for file in reversed(files):
            archive.add(file, f"./{file.relative_to(root)}")
    return path
