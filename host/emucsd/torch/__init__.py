"""PyTorch modules whose tables, or whole models, live in a drive.

    bag = emucsd.torch.EmbeddingBag.from_pretrained(weight, drive)      # for torch.nn.EmbeddingBag
    fast = emucsd.torch.offload(model, drive)                           # a DLRM-style model, tables and MLPs

Needs PyTorch (``pip install 'emucsd[torch]'``), which is loaded when a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emucsd.torch.bag import EmbeddingBag
    from emucsd.torch.errors import NoGradient, NotOffloadable
    from emucsd.torch.offloaded import OffloadedModel, offload

__all__ = ["EmbeddingBag", "NoGradient", "NotOffloadable", "OffloadedModel", "offload"]

_HOMES = {
    "EmbeddingBag": "bag",
    "NoGradient": "errors",
    "NotOffloadable": "errors",
    "OffloadedModel": "offloaded",
    "offload": "offloaded",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
