"""A status of an RM command as the error that says what to do."""

from __future__ import annotations

from collections.abc import Sequence

from emucsd.errors import EmucsdError, error_for
from emucsd.lookup import RowUnreadable
from emucsd.rm.errors import (
    BudgetExceeded,
    DramExceeded,
    IndexOutOfRangeOfTable,
    ModelError,
    SessionBusy,
    SessionClosed,
    SessionsFull,
    WeightsMissing,
)
from emucsd.rm.inputs import Sparse
from emucsd.rm.payload import Part, place_of
from emucsd.rm.shape import Shape
from emucsd.rows import TableClosed
from emucsd.table import Table
from emucsd_wire.nvme import Status
from emucsd_wire.rm import MAX_SESSIONS


def explain(
    model: Shape,
    tables: Sequence[Table],
    sparse: Sparse | None,
    part: Part | None,
    command: str,
    status: int,
    dw0: int,
) -> EmucsdError:
    """The error for a status; the drive's own is its cause.

    :param sparse: the batch, and the ``part`` of it that the command carried, where it carried one
    """
    cause = error_for(f"{command} of {model.name}", status, dw0)
    found = _explain(model, tables, sparse, part, status & 0x7FF, dw0) or cause
    if found is not cause:
        found.__cause__ = cause
    return found


def _explain(
    model: Shape, tables: Sequence[Table], sparse: Sparse | None, part: Part | None, code: int, dw0: int
) -> EmucsdError | None:
    match code:
        case Status.LOOKUP_INDEX_RANGE | Status.UNRECOVERED_READ if sparse is not None and part is not None:
            number, position, value = place_of(sparse, part, dw0)
            if code == Status.UNRECOVERED_READ:
                return RowUnreadable(position, value)
            return IndexOutOfRangeOfTable(number, position, value, len(tables[number]), tables[number].name)
        case Status.LOOKUP_NO_TABLE:
            names = ", ".join(repr(table.name) for table in tables)
            return TableClosed(f"the drive does not have all of {names} open; Table.open opens a table again")
        case Status.RM_NO_SESSION:
            return SessionClosed(f"the drive no longer has the session of {model.name}; Session.open opens another")
        case Status.RM_SESSIONS_FULL:
            return SessionsFull(f"all {MAX_SESSIONS} sessions of the drive are in use; close one")
        case Status.RM_MODEL:
            return ModelError(f"{model.name}: the drive takes no model of these layers and tables (part {dw0})")
        case Status.RM_BUDGET:
            return BudgetExceeded(
                f"{model.name}: its kernels need more LUT, FF, BRAM or DSP than the FPGA has; choose a larger fpga=, "
                "smaller layers, or search=True"
            )
        case Status.RM_DRAM:
            return DramExceeded(
                f"{model.name}: {model.parameter_bytes} bytes of weights, with the batches' inputs, exceed the drive's "
                "memory for them (mlp.dram_bytes of its profile); use smaller layers, or a smaller depth"
            )
        case Status.RM_WEIGHTS:
            name = model.layer_name(dw0) if dw0 < len(model.layers) else f"layer {dw0}"
            return WeightsMissing(f"{model.name}: {name} has no weights yet; session.load() brings them", (name,))
        case Status.RM_BUSY:
            return SessionBusy(f"{model.name}: as many batches as may be are in flight; read one first")
    return None
