"""RecSSD's two commands (Wilkening et al., ASPLOS 2021; public firmware and driver), which a drive takes where
``recssd.enabled`` says so. Elsewhere the mark is what NVMe says it is: a reserved bit.

They are Write (01h) and Read (02h) with bit 16 of CDW12 set. Their blocks are 4 KiB each whatever the namespace's
format. SLBA says two things: a table starts at block ``SLBA - SLBA % 1000`` of the namespace, and ``SLBA % 1000`` is
the request's id. A table is rows of FP32, packed, from its start on.

| command | opcode      | SLBA             | NLB (0-based) | data                                      | dw0      |
| ------- | ----------- | ---------------- | ------------- | ----------------------------------------- | -------- |
| write   | 01h, marked | table start + id | of the data   | SlsConfig, then SlsPair[input_embeddings] | position |
| read    | 02h, marked | table start + id | of the data   | FP32 sums, packed                         | position |

The write starts a request: result ``pair.result`` is the sum of its pairs' rows, added in their order. Pairs rise by
``embedding``. The reads with the same SLBA take the results away, each the next sectors of 4 KiB; one may come before
its write. A read is held until the sums of its sectors are complete. With the last sector the request is gone.
Statuses: Invalid Field (sizes; no such sector), Command Size Limit Exceeded, LBA Out of Range (no such table),
LOOKUP_TABLE_SHAPE (attribute size, width, table id), LOOKUP_INDEX_RANGE (dw0: position of the first pair whose row or
result is out of range), LOOKUP_OFFSETS (dw0: position of the first pair that falls), LOOKUP_BUSY (8 requests are in
the drive, or this one is), LOOKUP_NO_REQUEST (a read whose write did not come within 100 ms), Unrecovered Read (dw0:
position of the pair whose row is lost).
"""

from __future__ import annotations

from typing import NamedTuple

from emucsd_wire.layout import U32, Codec

MARK = 1 << 16  # of CDW12
SECTOR = 4096  # bytes of a block, and of what a read takes away
TABLE_ALIGN = 1000  # blocks: tables start at multiples of it, request ids are below it
FIRST_BLOCK = 5000  # where RecSSD's driver puts its first table
STRIDE = 2_500_000  # blocks from one of its tables to the next: about 10 GB
MAX_CONFIG = 1 << 20  # bytes of a write
MAX_SECTORS = 256  # of a request's results
MAX_REQUESTS = 8  # in the drive at a time
TABLE_IDS = 32
ATTRIBUTE = 4  # bytes of an element: FP32
MAX_LENGTH = 8192  # elements of a row


class SlsConfig(NamedTuple):
    """Opens the data of a write."""

    attribute_size: U32  # 4: FP32
    embedding_length: U32  # elements of a row
    result_embeddings: U32
    input_embeddings: U32
    table_id: U32  # 0 to 31: tells tables apart in the drive's embedding cache


class SlsPair(NamedTuple):
    """One row of one result."""

    result: U32
    embedding: U32


SLS_CONFIG = Codec(SlsConfig, 20)
SLS_PAIR = Codec(SlsPair, 8)
MAX_PAIRS = (MAX_CONFIG - SLS_CONFIG.size) // SLS_PAIR.size
