"""What the FTL keeps: records on flash (mapped files) and tables in the drive's DRAM (lost when the process dies).

On flash, that is in shared mappings of the store's files, which survive the process at any instant:

- page data at ``media + (ppn << page_shift)``, with an ``Oob`` record each;
- a ``Header`` for each block, whose ``word`` (kind, stream, pages written) changes by one ordered store: everything
  below the write pointer is whole, because data and ``Oob`` are stored before it;
- the journal of deallocations (``TrimRecord``).

Everything else is DRAM. Map entries (u32 for each logical page): 0 unmapped, ``ppn + 1``, or ``BUFFERED_BIT | slot``.
"""

from __future__ import annotations

from emucsd_wire.layout import F64, I64, U32, State
from emucsd_wire.words import pointer

UNMAPPED, BUFFERED = -1, -2  # what ``location`` says when there is no ppn

BUFFERED_BIT = 1 << 31
SLOT_MASK = BUFFERED_BIT - 1
CHUNK_BITS = 12  # a map chunk, the unit of checkpoints: 4096 entries, 16 KiB
CHUNK = 1 << CHUNK_BITS
REGIONS = 32  # namespaces: each has its own stretch of logical pages
STREAMS = 3  # open blocks that each plane has a place for
RESERVE = 1  # free blocks of a die that only garbage collection may open: it needs one to make any room at all
NEVER = 1 << 62

# kinds of blocks; those in a Header are FREE (a hole in the file) to BAD
FREE, OPEN, FULL, FAILED, BAD = 0, 1, 2, 3, 4  # FAILED: a program failed; to be emptied, then BAD
REFRESH, LIMBO, ABSENT = 5, 6, 7  # FULL but to be moved; empty but not yet reusable (see barrier); beyond the die

GARBAGE, WORN, MUST = 0, 1, 2  # reasons to empty a block: for its space, for wear levelling, or it must be left

# State of a buffer slot
SPARE, DIRTY, CLEAN, HELD = 0, 1, 2, 3  # CLEAN: on flash, its program still runs; HELD: prepared, not committed

# ordered words that data plane and control thread share (Ftl.words)
PUBLISHED, TRIMS_WRITTEN, TRIMS_FOLDED, CHECKPOINTED, WANTED = 0, 1, 2, 3, 4
WORDS = 8


class Oob(State):
    """Out-of-band record of a flash page."""

    lpn: I64
    seq: I64
    bad: I64  # one bit for each logical block that reads as uncorrectable
    check: U32  # over this record, its ppn and the block's opening
    data_check: U32  # over the page's bytes, with durability "machine"; else 0


class Header(State):
    """A block's record on flash. 64 bytes, so that none lies across two sectors of the disk."""

    word: I64  # kind | stream << 8 | pages written << 16
    opened: I64  # seq before its first page
    closed: I64  # seq of its last page, once it is closed
    stamp: I64  # host pages written when its newest data was new
    born: I64  # drive age in ns when it was opened (retention)
    erases: U32
    reads: U32  # valid after a clean stop only, as ``valid`` is
    valid: U32
    spare: U32
    unused: I64


class TrimRecord(State):
    """One deallocation in the journal."""

    lpn: I64
    count: I64
    seq: I64
    check: I64


class Place(State):
    """Where a stream's next page goes in one plane: ``next`` == ``end`` when no block is open."""

    next: I64
    end: I64
    fresh: I64  # 1: the block is used for the first time in this process, see blocks.claim


class Die(State):
    """A die as garbage collection sees it."""

    free: I64  # blocks
    usable: I64  # blocks that are not bad
    collecting: I64  # 1 from gc_low until gc_high
    pending: I64  # blocks that must be moved: FAILED, REFRESH
    victim: I64  # global block, -1 none
    cursor: I64  # next page of the victim to look at
    end: I64
    choices: I64  # victims so far
    turn: I64  # plane of the next page that is moved
    reason: I64  # why the victim was chosen: GARBAGE, WORN, MUST
    busy: I64  # a background slice of this die is in the NAND model


class Slot(State):
    """One page of the write buffer. Links are slot numbers; the lists' heads are slots past the last page."""

    previous: I64
    next: I64
    state: I64
    lpn: I64
    old: I64  # map entry of the version on flash: kept alive until this one is there too
    bad: I64
    flight: I64  # program that carries it, while CLEAN
    since: I64  # time at which it became dirty


