"""Where real logs lie on this machine: they are no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

AMAZON_FILE = "amazon-video-games.txt"
CRITEO_FILE = "criteo_sample.txt"
VARIABLE = "EMUCSD_DATA"


def find_data(name: str = AMAZON_FILE) -> Path | None:
    """The folder that has a file of this name: $EMUCSD_DATA, or shared/data beside the project; None: neither has."""
    named = os.environ.get(VARIABLE)
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    for folder in (Path(named) if named else beside, beside):
        if (folder / name).is_file():
            return folder
    return None
