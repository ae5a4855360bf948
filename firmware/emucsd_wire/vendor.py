"""The vendor commands of the lookup engine: admin commands for tables, two I/O commands for lookups.

A table is rows of FP32, packed, over *extents* of one namespace. ``TABLE_OPEN`` describes it and returns a handle.
``LOOKUP_SEND`` carries bags of row ids to the drive under a tag; ``LOOKUP_READ`` with that tag returns one sum a bag
and frees the tag. Each command moves data one way, as its opcode's low bits say, so Linux passthrough can carry them.

| command     | opcode    | cdw10 | cdw11  | cdw12 | data                                  | dw0    |
| ----------- | --------- | ----- | ------ | ----- | ------------------------------------- | ------ |
| TABLE_CLOSE | admin C0h |       | handle |       | none                                  |        |
| TABLE_OPEN  | admin C1h | bytes |        |       | TableHeader, TableExtent[extents]     | handle |
| TABLE_LIST  | admin C2h | bytes |        |       | TableEntry[64], unused ones are zeros | tables |
| TABLE_STATS | admin C6h | bytes | handle |       | TableStats                            |        |
| LOOKUP_SEND | I/O 81h   | tag   |        | bytes | LookupHeader, then what it announces  |        |
| LOOKUP_READ | I/O 82h   | tag   |        | bytes | FP32[bags, dim]                       |        |

``bytes`` is the size of the host's buffer. A LOOKUP_READ of 0 bytes drops the result. Tags are 0 to 255, for each port.

After a LookupHeader: FP32[dim] when flag CARRY is set (the sums that the first bag starts from: how a bag longer than
a command goes on), u32 offsets[bags + 1], zeros up to a multiple of 8 bytes, then ids of 4 or 8 bytes each. Bag
``b`` is ``ids[offsets[b]:offsets[b + 1]]``; offsets start at 0, never fall and end at ``ids``. Rows are added to zero
(or to the carry) in index order, in FP32. A row that was never written is zeros; one that cannot be read fails the
LOOKUP_READ with Unrecovered Read Error and its position among the ids in dw0. LOOKUP_SEND checks ids and offsets before
it does anything, and names the position of the first bad one in dw0.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from hashlib import blake2b
from typing import Annotated, NamedTuple

from emucsd_wire.layout import U8, U16, U32, U64, Codec, Raw

MAX_TABLES = 64  # open at a time, over both ports
MAX_EXTENTS = 4096  # of one table
MAX_DIM = 8192
MAX_TAGS = 256  # lookups in flight on a port
MAX_PAYLOAD = 1 << 20  # bytes of one LOOKUP_SEND
MAX_RESULT = 1 << 20  # bytes of one LOOKUP_READ


class VendorAdmin(IntEnum):
    """Admin opcodes; bits 1:0 say the data's direction (Base figure 28)."""

    TABLE_CLOSE = 0xC0
    TABLE_OPEN = 0xC1
    TABLE_LIST = 0xC2
    TABLE_STATS = 0xC6


class Dtype(IntEnum):
    """Row types. FP32 is the only one this engine adds."""

    FP32 = 0


class Grain(IntEnum):
    """What leaves a flash page's register for a vector: its own bytes, or the whole page."""

    VECTOR = 0
    PAGE = 1


class LookupFlag(IntFlag):
    """Flags of a LookupHeader."""

    CARRY = 1


class TableHeader(NamedTuple):
    """Opens a table; TableExtent entries follow it."""

    version: U16  # 1
    dtype: U16
    nsid: U32
    rows: U64
    dim: U32
    extents: U32
    name_hash: U64
    reserved: Annotated[bytes, Raw(32)]


class TableExtent(NamedTuple):
    """Bytes of the packed table from ``first_byte`` on lie in ``blocks`` logical blocks from ``slba`` on."""

    first_byte: U64
    slba: U64
    blocks: U32
    reserved: U32


class TableEntry(NamedTuple):
    """One open table, as TABLE_LIST tells it."""

    handle: U32
    nsid: U32
    rows: U64
    dim: U32
    dtype: U16
    port: U16
    extents: U32
    opens: U32
    name_hash: U64
    reserved: Annotated[bytes, Raw(24)]


class TableStats(NamedTuple):
    """Counters of one open table since it was opened."""

    requests: U64
    bags: U64
    vectors: U64
    flash_reads: U64
    flash_bytes: U64  # that left the dies for it
    buffered: U64  # vectors (or their parts) that lay in the drive's write buffer
    unwritten: U64  # vectors (or their parts) on pages that were never written: zeros, without a flash read
    split: U64  # vectors that crossed a page or an extent
    failed: U64  # requests that met a row that cannot be read
    reserved: Annotated[bytes, Raw(56)]


class LookupHeader(NamedTuple):
    """Opens the data of a LOOKUP_SEND."""

    handle: U32
    grain: U8
    id_bytes: U8  # 4 or 8
    flags: U16
    bags: U32
    ids: U32
    reserved: Annotated[bytes, Raw(16)]


TABLE_HEADER = Codec(TableHeader, 64)
TABLE_EXTENT = Codec(TableExtent, 24)
TABLE_ENTRY = Codec(TableEntry, 64)
TABLE_STATS = Codec(TableStats, 128)
LOOKUP_HEADER = Codec(LookupHeader, 32)

TABLE_VERSION = 1
TABLE_LIST_BYTES = MAX_TABLES * TABLE_ENTRY.size


def name_hash(name: str) -> int:
    """64 bits of a table's name: what the drive knows of it."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def ids_offset(bags: int, dim: int, carry: bool) -> int:
    """Where the ids begin in the data of a LOOKUP_SEND."""
    end = LOOKUP_HEADER.size + (4 * dim if carry else 0) + 4 * (bags + 1)
    return (end + 7) // 8 * 8
