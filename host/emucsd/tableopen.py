"""A table as the drive knows it: opened, closed, swapped, its rows replaced; each a command or a few."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.errors import InvalidArgument
from emucsd.lookup import IndexOutOfRange, OpenTable
from emucsd.namespace import Namespace
from emucsd.rows import Rows, TableInfo
from emucsd.rowtypes import encode
from emucsd_wire.nvme import Io
from emucsd_wire.vendor import (
    MAX_PAYLOAD,
    TABLE_ENTRY,
    TABLE_EXTENT,
    TABLE_HEADER,
    TABLE_LIST_BYTES,
    TABLE_VERSION,
    TableEntry,
    TableFlag,
    TableHeader,
    VendorAdmin,
    name_hash,
)


def open_table(drive: Drive, namespace: Namespace, info: TableInfo) -> int:
    """TABLE_OPEN. :returns: the handle"""
    extents = np.zeros(len(info.extents), TABLE_EXTENT.dtype)
    extents["slba"], extents["blocks"] = zip(*info.extents, strict=True)
    extents["first_byte"][1:] = np.cumsum(extents["blocks"][:-1].astype(np.int64)) * namespace.lba_bytes
    header = TableHeader(
        TABLE_VERSION,
        info.kind,
        namespace.nsid,
        info.rows,
        info.dim,
        len(extents),
        name_hash(info.name),
        info.seed or 0,
        info.stride,
        TableFlag(0) if info.seed is None else TableFlag.GENERATED,
    )
    data = TABLE_HEADER.pack(header) + extents.tobytes()
    return drive.passthrough("admin", VendorAdmin.TABLE_OPEN, namespace.nsid, data=data, cdw10=len(data)).dw0


def close_table(drive: Drive, handle: int) -> None:
    """TABLE_CLOSE, whether or not the drive still has it open."""
    drive.passthrough("admin", VendorAdmin.TABLE_CLOSE, cdw11=handle, check=False)


def open_tables(drive: Drive) -> Iterator[TableEntry]:
    """What is open through this port."""
    answer = drive.passthrough("admin", VendorAdmin.TABLE_LIST, length=TABLE_LIST_BYTES, cdw10=TABLE_LIST_BYTES)
    data = answer.data.tobytes()
    for at in range(0, TABLE_LIST_BYTES, TABLE_ENTRY.size):
        entry = TABLE_ENTRY.unpack(data, at)
        if entry.handle:
            yield entry


def is_open(drive: Drive, nsid: int, name: str) -> bool:
    """Whether a table of this name is open through this port, by anyone."""
    return any((entry.nsid, entry.name_hash) == (nsid, name_hash(name)) for entry in open_tables(drive))


def swap_tables(drive: Drive, first: int, second: int) -> None:
    """TABLE_SWAP. :raises LookupRefused: the drive can't, and says why"""
    drive.passthrough("admin", VendorAdmin.TABLE_SWAP, cdw11=first, cdw12=second)


def update_rows(drive: Drive, table: OpenTable, info: TableInfo, ids: NDArray[np.int64], rows: Rows) -> None:
    """TABLE_UPDATE, as often as it takes. Rows go in order of their ids: those of a page are written together.

    :raises IndexOutOfRange: an id names no row; nothing was changed
    """
    wrong = np.flatnonzero((ids < 0) | (ids >= table.rows))
    if len(wrong):
        raise IndexOutOfRange(int(wrong[0]), int(ids[wrong[0]]), table.rows)
    last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]  # of each id, in order of ids
    ids, content = ids[last], encode(rows[last], info.kind)
    each = 8 + info.content_bytes
    step = min(MAX_PAYLOAD, drive.max_transfer) // each
    if step < 1:
        raise InvalidArgument(f"a row of {info.content_bytes} bytes fits no command; use write_rows")
    for first in range(0, len(ids), step):
        some = ids[first : first + step]
        payload = drive.alloc(len(some) * each)
        payload[: 8 * len(some)].view(np.int64)[:] = some
        payload[8 * len(some) :] = content[first : first + step].reshape(-1)
        size = payload.nbytes
        drive.passthrough(
            "io", Io.TABLE_UPDATE, table.nsid, data=payload, cdw10=len(some), cdw11=table.handle, cdw12=size
        )
