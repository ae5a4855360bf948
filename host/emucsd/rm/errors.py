"""What can go wrong with a model or a session.

    RmError (an EmucsdError)
    ├── ModelError          layers that do not fit each other, widths out of range (a ValueError)
    ├── InputError          dense or sparse inputs of another shape, dtype or order than the model's (a ValueError)
    │   └── SampleTooLarge  one sample's inputs do not fit a command
    ├── UnknownArgument     of facebookresearch/dlrm's command line, or one that means another kind of model
    ├── WeightsMissing      layers without weights (a KeyError)
    ├── BudgetExceeded      the FPGA has too few LUT, FF, BRAM or DSP for the model
    ├── DramExceeded        the weights do not fit the drive's memory
    ├── SessionsFull        the drive has no session left
    ├── SessionClosed       the session was closed, or a controller reset closed it
    └── SessionBusy         more batches in flight than the session takes

``IndexOutOfRange`` (emucsd.lookup) and ``TableClosed`` (emucsd.rows) are raised as for lookups; the first says, beside
``position`` and ``value``, which ``table`` of the model.
"""

from __future__ import annotations

from emucsd.errors import EmucsdError, InvalidArgument
from emucsd.lookup import IndexOutOfRange

__all__ = [
    "BudgetExceeded",
    "DramExceeded",
    "IndexOutOfRangeOfTable",
    "InputError",
    "ModelError",
    "RmError",
    "SampleTooLarge",
    "SessionBusy",
    "SessionClosed",
    "SessionsFull",
    "UnknownArgument",
    "WeightsMissing",
]


class RmError(EmucsdError):
    """A model cannot be had, or a session cannot be used, as asked."""


class ModelError(RmError, InvalidArgument):
    """Layers, tables or interaction that make no model, or none that a session can hold."""


class InputError(RmError, InvalidArgument):
    """Inputs that do not fit the model. Nothing was sent."""


class SampleTooLarge(InputError):
    """The ids of one sample do not fit a command."""


class UnknownArgument(RmError, InvalidArgument):
    """Arguments that describe no model this library has. ``names`` are they."""

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        super().__init__(text)
        self.names = names


class WeightsMissing(RmError, KeyError):
    """A layer has no weights. ``layers`` names those without."""

    def __init__(self, text: str, layers: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.layers = layers

    def __str__(self) -> str:  # a KeyError quotes its argument
        return str(self.args[0])


class BudgetExceeded(RmError):
    """The model's kernels need more of the FPGA than there is."""


class DramExceeded(RmError):
    """Weights and inputs need more of the drive's memory than there is."""


class SessionsFull(RmError):
    """Every session of the drive is in use."""


class SessionClosed(RmError):
    """The session is closed."""


class SessionBusy(RmError):
    """The session takes no further batch now."""


class IndexOutOfRangeOfTable(IndexOutOfRange):
    """An id of a batch names no row. ``table`` counts the model's; ``position`` is among that one's indices."""

    def __init__(self, table: int, position: int, value: int, rows: int, name: str = "") -> None:
        super().__init__(position, value, rows)
        self.table, self.rows = table, rows
        told = f" ({name!r})" if name else ""
        self.args = (f"table {table}{told}: {self.args[0]}",)
