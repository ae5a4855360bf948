"""NVMe Base 2.1 and NVM Command Set 1.1, as far as this drive speaks them: names are the specification's.

Registers (Base 3.1.4), submission and completion entries (Base 4.1, 4.2), opcodes (Base figures 30 and 31, NVM figure
20), status codes (Base figures 97 to 101).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, NamedTuple

from emucsd_wire.layout import U8, U16, U32, U64, Codec, Raw


class Register(IntEnum):
    """Byte offsets in BAR0."""

    CAP = 0x00
    VS = 0x08
    INTMS = 0x0C
    INTMC = 0x10
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30
    CMBLOC = 0x38
    CMBSZ = 0x3C
    CRTO = 0x68
    DOORBELLS = 0x1000


class Sqe(NamedTuple):
    """Submission queue entry."""

    opcode: U8
    flags: U8  # FUSE 1:0, PSDT 7:6
    cid: U16
    nsid: U32
    cdw2: U32
    cdw3: U32
    mptr: U64
    prp1: U64  # or the first half of SGL1
    prp2: U64
    cdw10: U32
    cdw11: U32
    cdw12: U32
    cdw13: U32
    cdw14: U32
    cdw15: U32


class Cqe(NamedTuple):
    """Completion queue entry."""

    dw0: U32
    dw1: U32
    sqhd: U16
    sqid: U16
    cid: U16
    status: U16  # phase 0, SC 8:1, SCT 11:9, CRD 13:12, More 14, DNR 15


class SglDescriptor(NamedTuple):
    """SGL descriptor (Base 4.3.2)."""

    address: U64
    length: U32
    reserved: Annotated[bytes, Raw(3)]
    kind: U8  # type 7:4, subtype 3:0


class DsmRange(NamedTuple):
    """Dataset Management range (NVM 3.3.3)."""

    attributes: U32
    blocks: U32
    slba: U64


class CopyRange(NamedTuple):
    """Copy source range, descriptor format 0 (NVM 3.3.2)."""

    reserved0: U64
    slba: U64
    blocks: U16  # 0-based
    reserved1: Annotated[bytes, Raw(14)]


SQE = Codec(Sqe, 64)
CQE = Codec(Cqe, 16)
SGL_DESCRIPTOR = Codec(SglDescriptor, 16)
DSM_RANGE = Codec(DsmRange, 16)
COPY_RANGE = Codec(CopyRange, 32)

SGL_DATA_BLOCK, SGL_SEGMENT, SGL_LAST_SEGMENT = 0x00, 0x20, 0x30


class Admin(IntEnum):
    """Admin opcodes."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DOORBELL_BUFFER_CONFIG = 0x7C
    FORMAT_NVM = 0x80
    SANITIZE = 0x84
    # vendor: lookups (emucsd_wire.vendor) and FEMU's
    FEMU_FLIP = 0xEF


