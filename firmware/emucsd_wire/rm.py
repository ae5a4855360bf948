"""Recommendation inference in the drive: sessions of a whole model, their batches, and their registers in BAR0.

A *session* is a model over tables that are open on the same port (``emucsd_wire.vendor``): bottom MLP, embedding sums,
interaction, top MLP. ``RM_OPEN`` describes it and returns its id, ``RM_WEIGHTS`` brings its layers' weights. Then every
``RM_SEND`` carries a batch of inputs under a tag, and ``RM_READ`` with that tag returns the batch's outputs and frees
the tag; the next batches may be sent before that, as many as ``depth`` says.

| command    | opcode    | cdw10   | cdw11   | cdw12 | cdw13  | data                                         | dw0     |
| ---------- | --------- | ------- | ------- | ----- | ------ | -------------------------------------------- | ------- |
| RM_OPEN    | admin C9h | bytes   |         |       |        | RmModel, RmLayer[layers], RmTable[tables]    | session |
| RM_CLOSE   | admin CCh |         | session |       |        | none                                         |         |
| RM_INFO    | admin CEh | bytes   | session |       |        | RmInfo, RmLayerInfo[33] (unused ones zeros)  |         |
| RM_WEIGHTS | I/O 8Dh   | session | layer   | bytes | offset | part of FP32 weight[out, in], FP32 bias[out] |         |
| RM_SEND    | I/O 89h   | session | tag     | bytes |        | RmBatch, then what it announces              |         |
| RM_READ    | I/O 8Ah   | session | tag     | bytes |        | FP32[samples, out]                           | changed |

The I/O commands name any namespace that is attached to the port. ``bytes`` is the size of the host's buffer. An RM_READ
of 0 bytes drops the batch. Tags are 0 to 255, for each session. Sessions belong to the port that opened them; a
controller reset closes them, and so does the loss of a table's namespace. A table of a session can't be closed.

**Model.** Layers come bottom first, then top, each in order; the output of one is the input of the next. The first
bottom layer takes ``dense`` numbers a sample; without bottom layers the dense inputs go into the interaction as they
are. CAT: the first top layer takes [bottom output, sums of table 0, sums of table 1, ...]. DOT: bottom output and all
tables have one width d; vector 0 is the bottom output, vector t + 1 the sums of table t; the first top layer takes
[vector 0, dot products (1, 0), (2, 0), (2, 1), (3, 0), ...]: d + n(n - 1)/2 numbers for n = tables + 1. With NO_MLP
there are no layers and no dense inputs: the session returns [sums of table 0, sums of table 1, ...].

**Weights** of a layer are its weight matrix row by row, one row an output (PyTorch's Linear.weight), then its bias, in
FP32; RM_WEIGHTS brings ``bytes`` of them from byte ``offset`` on, both multiples of 4. RM_SEND is refused with Rm
Weights and a layer's number in dw0 until all layers are there; they can be loaded anew while no batch is in flight.

**Batches.** After an RmBatch: FP32[samples, dense], u32 offsets[tables * samples + 1], zeros up to a multiple of 8
bytes, ids of 4 or 8 bytes, and with WEIGHTED zeros up to a multiple of 8 bytes and FP32 weights[lookups]. Bag
``table * samples + sample`` is ``ids[offsets[bag]:offsets[bag + 1]]``; offsets start at 0, never fall and end at
``lookups``. RM_SEND checks all of it before it does anything, and names the position of the first bad id or offset in
dw0. A batch under way holds its tag; without PIPELINE the next one is refused with Rm Busy until it was read.
A row that can't be read fails the batch's RM_READ with Unrecovered Read Error and its position among the ids in dw0.
An RM_READ that succeeds says in dw0 whether a table of the session was updated or swapped while the batch was under
way (1): its samples may then differ in which rows they saw, and a host that minds sends it again.

**Registers.** The page at BAR0 + 2000h holds RmRegisters[16], one a session, at place ``session % 16``. It can be
mapped together with the doorbell page, and read and written by messages. The host may leave ``samples``, ``lookups``
and ``flags`` of its next batch there: they stand for those of an RmBatch whose ``samples`` is 0. Everything else in it
is written by the drive alone. ``ready`` moves when a batch's modelled time has come, so a host that polls it need not
have an RM_READ wait. Linux's own driver hides BAR0: RM_READ does without the registers.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from emucsd_wire.layout import U8, U16, U32, U64, Codec, Raw

RM_VERSION = 1
MAX_SESSIONS = 16  # open at a time, over both ports
MAX_SESSION_TABLES = 64
MAX_LAYERS = 32  # bottom and top together
MAX_WIDTH = 65536  # inputs or outputs of a layer, dense inputs, and numbers that go into the first top layer
MAX_DEPTH = 8  # batches of a session in flight
MAX_SAMPLES = 16384  # of a batch
MAX_RM_TAGS = 256
MAX_RM_PAYLOAD = 1 << 20  # bytes of one RM_SEND, of one RM_WEIGHTS and of one RM_READ
INFO_LAYERS = MAX_LAYERS + 1  # a decomposed first top layer is two
RM_REGISTERS_OFFSET = 0x2000  # in BAR0


class RmAdmin(IntEnum):
    """Admin opcodes; bits 1:0 say the data's direction."""

    RM_OPEN = 0xC9
    RM_CLOSE = 0xCC
    RM_INFO = 0xCE


