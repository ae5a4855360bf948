"""Large text files, piece by piece: plain or gzip, with how far the reading is."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from emucsd.traces.errors import TraceFormat

Progress = Callable[[int, int], None]  # bytes of the file read so far, and of all
PIECE = 8 << 20  # bytes of text at a time


def pieces(path: str | Path, progress: Progress | None = None, size: int | None = None) -> Iterator[bytes]:
    """Whole lines, some MB at a time, each ended by a line feed; a gzip file is unpacked on the way.

    :raises TraceFormat: a damaged gzip file
    """
    total = os.stat(path).st_size
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        text: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if packed else raw
        rest = b""
        while True:
            try:
                piece = text.read(size or PIECE)
            except (OSError, EOFError) as error:
                raise TraceFormat(path, f"gzip says: {error}; fetch the file again") from error
            if progress is not None:
                progress(raw.tell(), total)
            if not piece:
                break
            piece = (rest + piece).replace(b"\r\n", b"\n")
            cut = piece.rfind(b"\n") + 1
            rest = piece[cut:]
            if cut:
                yield piece[:cut]
        if rest.strip():
            yield rest.rstrip(b"\r") + b"\n"
