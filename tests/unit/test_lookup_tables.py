"""Opening and closing tables: limits, shapes, extents, handles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emucsd_firmware.lookup.state import QUEUED, LookupMemory
from emucsd_firmware.lookup.tables import Space, TableRefused, Tables
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import (
    LOOKUP_HEADER,
    MAX_DIM,
    MAX_EXTENTS,
    MAX_TABLES,
    TABLE_ENTRY,
    TABLE_EXTENT,
    TABLE_LIST_BYTES,
    TABLE_STATS,
    TableHeader,
    ids_offset,
    name_hash,
)

PAGE = 4096
SPACE = Space(first_lpn=1000, blocks=1 << 20, lba_bytes=512)


def make() -> Tables:
    settings: Any = SimpleNamespace(
        clock_mhz=200, translate_cycles=1, sum_lanes=16, sum_cycles=1, path_buffer=64,
        cache_rows=0, cache_ways=8, cache_cycles=4,
    )  # fmt: skip
    return Tables(LookupMemory(settings, PAGE, dies=4, first_job=0))


def extents(*spans: tuple[int, int], first: int = 0) -> NDArray[Any]:
    """TableExtent columns from (slba, blocks), table bytes counted up from ``first``."""
    found = np.zeros(len(spans), TABLE_EXTENT.dtype)
    for row, (slba, blocks) in zip(found, spans, strict=True):
        row["first_byte"], row["slba"], row["blocks"] = first, slba, blocks
        first += blocks * SPACE.lba_bytes
    return found


def header(**changes: int) -> TableHeader:
    values: dict[str, Any] = {
        "version": 1,
        "dtype": 0,
        "nsid": 1,
        "rows": 8,
        "dim": 32,
        "extents": 1,
        "name_hash": name_hash("t"),
    }
    return TableHeader(**{**values, **changes})


def refused(status: Status, tables: Tables, head: TableHeader, columns: NDArray[Any]) -> None:
    with pytest.raises(TableRefused) as caught:
        tables.open(0, head, columns, SPACE)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (Status.INVALID_FIELD, {"version": 3}),
        (Status.INVALID_FIELD, {"version": 1, "dtype": 1}),
        (Status.INVALID_FIELD, {"version": 1, "row_bytes": 128}),
        (Status.INVALID_FIELD, {"version": 1, "seed": 5}),
        (Status.INVALID_FIELD, {"version": 2, "flags": 2}),
        (Status.LOOKUP_TABLE_SHAPE, {"version": 2, "dtype": 4}),
        (Status.LOOKUP_TABLE_SHAPE, {"version": 2, "dtype": 1, "flags": 1}),
        (Status.LOOKUP_TABLE_SHAPE, {"version": 2, "row_bytes": 127}),
        (Status.LOOKUP_TABLE_SHAPE, {"version": 2, "row_bytes": 129}),
        (Status.LOOKUP_TABLE_SHAPE, {"version": 2, "row_bytes": 1 << 21}),
        (Status.LOOKUP_TABLE_SHAPE, {"dim": 0}),
        (Status.LOOKUP_TABLE_SHAPE, {"dim": MAX_DIM + 1}),
        (Status.LOOKUP_TABLE_SHAPE, {"rows": 0}),
        (Status.LOOKUP_TABLE_SHAPE, {"rows": 9}),
        (Status.LOOKUP_TABLE_SHAPE, {"rows": (1 << 64) - 1}),
        (Status.LOOKUP_TABLE_SHAPE, {"extents": 2}),
        (Status.LOOKUP_TABLE_SHAPE, {"extents": 0}),
    ],
)
def test_header_refused(status: Status, changes: dict[str, int]) -> None:
    """Each field of the header has its limits, and a table must fit its extents."""
    refused(status, make(), header(**changes), extents((64, 2)))


def test_extents_refused() -> None:
    """Extents lie inside the namespace, are not empty, follow each other, and are 4096 at most."""
    tables = make()
    refused(Status.LBA_OUT_OF_RANGE, tables, header(), extents((SPACE.blocks - 1, 2)))
    refused(Status.LBA_OUT_OF_RANGE, tables, header(extents=2), extents((0, 2), (8, 0)))
    huge = extents((0, 2))
    huge["slba"] = (1 << 64) - 1
    refused(Status.LBA_OUT_OF_RANGE, tables, header(), huge)
    refused(Status.LOOKUP_TABLE_SHAPE, tables, header(), extents((0, 2), first=512))
    many = [(8 * n, 1) for n in range(MAX_EXTENTS + 1)]
    refused(Status.LOOKUP_TABLE_SHAPE, tables, header(extents=MAX_EXTENTS + 1), extents(*many))
    assert tables.open(0, header(extents=MAX_EXTENTS), extents(*many[:-1]), SPACE)


def test_places() -> None:
    """An extent's base leads from a table's byte to the flash address, and aligned tables are known to be whole."""
    tables = make()
    handle = tables.open(0, header(rows=24, extents=2), extents((8, 4), (800, 2)), SPACE)
    slot = handle % MAX_TABLES
    start = SPACE.first_lpn * PAGE
    rows = tables.memory.extents[slot][:3].tolist()
    assert rows == [(0, start + 8 * 512), (2048, start + 800 * 512 - 2048), (3072, 0)]
    assert tables.records[slot]["whole"] == 1
    odd = tables.open(0, header(dim=33, rows=4, name_hash=2), extents((8, 4)), SPACE)
    assert tables.records[odd % MAX_TABLES]["whole"] == 0


def test_handles() -> None:
    """The same table opened twice is one handle, closed twice; old handles and other ports' name nothing."""
    tables = make()
    handle = tables.open(0, header(), extents((64, 2)), SPACE)
    assert tables.open(0, header(), extents((64, 2)), SPACE) == handle
    assert tables.open(1, header(), extents((64, 2)), SPACE) != handle
    refused(Status.LOOKUP_TABLE_EXISTS, tables, header(rows=7), extents((64, 2)))
    refused(Status.LOOKUP_TABLE_EXISTS, tables, header(), extents((66, 2)))
    for port in (1, 0, 0):
        if port == 1:
            with pytest.raises(TableRefused):
                tables.close(1, handle)
        else:
            tables.close(0, handle)
    with pytest.raises(TableRefused) as caught:
        tables.close(0, handle)
    assert caught.value.status == Status.LOOKUP_NO_TABLE
    assert tables.open(0, header(), extents((64, 2)), SPACE) not in (0, handle)


