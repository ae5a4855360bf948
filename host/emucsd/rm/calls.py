"""The four published calls of RM-SSD's runtime library, as thin functions over ``Table`` and ``Session``.

    table = RM_create_table(drive, "items", weights)
    ...
    session = Session.open(drive, model, tables=["items", "users"], weights=layers)
    ticket = RM_send_inputs(session, dense, [(indices, offsets), (indices, offsets)])
    clicks = RM_read_outputs(ticket)

Arrays may be NumPy's or PyTorch's; a tensor in gives a tensor out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emucsd.drive import Drive
from emucsd.rm.inputs import Sparse, SparseLike
from emucsd.rm.session import Session, Ticket
from emucsd.rm.weights import as_array
from emucsd.table import Table


class Sent(NamedTuple):
    """A batch that is under way; ``tensors``: it came as PyTorch's, and so do its outputs."""

    session: Session
    ticket: Ticket
    tensors: bool


def RM_create_table(drive: Drive, name: str | Path, rows: Any, **options: Any) -> Table:  # noqa: N802 (published name)
    """Store rows as a table and open it.

    :param name: of the volume; or a ``Path`` (or text with a ``/``): a file of a file system on the drive; its
        extents are asked of Linux and passed down
    :param rows: FP32[rows, dim]
    :param options: as ``Table.create`` or ``Table.create_file`` take them
    :raises NameTaken: and the others of ``Table.create``
    """
    data = as_array(rows)
    if isinstance(name, Path) or "/" in name:
        return Table.create_file(name, data, drive=drive, **options)
    return Table.create(drive, name, data, **options)


def RM_open_table(drive: Drive, name: str | Path, **options: Any) -> Table:  # noqa: N802
    """Open a table that was stored; its owner and mode say who may.

    :param name: as for ``RM_create_table``
    :raises NameUnknown: and the others of ``Table.open``
    """
    if isinstance(name, Path) or "/" in name:
        return Table.from_file(name, drive=drive, **options)
    return Table.open(drive, name, **options)


def RM_send_inputs(session: Session, dense: Any, sparse: SparseLike) -> Sent:  # noqa: N802
    """Send a batch; the outputs of those before it need not have been read.

    :param dense, sparse: as ``Session.send`` takes them
    """
    tensors = _is_tensor(dense) or _has_tensor(sparse)
    features = None if dense is None else as_array(dense)
    return Sent(session, session.send(features, _arrays(sparse)), tensors)


def RM_read_outputs(sent: Sent) -> Any:  # noqa: N802
    """Wait for a batch's outputs: FP32[samples, outputs]. :raises EmucsdError: as ``Session.read``"""
    outputs = sent.session.read(sent.ticket)
    if not sent.tensors:
        return outputs
    import torch

    return torch.from_numpy(outputs)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _has_tensor(sparse: SparseLike) -> bool:
    if isinstance(sparse, list | tuple):
        return any(_has_tensor(item) for item in sparse)
    return _is_tensor(sparse)


def _arrays(sparse: SparseLike) -> SparseLike:
    if isinstance(sparse, Sparse):
        return sparse
    if isinstance(sparse, Sequence):
        return [
            tuple(as_array(part) for part in item) if isinstance(item, Sequence) else as_array(item) for item in sparse
        ]
    return as_array(sparse)