class Io(IntEnum):
    """NVM command set opcodes."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    COPY = 0x19
    # vendor: bit 1:0 say the data's direction (01 to the drive, 10 from it), as Linux passthrough expects
    LOOKUP_SEND = 0x81
    LOOKUP_READ = 0x82
    TUNNEL_SEND = 0x85
    TUNNEL_RECEIVE = 0x86
    RM_SEND = 0x89
    RM_READ = 0x8A
    RM_WEIGHTS = 0x8D
    TABLE_UPDATE = 0x91


class Status(IntEnum):
    """Status as SCT << 8 | SC. 0 is success."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    CID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    POWER_LOSS_ABORT = 0x005
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_SGL_SEGMENT = 0x00D
    INVALID_SGL_COUNT = 0x00E
    DATA_SGL_LENGTH = 0x00F
    INVALID_SGL_TYPE = 0x011
    PRP_OFFSET_INVALID = 0x013
    KEEP_ALIVE_EXPIRED = 0x019
    SANITIZE_FAILED = 0x01C
    SANITIZE_IN_PROGRESS = 0x01D
    NAMESPACE_WRITE_PROTECTED = 0x020
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    FORMAT_IN_PROGRESS = 0x084
    CQ_INVALID = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_LIMIT = 0x103
    AER_LIMIT = 0x105
    INVALID_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115
    NAMESPACE_ID_UNAVAILABLE = 0x116
    NAMESPACE_ALREADY_ATTACHED = 0x118
    NAMESPACE_PRIVATE = 0x119
    NAMESPACE_NOT_ATTACHED = 0x11A
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11B
    CONTROLLER_LIST_INVALID = 0x11C
    IO_COMMAND_SET_NOT_SUPPORTED = 0x129
    CONFLICTING_ATTRIBUTES = 0x180
    WRITE_TO_READ_ONLY = 0x182
    COMMAND_SIZE_LIMIT = 0x183
    WRITE_FAULT = 0x280
    UNRECOVERED_READ = 0x281
    COMPARE_FAILURE = 0x285
    DEALLOCATED = 0x287
    # vendor specific (SCT 7): lookups
    LOOKUP_NO_TABLE = 0x7C0  # cdw10 names no open table
    LOOKUP_INDEX_RANGE = 0x7C1  # dw0: position of the first id out of range
    LOOKUP_OFFSETS = 0x7C2  # dw0: position of the first offset that is not monotone or past the ids
    LOOKUP_BUSY = 0x7C3  # the request tag is in use, or none is free
    LOOKUP_NO_REQUEST = 0x7C4  # no lookup was sent under this tag
    LOOKUP_TABLE_SHAPE = 0x7C5  # row width, dtype or extents that the engine can't take
    LOOKUP_TABLE_EXISTS = 0x7C6
    LOOKUP_TABLES_FULL = 0x7C7
    # ... and the tunnel
    TUNNEL_CLOSED = 0x7D0  # the host has not opened it, or has closed it
    TUNNEL_BATCH = 0x7D1  # dw0: offset of the first bad frame
    # ... and inference sessions
    RM_NO_SESSION = 0x7E0  # no session of this port has this id
    RM_SESSIONS_FULL = 0x7E1
    RM_MODEL = 0x7E2  # layers, tables and widths that do not fit together, or that are past a limit
    RM_BUDGET = 0x7E3  # the kernels need more LUT, FF, BRAM or DSP than the FPGA has
    RM_DRAM = 0x7E4  # weights or buffers exceed the device's DRAM
    RM_WEIGHTS = 0x7E5  # outside of a layer, or not all are there (dw0: the layer)
    RM_BUSY = 0x7E6  # the tag is in use, or as many batches as may be are in flight
    RM_NO_BATCH = 0x7E7  # no batch was sent under this tag
    RM_BATCH = 0x7E8  # sizes of a batch that are not the session's, or do not fit each other


DNR = 0x4000  # Do Not Retry, as a bit of (status >> 1)
NSID_ALL = 0xFFFF_FFFF
PAGE = 4096  # memory page size (CC.MPS = 0) is the only one
MAX_TRANSFER = 1 << 20  # bytes a command (Identify Controller MDTS = 8)
COPY_MAX_RANGES = 128  # Identify Namespace MSRC + 1
COPY_MAX_RANGE_BLOCKS = 2048  # MSSRL
COPY_MAX_BLOCKS = 16384  # MCL


class ClockWords(NamedTuple):
    """Words that drive and host share at BAR0 offset 0x1F00, behind the doorbells (ours, not the specification's).

    ``asleep``: the drive stores 1 before it sleeps; a host that has rung a mapped doorbell (or stored ``wait``) and
    then, after a full fence, sees 1 repeats the doorbell as a REGION_WRITE message, which wakes the drive. Hosts that
    do not know this (SPDK) are found by the drive's own slow poll.

    Virtual clock: the drive's time moves only in *grants*, so a run depends on nothing but what the host declared. The
    host rings doorbells at the drive's present time, as many as it likes; then it stores ``wait = granted + 1`` and
    spins until ``granted == wait``. Only now does the drive look at its queues (in queue order). With
    ``host_now > drive_now`` the host is thinking: the drive runs what is due up to ``host_now``. It grants the time of
    the first completion, of ``host_now``, or, to a host that does not think, of when nothing is left to happen; a
    host that has not thought to its end asks again. ``drive_now`` and the completions are visible before ``granted``.
    """

    mode: U64  # 0 real, 1 virtual; written by the drive
    host_now: U64  # ns
    wait: U64
    granted: U64
    drive_now: U64  # ns
    asleep: U64  # written by the drive
    attached: U64  # the host stores 1 when it follows this protocol; else virtual time jumps whenever the drive is idle


CLOCK_WORDS = Codec(ClockWords, 56)
CLOCK_WORDS_OFFSET = 0x1F00