class Ftl(State):
    """Root of the FTL. Addresses point to memory that ``store.Store`` owns."""

    # flash: shared mappings
    media: I64
    oob: I64
    headers: I64
    journal: I64
    # DRAM, by logical page or chunk of the map
    map: I64  # u32
    dirty: I64  # u8 a chunk: changed since it was last written to the map's file
    chunk_pages: I64  # u16 a chunk: entries that are not 0
    # DRAM, by block (global number)
    kinds: I64  # u8
    seen: I64  # u8: opened in this process before
    valid: I64  # u32
    erases: I64  # u32
    reads: I64  # u32
    stamps: I64  # i64
    heaps: I64  # i64: one heap of free blocks a plane, by erase count
    limbo: I64  # i64 list
    # DRAM, small
    heap_counts: I64  # i64 a plane
    die_table: I64
    places: I64  # Place, STREAMS a plane
    stripes: I64  # u32: planes in the order in which pages are striped over them
    turns: I64  # i64 a stream
    words: I64
    zero_page: I64
    # geometry
    page_bytes: I64
    page_shift: I64
    page_bits: I64
    block_bits: I64
    plane_bits: I64
    die_shift: I64  # page_bits + block_bits
    pages: I64  # of a block
    blocks: I64  # of a die
    plane_blocks: I64
    planes: I64  # of the drive
    dies: I64
    block_end: I64
    lpn_end: I64
    region_pages: I64
    capacity_pages: I64
    # settings
    streams: I64
    gc_stream: I64
    gc_low: I64  # free blocks of a die
    gc_high: I64
    wear_gap: I64
    trim_ns: I64
    machine_durable: I64
    unreliable: I64  # the reliability model has something to say
    disturb_limit: I64  # reads of a block after which it is refreshed; 0 never
    claim_pages: I64  # of a fresh block, whose memory is asked for together
    window: I64  # blocks that one choice of a victim looks at
    # writing
    seq: I64  # of the last page or trim
    mapped: I64  # logical pages
    mapped_limit: I64
    marked_pages: I64  # live pages with a bad mask
    limbo_count: I64
    limbo_limit: I64  # at which a barrier is due
    collecting_dies: I64  # dies with collecting or pending
    read_only: I64  # spare blocks have run out
    disk_full: I64  # the file system that the store lies on is about to be
    spare_blocks: I64
    spare_total: I64
    background_die: I64
    age_base: I64  # drive age = age_base + now
    last_now: I64
    image_bad: I64  # bad mask of the page between prepare and commit
    image_slot: I64  # where its image is: a slot, or -1: flash, at place image_place
    image_place: I64
    image_stream: I64
    held_slot: I64  # the slot that is HELD, or -1
    # write buffer
    write_cache: I64
    buffer_pages: I64
    buffer_write_ns: I64
    dirty_high: I64
    destage_ns: I64
    images: I64
    slots: I64
    dirty_count: I64
    occupied: I64  # pages dirty or being programmed from the buffer
    waiting: I64  # of those, pages whose commands wait for room
    wait_head: I64  # job + 1
    wait_tail: I64
    flush_head: I64
    flush_tail: I64
    waits: I64  # i64 pairs a job: pages or flight that it waits for, next job + 1
    dram_free: I64
    flights: I64  # i64 ring: slot + 1, 0 none, -1 landed
    flight_mask: I64
    flight_next: I64
    flight_done: I64
    first_job: I64
    # files, for the barrier
    data_fd: I64
    oob_fd: I64
    blocks_fd: I64
    trim_fd: I64
    # journal
    trim_slots: I64
    # counters
    host_pages: I64  # written by the host, as they reach flash or the buffer
    host_partial: I64
    host_programs: I64  # pages programmed for the host
    gc_moves: I64
    wear_moves: I64
    refresh_moves: I64
    flash_erases: I64
    flash_reads: I64
    trims: I64
    trimmed_pages: I64
    buffer_merges: I64
    buffer_waits: I64
    corrected_bits: F64  # expected number: the model draws the worst codeword, not every bit
    read_retries: I64
    uncorrectable: I64
    program_failures: I64
    erase_failures: I64
    retired_blocks: I64
    refreshes: I64
    barriers: I64
    faults: I64  # an invariant did not hold: our bug


ftl_at = pointer(Ftl)
oob_at = pointer(Oob)
header_at = pointer(Header)
trim_record_at = pointer(TrimRecord)
place_at = pointer(Place)
die_at = pointer(Die)
slot_at = pointer(Slot)