class RmFlag(IntFlag):
    """RmModel.flags: the mechanisms, each of which can be left out."""

    DECOMPOSE = 1  # the first top layer in two parts, so that its bottom part need not wait for the sums
    COMPOSE = 2  # neighbouring layers scan in alternate directions and overlap
    SEARCH = 4  # kernels as small as the speed of the lookups allows
    PIPELINE = 8  # batches may be sent before earlier ones were read
    PAGE_GRAIN = 16  # whole pages leave the dies, not vectors
    NO_MLP = 32  # no layers: the sums are the outputs


class Interaction(IntEnum):
    """How the bottom output and the sums become the first top layer's input."""

    CAT = 0
    DOT = 1


class Budget(IntEnum):
    """The FPGA whose resources the kernels must fit."""

    PROFILE = 0  # the one that the drive's profile names
    XCVU9P = 1
    XC7A200T = 2


class Activation(IntEnum):
    """What follows a layer's sums."""

    NONE = 0
    RELU = 1
    SIGMOID = 2


class LayerGroup(IntEnum):
    """Where a layer stands. EMBEDDING is in RmLayerInfo alone: the sums' part of a decomposed first top layer."""

    BOTTOM = 0
    TOP = 1
    EMBEDDING = 2


class Pooling(IntEnum):
    """How a bag's rows become one vector. The mean of an empty bag is zeros."""

    SUM = 0
    MEAN = 1


class Placement(IntEnum):
    """Where a layer's weights lie."""

    BRAM = 0
    DRAM = 1


class RmBatchFlag(IntFlag):
    """Flags of an RmBatch."""

    WEIGHTED = 1  # FP32 weights follow the ids
    WIDE_IDS = 2  # ids have 8 bytes, not 4


class RmModel(NamedTuple):
    """Opens a session; RmLayer and RmTable entries follow it."""

    version: U16  # 1
    flags: U16
    interaction: U8
    bottom: U8  # layers
    top: U8  # layers
    depth: U8  # batches in flight, 1 to 8
    tables: U16
    budget: U16
    dense: U32  # numbers a sample
    samples: U32  # of a batch, at most
    lookups: U32  # a sample over all tables, as expected: what the kernel search plans for
    reserved: Annotated[bytes, Raw(40)]


class RmLayer(NamedTuple):
    """One fully connected layer."""

    inputs: U32
    outputs: U32
    activation: U8
    group: U8
    kr: U16  # kernel rows (inputs at a time), 0: the drive's choice
    kc: U16  # kernel columns (outputs at a time), 0: the drive's choice
    reserved: U16


class RmTable(NamedTuple):
    """One table of a session."""

    handle: U32  # of an open table
    pooling: U8
    reserved: Annotated[bytes, Raw(3)]


class RmBatch(NamedTuple):
    """Opens the data of an RM_SEND. With ``samples`` 0 the session's registers say what the first three fields do."""

    samples: U32
    lookups: U32  # ids
    flags: U32
    reserved: Annotated[bytes, Raw(20)]


