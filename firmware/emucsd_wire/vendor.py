"""The vendor commands of the lookup engine: admin commands for tables, I/O commands for lookups and changes of rows.

A table is rows of one type over *extents* of one namespace. ``TABLE_OPEN`` describes it and returns a handle.
``LOOKUP_SEND`` carries bags of row ids to the drive under a tag; ``LOOKUP_READ`` with that tag returns one sum a bag
and frees the tag. Each command moves data one way, as its opcode's low bits say, so Linux passthrough can carry them.

| command      | opcode    | cdw10 | cdw11  | cdw12 | data                                  | dw0     |
| ------------ | --------- | ----- | ------ | ----- | ------------------------------------- | ------- |
| TABLE_CLOSE  | admin C0h |       | handle |       | none                                  |         |
| TABLE_OPEN   | admin C1h | bytes |        |       | TableHeader, TableExtent[extents]     | handle  |
| TABLE_LIST   | admin C2h | bytes |        |       | TableEntry[64], unused ones are zeros | tables  |
| TABLE_SWAP   | admin C4h |       | handle | other | none; ``other`` is the second handle  |         |
| TABLE_STATS  | admin C6h | bytes | handle |       | TableStats                            |         |
| LOOKUP_SEND  | I/O 81h   | tag   |        | bytes | LookupHeader, then what it announces  |         |
| LOOKUP_READ  | I/O 82h   | tag   |        | bytes | FP32[bags, dim]                       | version |
| TABLE_UPDATE | I/O 91h   | rows  | handle | bytes | u64 ids[rows], the rows as stored     |         |

``bytes`` is the size of the host's buffer. A LOOKUP_READ of 0 bytes drops the result. Tags are 0 to 255, for each port.

After a LookupHeader: FP32[dim] when flag CARRY is set (the sums that the first bag starts from: how a bag longer than
a command goes on), u32 offsets[bags + 1], zeros up to a multiple of 8 bytes, ids of 4 or 8 bytes each, and when flag
WEIGHTED is set zeros up to a multiple of 8 bytes and FP32 weights[ids]. Bag ``b`` is ``ids[offsets[b]:offsets[b +
1]]``; offsets start at 0, never fall and end at ``ids``. Rows are added to zero (or to the carry) in index order, in
FP32; with weights each element is multiplied, rounded, and then added. MEAN divides a bag's sum by its number of ids,
once; an empty bag is zeros. A row that was never written is zeros; one that cannot be read fails the LOOKUP_READ with
Unrecovered Read Error and its position among the ids in dw0. LOOKUP_SEND checks ids and offsets before it does
anything, and names the position of the first bad one in dw0. With flag PREFETCH nothing is summed: the rows are read
and enter the drive's cache of hot rows (Invalid Field where it has none), and no tag is taken: offsets are [0, ids],
one bag.

Row types (``Dtype``), ``row_bytes`` apart (0 in the header: packed; else the table's own stride). A row's content:

- FP32: dim * 4 bytes; FP16: dim * 2 bytes (IEEE 754 binary16);
- INT8: dim unsigned bytes, FP32 scale, FP32 bias: an element is ``q * scale + bias``, a product, rounded, then a sum;
- INT4: ceil(dim / 2) bytes, the even column in the low half, FP16 scale, FP16 bias; the same with both widened first.

A GENERATED table (FP32) has content without having bytes: a row on a page that was never written is made from ``seed``.
``key = mix64(seed + (row + 1) * 9E3779B97F4A7C15h)`` modulo 2**64, with mix64 as splitmix64 ends (xor-shift 30, times
BF58476D1CE4E5B9h, xor-shift 27, times 94D049BB133111EBh, xor-shift 31). For column ``c``, modulo 2**32:
``h = low(key) + c * 9E3779B9h``; ``h ^= h >> 16``; ``h *= 85EBCA6Bh``; ``h += high(key)``; ``h ^= h >> 13``;
``h *= C2B2AE35h``; ``h ^= h >> 16``; the element is the signed upper 24 bits of ``h`` over 2**23: FP32 in [-1, 1). The
flash is as busy with such a row as with a written one, on the die where striping page after page would put its page.
Block reads know nothing of this and show zeros.

Lookups, updates and swaps of a drive run one after the other in the order in which the drive took them. A TABLE_UPDATE
completes when its rows are where a write's would be; no lookup command sees some of its rows old and some new. It takes
at most 1 MiB, for any open table that is not generated. TABLE_SWAP exchanges the places of two open tables of one port,
one namespace and one shape: lookups sent after its completion see the other's rows under each handle. Both count the
table's ``version`` up; LOOKUP_READ's dw0 is the low half of the version that all its sums are of.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from hashlib import blake2b
from typing import Annotated, NamedTuple

from emucsd_wire.layout import U8, U16, U32, U64, Codec, Raw

MAX_TABLES = 64  # open at a time, over both ports
MAX_EXTENTS = 4096  # of one table
MAX_DIM = 8192
MAX_ROW_BYTES = 1 << 20  # from one row to the next
MAX_TAGS = 256  # lookups in flight on a port
MAX_PAYLOAD = 1 << 20  # bytes of one LOOKUP_SEND
MAX_RESULT = 1 << 20  # bytes of one LOOKUP_READ


class VendorAdmin(IntEnum):
    """Admin opcodes; bits 1:0 say the data's direction (Base figure 28)."""

    TABLE_CLOSE = 0xC0
    TABLE_OPEN = 0xC1
    TABLE_LIST = 0xC2
    TABLE_SWAP = 0xC4
    TABLE_STATS = 0xC6


