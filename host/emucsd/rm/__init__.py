"""RM-SSD, the host's side: recommendation models, and sessions that run them whole inside the drive.

    from emucsd import Drive
    from emucsd.rm import Model, Session

    model = Model.rmc1(rows=10_000)
    with Drive.start("rmssd", size="1GiB", clock="virtual") as drive:
        tables = model.create_tables(drive, seed=1)
        with Session.open(drive, model, tables=tables, weights=model.random_weights(seed=1)) as session:
            dense, sparse = model.random_batch(64, seed=1)
            clicks = session.infer(dense, sparse)  # FP32[64, 1]

Needs NumPy and nothing else, so it runs as well in a guest whose kernel drives the drive. Names are loaded when they
are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emucsd.rm.calls import RM_create_table, RM_open_table, RM_read_outputs, RM_send_inputs
    from emucsd.rm.dlrm import Arguments
    from emucsd.rm.errors import (
        BudgetExceeded,
        DramExceeded,
        InputError,
        ModelError,
        RmError,
        SampleTooLarge,
        SessionBusy,
        SessionClosed,
        SessionsFull,
        UnknownArgument,
        WeightsMissing,
    )
    from emucsd.rm.inputs import Sparse
    from emucsd.rm.model import Model
    from emucsd.rm.session import Session, Ticket
    from emucsd.rm.shape import EmbeddingTable, Layer
    from emucsd.rm.weights import Weights

_HOMES = {
    "Arguments": "dlrm",
    "BudgetExceeded": "errors",
    "DramExceeded": "errors",
    "EmbeddingTable": "shape",
    "InputError": "errors",
    "Layer": "shape",
    "Model": "model",
    "ModelError": "errors",
    "RM_create_table": "calls",
    "RM_open_table": "calls",
    "RM_read_outputs": "calls",
    "RM_send_inputs": "calls",
    "RmError": "errors",
    "SampleTooLarge": "errors",
    "Session": "session",
    "SessionBusy": "errors",
    "SessionClosed": "errors",
    "SessionsFull": "errors",
    "Sparse": "inputs",
    "Ticket": "session",
    "UnknownArgument": "errors",
    "Weights": "weights",
    "WeightsMissing": "errors",
}

__all__ = [
    "Arguments",
    "BudgetExceeded",
    "DramExceeded",
    "EmbeddingTable",
    "InputError",
    "Layer",
    "Model",
    "ModelError",
    "RM_create_table",
    "RM_open_table",
    "RM_read_outputs",
    "RM_send_inputs",
    "RmError",
    "SampleTooLarge",
    "Session",
    "SessionBusy",
    "SessionClosed",
    "SessionsFull",
    "Sparse",
    "Ticket",
    "UnknownArgument",
    "Weights",
    "WeightsMissing",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
