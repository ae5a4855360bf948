"""The functional MLP engine: a program of stages, run over a mini-batch in slices of bounded work.

A ``Program`` is a graph with its weights; a ``Run`` is one mini-batch on its way through it. ``forward_step`` does some
SLICE of multiply-adds (tens of microseconds on one core) and says whether the run has ended; between two calls the
run's cursor is all that is kept, so that any number of runs of any programs may take turns. Slices, mini-batches and
the hardware mapping (decomposition, composition: ``kernels``) do not change a bit of the result; ``gemm`` says why.

A row of X, the interaction's input: [bottom's output | table 0's sum | table 1's sum | …], FP32; rows are ``x_stride``
bytes apart. The engine writes the first part; the caller's lookups put their sums in place.
"""

from __future__ import annotations

from emucsd_firmware.mlp.activation import sigmoid
from emucsd_firmware.mlp.gemm import PANEL, ROWS, load_words, multiply
from emucsd_firmware.mlp.interact import dot
from emucsd_wire.layout import I64, State
from emucsd_wire.words import copy, get_i64, get_u8, jit, jit_inline, jit_unit, pointer, put_u8

SLICE = 1 << 20  # multiply-adds of a slice: 10 us with 512-bit registers and many samples, 40 us for a single sample

LINEAR, DOT, COPY = 0, 1, 2  # Stage.kind
DENSE, X, OUT, ROW = 0, 1, 2, 3  # where a stage takes from and puts to: a buffer of the run's
NONE, RELU, SIGMOID = 0, 1, 2  # Stage.activation, as graph.Activation
TILE_BYTES = 4 * ROWS * PANEL
SIGMOID_WORK = 64  # one element costs as much as so many multiply-adds


class Stage(State):
    """One step of a program: target = f(source), row by row."""

    kind: I64
    inputs: I64  # LINEAR, COPY: elements of a row; DOT: of a vector
    outputs: I64
    activation: I64
    source: I64
    source_at: I64  # byte of the row that the stage's part begins at
    source_stride: I64
    target: I64
    target_at: I64
    target_stride: I64
    vectors: I64  # DOT: rows of T
    head: I64  # DOT: elements that go over unchanged
    weights: I64  # address of FP32[ceil(outputs / PANEL), inputs, PANEL]
    bias: I64  # address of FP32[ceil(outputs / PANEL) * PANEL]
    seen: I64  # address of a bit for each parameter: 1 once it has been loaded
    missing: I64  # parameters that have not


class Program(State):
    """A graph with its weights."""

    stages: I64  # address of Stage[count]
    count: I64
    layers: I64  # address of int64[layer_count]: each layer's stage
    layer_count: I64
    missing: I64  # parameters of all layers that have not been loaded
    zeros: I64  # address of FP32[PANEL]
    rows_at: I64  # bytes of a run's scratch before its rows
    x_stride: I64  # bytes from one sample to the next
    dense_stride: I64
    out_stride: I64


class Run(State):
    """One mini-batch: addresses of its buffers (``ProgramMemory.sizes``), and how far it is."""

    dense: I64  # FP32[samples, dense], or 0 where the graph has none
    x: I64  # rows of X
    out: I64  # FP32[samples, outputs]
    scratch: I64
    samples: I64
    stage: I64
    panel: I64
    sample: I64


program_at = pointer(Program)
run_at = pointer(Run)
stage_at = pointer(Stage)


@jit_inline
def start_run(run: Run) -> None:
    """Back to the first stage."""
    run.stage = 0
    run.panel = 0
    run.sample = 0


@jit_inline
def _row(program: Program, run: Run, buffer: int, at: int, stride: int) -> int:
    """Address of sample ``run.sample``'s part in a buffer."""
    base = run.scratch + program.rows_at
    if buffer == DENSE:
        base = run.dense
    elif buffer == X:
        base = run.x
    elif buffer == OUT:
        base = run.out
    return base + at + run.sample * stride


@jit_inline
def _next(run: Run, rows: int, panels: int) -> None:
    """Move the cursor by ``rows`` samples: samples first, so that a panel stays in the core's cache."""
    run.sample += rows
    if run.sample == run.samples:
        run.sample = 0
        run.panel += 1
        if run.panel == panels:
            run.panel = 0
            run.stage += 1