def test_full() -> None:
    """64 tables are open at most, over both ports; closing one makes room."""
    tables = make()
    handles = [tables.open(n % 2, header(name_hash=n), extents((64, 2)), SPACE) for n in range(MAX_TABLES)]
    refused(Status.LOOKUP_TABLES_FULL, tables, header(name_hash=99), extents((64, 2)))
    tables.close(1, handles[1])
    assert tables.open(0, header(name_hash=99), extents((64, 2)), SPACE)


def test_busy_and_gone() -> None:
    """A table with unread lookups stays open; when its namespace goes, they fail and its slot waits for them."""
    tables = make()
    handle = tables.open(0, header(), extents((64, 2)), SPACE)
    slot = handle % MAX_TABLES
    request = tables.memory.requests[5]
    tables.records[slot]["active"], request["state"], request["table"] = 1, QUEUED, slot
    with pytest.raises(TableRefused) as caught:
        tables.close(0, handle)
    assert caught.value.status == Status.LOOKUP_BUSY
    tables.close_namespace(2)
    tables.close_namespace(1, port=1)
    assert tables.records[slot]["handle"] == handle
    tables.close_namespace(1)
    assert request["status"] == Status.INVALID_NAMESPACE
    assert tables.open(0, header(), extents((64, 2)), SPACE) % MAX_TABLES != slot


def test_list_and_stats() -> None:
    """TABLE_LIST tells a port's own tables, TABLE_STATS one table's counters."""
    tables = make()
    mine = tables.open(0, header(name_hash=(1 << 64) - 2), extents((64, 2)), SPACE)
    other = tables.open(1, header(), extents((64, 2)), SPACE)
    data = tables.list(0)
    assert len(data) == TABLE_LIST_BYTES
    entry = TABLE_ENTRY.unpack(data)
    assert (entry.handle, entry.rows, entry.dim, entry.name_hash, entry.opens) == (mine, 8, 32, (1 << 64) - 2, 1)
    assert TABLE_ENTRY.unpack(data, TABLE_ENTRY.size).handle == 0
    tables.records[mine % MAX_TABLES]["vectors"] = 7
    assert TABLE_STATS.unpack(tables.stats(0, mine)).vectors == 7
    with pytest.raises(TableRefused):
        tables.stats(0, other)
    tables.close_port(0)
    assert TABLE_ENTRY.unpack(tables.list(0)).handle == 0
    assert TABLE_ENTRY.unpack(tables.list(1)).handle == other


def test_ids_are_aligned() -> None:
    """Ids begin on a multiple of 8 bytes, whatever is before them."""
    assert ids_offset(1, 32, carry=False) == LOOKUP_HEADER.size + 8
    assert ids_offset(2, 33, carry=True) == 32 + 4 * 33 + 12
    assert all(ids_offset(bags, 3, carry) % 8 == 0 for bags in range(1, 9) for carry in (False, True))
