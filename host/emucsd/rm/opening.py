"""RM_OPEN: a model and its open tables as the drive is told them."""

from __future__ import annotations

from collections.abc import Sequence

from emucsd.drive import Drive
from emucsd.rm.errors import ModelError
from emucsd.rm.refusal import explain
from emucsd.rm.shape import Shape
from emucsd.table import Table
from emucsd_wire.rm import (
    RM_LAYER,
    RM_MODEL,
    RM_TABLE,
    RM_VERSION,
    Activation,
    Budget,
    Interaction,
    LayerGroup,
    Pooling,
    RmAdmin,
    RmFlag,
    RmLayer,
    RmModel,
    RmTable,
)

_ACTIVATIONS = {"none": Activation.NONE, "relu": Activation.RELU, "sigmoid": Activation.SIGMOID}
_INTERACTIONS = {"cat": Interaction.CAT, "dot": Interaction.DOT}
_POOLINGS = {"sum": Pooling.SUM, "mean": Pooling.MEAN}


def tables_of(drive: Drive, model: Shape, tables: Sequence[Table | str] | None, own: list[Table]) -> list[Table]:
    """Open tables, one for each of the model's; those that are opened here go to ``own``, too.

    :raises ModelError: another number of them, of another shape, or on another drive
    """
    wanted = list(model.table_names()) if tables is None else list(tables)
    if len(wanted) != len(model.tables):
        raise ModelError(f"{len(wanted)} tables given; {model.name} has {len(model.tables)}")
    opened = []
    for number, (item, shape) in enumerate(zip(wanted, model.tables, strict=True)):
        if isinstance(item, str):
            table = Table.open(drive, item)
            own.append(table)
        else:
            table = item
        if (len(table), table.dim) != (shape.rows, shape.dim):
            raise ModelError(
                f"table {number} ({table.name!r}) has {len(table)} rows of {table.dim}; "
                f"{model.name} has {shape.rows} of {shape.dim}: model.with_rows() makes one with other rows"
            )
        if table.drive is not drive:
            raise ModelError(f"table {number} ({table.name!r}) was opened on another Drive; open it on this one")
        opened.append(table)
    return opened


def handle_of(table: Table) -> int:
    """Of an open table, on the drive. :raises TableClosed: it is not open"""
    return table._handle().handle


def watched(table: Table) -> bool:
    """Whether it is a file that may be moved on disk, and is to be looked after."""
    return table._file is not None and table._file.verify


def open_session(
    drive: Drive, model: Shape, tables: Sequence[Table], flags: int, depth: int, samples: int, fpga: str
) -> int:
    """Open it on the drive. :returns: the session's id. :raises RmError: see ``Session.open``"""
    if fpga not in ("profile", "XCVU9P", "XC7A200T"):
        raise ModelError(f"fpga {fpga!r}: 'profile', 'XCVU9P' or 'XC7A200T'")
    bare = bool(flags & RmFlag.NO_MLP)
    header = RmModel(
        version=RM_VERSION,
        flags=flags,
        interaction=_INTERACTIONS["cat" if bare else model.interaction],
        bottom=0 if bare else len(model.bottom),
        top=0 if bare else len(model.top),
        depth=depth,
        tables=len(tables),
        budget=Budget[fpga.upper()],
        dense=0 if bare else model.dense,
        samples=samples,
        lookups=model.lookups,
        reserved=bytes(40),
    )
    layers = b""
    for number, layer in enumerate(() if bare else model.layers):
        group = LayerGroup.BOTTOM if number < len(model.bottom) else LayerGroup.TOP
        layers += RM_LAYER.pack(RmLayer(layer.inputs, layer.outputs, _ACTIVATIONS[layer.activation], group, 0, 0, 0))
    handles = b"".join(
        RM_TABLE.pack(RmTable(handle_of(table), _POOLINGS[shape.pooling], bytes(3)))
        for table, shape in zip(tables, model.tables, strict=True)
    )
    data = RM_MODEL.pack(header) + layers + handles
    answer = drive.passthrough("admin", RmAdmin.RM_OPEN, data=data, cdw10=len(data), check=False)
    if answer.status & 0x7FF:
        raise explain(model, tables, None, None, "RM_OPEN", answer.status, answer.dw0)
    return answer.dw0