class Dtype(IntEnum):
    """Row types, as they are stored; sums are FP32."""

    FP32 = 0
    FP16 = 1
    INT8 = 2  # with FP32 scale and bias in each row
    INT4 = 3  # with FP16 scale and bias in each row


class Grain(IntEnum):
    """What leaves a flash page's register for a vector: its own bytes, or the whole page."""

    VECTOR = 0
    PAGE = 1


class LookupFlag(IntFlag):
    """Flags of a LookupHeader."""

    CARRY = 1
    WEIGHTED = 2
    MEAN = 4  # not with CARRY
    PREFETCH = 8  # alone


class TableFlag(IntFlag):
    """Flags of a TableHeader."""

    GENERATED = 1


class TableHeader(NamedTuple):
    """Opens a table; TableExtent entries follow it."""

    version: U16  # 2; of version 1 are FP32 rows, packed: all behind the name is zeros
    dtype: U16
    nsid: U32
    rows: U64
    dim: U32
    extents: U32
    name_hash: U64
    seed: U64 = 0  # of a GENERATED table
    row_bytes: U32 = 0  # from one row to the next; 0: packed
    flags: U32 = 0
    reserved: Annotated[bytes, Raw(16)] = bytes(16)


class TableExtent(NamedTuple):
    """Bytes of the table from ``first_byte`` on lie in ``blocks`` logical blocks from ``slba`` on."""

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
    version: U64  # updates and swaps since it was opened
    row_bytes: U32
    flags: U32
    reserved: Annotated[bytes, Raw(8)]


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
    version: U64  # updates and swaps
    updated: U64  # rows that updates stored
    hits: U64  # vectors out of the drive's cache of hot rows: no flash reads
    misses: U64
    admitted: U64  # rows that entered that cache
    evicted: U64  # rows of any table that they took the place of
    reserved: Annotated[bytes, Raw(8)]


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

TABLE_VERSION = 2
TABLE_LIST_BYTES = MAX_TABLES * TABLE_ENTRY.size


def name_hash(name: str) -> int:
    """64 bits of a table's name: what the drive knows of it."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def content_bytes(dtype: int, dim: int) -> int:
    """Bytes of a row's content. :raises ValueError: no Dtype"""
    sizes = {Dtype.FP32: 4 * dim, Dtype.FP16: 2 * dim, Dtype.INT8: dim + 8, Dtype.INT4: (dim + 1) // 2 + 4}
    return sizes[Dtype(dtype)]


def weights_offset(start: int, ids: int, width: int) -> int:
    """Where the weights begin behind ``ids`` ids of ``width`` bytes that begin at ``start``."""
    return (start + ids * width + 7) // 8 * 8


def ids_offset(bags: int, dim: int, carry: bool) -> int:
    """Where the ids begin in the data of a LOOKUP_SEND."""
    end = LOOKUP_HEADER.size + (4 * dim if carry else 0) + 4 * (bags + 1)
    return (end + 7) // 8 * 8