@jit_inline
def _linear(program: Program, run: Run, stage: Stage) -> int:
    """One panel for at most ROWS samples. :returns: its work in multiply-adds"""
    rows = min(ROWS, run.samples - run.sample)
    columns = min(PANEL, stage.outputs - run.panel * PANEL)
    source = _row(program, run, stage.source, stage.source_at, stage.source_stride)
    target = _row(program, run, stage.target, stage.target_at, stage.target_stride) + 4 * PANEL * run.panel
    panel, bias = 4 * PANEL * stage.inputs * run.panel, 4 * PANEL * run.panel
    relu = 1 if stage.activation == RELU else 0
    multiply(
        source,
        stage.source_stride,
        stage.weights + panel,
        stage.bias + bias,
        stage.inputs,
        target,
        stage.target_stride,
        relu,
        rows,
        columns,
        run.scratch,
    )
    work = rows * PANEL * stage.inputs
    if stage.activation == SIGMOID:
        for row in range(rows):
            sigmoid(target + row * stage.target_stride, columns)
        work += rows * columns * SIGMOID_WORK
    _next(run, rows, (stage.outputs + PANEL - 1) // PANEL)
    return work


@jit_inline
def _dot(program: Program, run: Run, stage: Stage) -> int:
    """One sample."""
    source = _row(program, run, stage.source, stage.source_at, stage.source_stride)
    target = _row(program, run, stage.target, stage.target_at, stage.target_stride)
    panels, tile = run.scratch + TILE_BYTES, run.scratch
    dot(source, stage.vectors, stage.inputs, stage.head, target, panels, tile, program.zeros)
    _next(run, 1, 1)
    return stage.vectors * stage.inputs * (stage.vectors // 2 + PANEL)


@jit_inline
def _copy(program: Program, run: Run, stage: Stage) -> int:
    """One sample."""
    target = _row(program, run, stage.target, stage.target_at, stage.target_stride)
    copy(target, _row(program, run, stage.source, stage.source_at, stage.source_stride), 4 * stage.inputs)
    _next(run, 1, 1)
    return 4 * stage.inputs + 512


@jit_unit
def forward_step(program: Program, run: Run) -> int:
    """Some SLICE of multiply-adds of a run. :returns: 1 when the run's results are there, 0 when it is to go on"""
    work = 0
    while run.samples > 0 and run.stage < program.count:
        if work >= SLICE:
            return 0
        stage = stage_at(program.stages, run.stage)
        if stage.kind == LINEAR:
            work += _linear(program, run, stage)
        elif stage.kind == DOT:
            work += _dot(program, run, stage)
        else:
            work += _copy(program, run, stage)
    return 1


@jit
def _mark(seen: int, first: int, count: int) -> int:
    """Note that these parameters are there. :returns: how many had not been"""
    fresh = 0
    for word in range(first, first + count):
        byte, bit = get_u8(seen, word >> 3), 1 << (word & 7)
        if byte & bit == 0:
            put_u8(seen, word >> 3, byte | bit)
            fresh += 1
    return fresh


@jit_unit
def load_weights(program: Program, layer: int, offset: int, data: int, count: int) -> int:
    """Take bytes of a layer's parameters, FP32 weight[outputs, inputs] then bias[outputs], from byte ``offset`` on.

    Parts may come in any order, and again. No run of the program may be under way. 1 MiB takes some 0.7 ms.

    :returns: 0, or -1: no such layer, not whole words, or beyond the layer's end
    """
    if layer < 0 or layer >= program.layer_count:
        return -1
    stage = stage_at(program.stages, get_i64(program.layers, layer))
    weights = stage.inputs * stage.outputs
    first, words = offset >> 2, count >> 2
    if (offset | count) & 3 != 0 or offset < 0 or count < 0 or first + words > weights + stage.outputs:
        return -1
    here = max(min(words, weights - first), 0)
    load_words(stage.weights, stage.inputs, first, data, here)
    copy(stage.bias + 4 * (first + here - weights), data + 4 * here, 4 * (words - here))
    fresh = _mark(stage.seen, first, words)
    stage.missing -= fresh
    program.missing -= fresh
    return 0
