"""Samples for training: where they lie, how a rank reads them, how they come onto a drive and stay on it.

    from emucsd.stannis.data.loader import Loader
    from emucsd.stannis.data.source import open

    with open("/data/train") as source, Loader({"mine": source}, order, image=(3, 32, 32)) as loader:
        for batch in loader:
            images, labels = batch.tensors()

A *location* is a text that a node understands: ``/data/train`` (ImageFolder), ``/data/x.tar`` or ``/data/*.tar`` (tar
shards), ``/data/x.npz`` or ``.pt`` (tensors), ``ns:2`` (a tar on a namespace of the node's own drive). Needs NumPy, and
Pillow for images that are JPEG or PNG; nothing else, for guests have nothing else. docs/data.md
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emucsd.stannis.data.inspect import Inspection, inspect
    from emucsd.stannis.data.loader import Batch, Loader
    from emucsd.stannis.data.put import put
    from emucsd.stannis.data.source import Source

__all__ = ["Batch", "Inspection", "Loader", "Source", "inspect", "put"]

_HOMES = {
    "Batch": "loader",
    "Inspection": "inspect",
    "Loader": "loader",
    "Source": "source",
    "inspect": "inspect",
    "put": "put",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