class RmInfo(NamedTuple):
    """A session: what it was opened with, how it is mapped onto the engine, and what it has done."""

    version: U16
    flags: U16  # as opened
    interaction: U8
    bottom: U8
    top: U8
    depth: U8
    tables: U16
    budget: U16  # XCVU9P or XC7A200T
    dense: U32
    out: U32  # numbers a sample that RM_READ returns
    samples: U32
    layers: U32  # RmLayerInfo entries
    minibatch: U32  # samples that go through the stages together
    clock_mhz: U32
    ii: U32  # cycles between two uses of an adder tree's output
    in_flight: U32  # batches that were accepted and not read
    lookups_ns: U64  # time of a whole mini-batch's lookups, as the kernel search expects it
    embedding_ns: U64  # times of the three stages for a whole mini-batch; the first goes on beside the lookups
    bottom_ns: U64
    top_ns: U64
    lut: U64  # used by the kernels, and what they may take of the FPGA
    lut_total: U64
    ff: U64
    ff_total: U64
    bram: U64  # blocks of 36 Kbit
    bram_total: U64
    dsp: U64
    dsp_total: U64
    dram: U64  # bytes of weights that lie in the device's DRAM
    dram_total: U64
    dram_traffic: U64  # bytes of weights read from DRAM for a whole mini-batch
    weights: U64  # bytes of all layers
    accepted: U64  # batches
    ready: U64  # of them: ended, well or not
    failed: U64  # of those: not well
    inferred: U64  # samples of batches that ended well
    lookups: U64  # ids of accepted batches
    embedding_busy_ns: U64  # of the stages' units
    bottom_busy_ns: U64
    top_busy_ns: U64
    stall_ns: U64  # that the top unit waited for the other two with work to come
    reserved: Annotated[bytes, Raw(44)]


class RmLayerInfo(NamedTuple):
    """A layer as it is mapped."""

    inputs: U32
    outputs: U32
    kr: U16
    kc: U16
    group: U8
    placement: U8
    composed: U8  # 1: its time overlaps with its neighbour's
    reserved0: U8
    cycles: U64  # for a whole mini-batch
    reserved1: U64


class RmRegisters(NamedTuple):
    """A session's place in the page at BAR0 + 2000h."""

    samples: U32  # written by the host
    lookups: U32  # written by the host
    flags: U32  # written by the host
    session: U32  # its id, 0 where there is none (of this port)
    accepted: U64  # batches that RM_SEND has brought
    ready: U64  # batches that ended, in the order in which they were sent
    failed: U64  # of those: not well
    reserved: Annotated[bytes, Raw(24)]


RM_MODEL = Codec(RmModel, 64)
RM_LAYER = Codec(RmLayer, 16)
RM_TABLE = Codec(RmTable, 8)
RM_BATCH = Codec(RmBatch, 32)
RM_INFO = Codec(RmInfo, 288)
RM_LAYER_INFO = Codec(RmLayerInfo, 32)
RM_REGISTERS = Codec(RmRegisters, 64)

RM_INFO_BYTES = RM_INFO.size + INFO_LAYERS * RM_LAYER_INFO.size
RM_OPEN_BYTES = RM_MODEL.size + MAX_LAYERS * RM_LAYER.size + MAX_SESSION_TABLES * RM_TABLE.size  # at most


class BatchLayout(NamedTuple):
    """Byte offsets in the data of an RM_SEND."""

    dense: int
    offsets: int
    ids: int
    weights: int  # where they would begin; there are none without WEIGHTED
    size: int


def batch_layout(samples: int, lookups: int, flags: int, *, dense: int, tables: int) -> BatchLayout:
    """Where the parts of a batch lie.

    :param dense: dense inputs a sample, with ``tables`` as the session was opened
    """
    dense_at = RM_BATCH.size
    offsets_at = dense_at + 4 * samples * dense
    ids_at = (offsets_at + 4 * (tables * samples + 1) + 7) // 8 * 8
    ids_end = ids_at + lookups * (8 if flags & RmBatchFlag.WIDE_IDS else 4)
    weights_at = (ids_end + 7) // 8 * 8
    size = weights_at + 4 * lookups if flags & RmBatchFlag.WEIGHTED else ids_end
    return BatchLayout(dense_at, offsets_at, ids_at, weights_at, size)


def weight_bytes(inputs: int, outputs: int) -> int:
    """Bytes of a layer's weights and bias, as RM_WEIGHTS brings them."""
    return 4 * outputs * (inputs + 1)
