"""y = act(x W^T + b) in FP32, the same bits on every machine.

Each output is ``b + x[0] w[0] + x[1] w[1] + …``: it starts from the bias (from +0 where there is none), inputs are
taken in ascending order, and each product is rounded before it is added (no fused multiply-add). How many samples and
columns are computed side by side changes nothing of that: blocks, slices, batches and vector widths give equal bits.

Weights are packed in *panels* of PANEL columns (outputs): ``panel[p]`` is FP32[inputs, PANEL], short ones padded with
zeros, so that they are read once from end to end. The kernels are spelt as LLVM vectors, as in ``lookup.vsum``: LLVM
may not reorder FP32 adds and does not vectorise over addresses that might overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from emucsd_wire.words import copy, get_u32, jit, jit_inline, put_u32

PANEL = 32  # columns of a panel
NARROW = 16
ROWS = 8  # samples that are computed side by side, at most

_I64, _I32, _F32 = ir.IntType(64), ir.IntType(32), ir.FloatType()

Kernel = Callable[[int, int, int, int, int, int, int, int], None]


def _kernel(samples: int, columns: int) -> Kernel:
    """(x, x_stride, panel, bias, inputs, y, y_stride, relu): a block of ``samples`` x ``columns`` outputs.

    Addresses and strides in bytes. ``bias``: address of FP32[columns]. All sums stay in registers.
    """
    vector = ir.VectorType(_F32, columns)

    @intrinsic  # type: ignore[untyped-decorator]
    def block(
        typingctx: Any, x: Any, x_stride: Any, panel: Any, bias: Any, inputs: Any, y: Any, y_stride: Any, relu: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, x_stride, panel, bias, inputs, y, y_stride, relu = args

            def load(address: Any, kind: Any) -> Any:
                value = builder.load(builder.inttoptr(address, kind.as_pointer()))
                value.align = 4
                return value

            def spread(value: Any) -> Any:
                one = builder.insert_element(ir.Constant(ir.VectorType(_F32, columns), ir.Undefined), value, _I32(0))
                mask = ir.Constant(ir.VectorType(_I32, columns), [0] * columns)
                return builder.shuffle_vector(one, one, mask)

            rows = [builder.add(x, builder.mul(x_stride, _I64(s))) for s in range(samples)]
            start = load(bias, vector)
            before = builder.block
            head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
            builder.branch(head)
            builder.position_at_end(head)
            index = builder.phi(_I64)
            index.add_incoming(_I64(0), before)
            sums = [builder.phi(vector) for _ in rows]
            for total in sums:
                total.add_incoming(start, before)
            builder.cbranch(builder.icmp_signed("<", index, inputs), body, done)
            builder.position_at_end(body)
            weights = load(builder.add(panel, builder.mul(index, _I64(4 * PANEL))), vector)
            offset = builder.shl(index, _I64(2))
            for row, total in zip(rows, sums, strict=True):
                product = builder.fmul(spread(load(builder.add(row, offset), _F32)), weights)
                total.add_incoming(builder.fadd(total, product), body)
            index.add_incoming(builder.add(index, _I64(1)), body)
            builder.branch(head)
            builder.position_at_end(done)
            zero = ir.Constant(vector, [0.0] * columns)
            keep = builder.icmp_signed("==", relu, _I64(0))
            for s, total in enumerate(sums):
                cut = builder.select(builder.fcmp_ordered("<", total, zero), zero, total)  # NaN stays NaN
                to = builder.inttoptr(builder.add(y, builder.mul(y_stride, _I64(s))), vector.as_pointer())
                builder.store(builder.select(keep, total, cut), to).align = 4
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 8), codegen

    result: Kernel = block
    return result


_8x32, _4x32, _2x32, _1x32 = (_kernel(samples, PANEL) for samples in (8, 4, 2, 1))
_4x16, _2x16, _1x16 = (_kernel(samples, NARROW) for samples in (4, 2, 1))

# 8 x 32 sums fill half of 32 registers of 512 bits; with shorter ones they would spill
WIDE = 1 if llvm.get_host_cpu_features().get("avx512f") else 0


@jit
def _narrow(
    x: int, x_stride: int, panel: int, bias: int, inputs: int, y: int, y_stride: int, relu: int, samples: int
) -> None:
    """The first NARROW columns of a panel."""
    row = 0
    while row + 4 <= samples:
        _4x16(x + row * x_stride, x_stride, panel, bias, inputs, y + row * y_stride, y_stride, relu)
        row += 4
    if row + 2 <= samples:
        _2x16(x + row * x_stride, x_stride, panel, bias, inputs, y + row * y_stride, y_stride, relu)
        row += 2
    if row < samples:
        _1x16(x + row * x_stride, x_stride, panel, bias, inputs, y + row * y_stride, y_stride, relu)


@jit
def _wide(
    x: int, x_stride: int, panel: int, bias: int, inputs: int, y: int, y_stride: int, relu: int, samples: int
) -> None:
    """All columns of a panel."""
    row = 0
    while row + 8 <= samples:
        _8x32(x + row * x_stride, x_stride, panel, bias, inputs, y + row * y_stride, y_stride, relu)
        row += 8
    if row + 4 <= samples:
        _4x32(x + row * x_stride, x_stride, panel, bias, inputs, y + row * y_stride, y_stride, relu)
        row += 4
    if row + 2 <= samples:
        _2x32(x + row * x_stride, x_stride, panel, bias, inputs, y + row * y_stride, y_stride, relu)
        row += 2
    if row < samples:
        _1x32(x + row * x_stride, x_stride, panel, bias, inputs, y + row * y_stride, y_stride, relu)


@jit_inline
def _both_halves(
    x: int, x_stride: int, panel: int, bias: int, inputs: int, y: int, y_stride: int, relu: int, samples: int
) -> None:
    """``_wide`` for shorter registers."""
    half = 4 * NARROW
    _narrow(x, x_stride, panel, bias, inputs, y, y_stride, relu, samples)
    _narrow(x, x_stride, panel + half, bias + half, inputs, y + half, y_stride, relu, samples)


@jit
def multiply(
    x: int,
    x_stride: int,
    panel: int,
    bias: int,
    inputs: int,
    y: int,
    y_stride: int,
    relu: int,
    samples: int,
    columns: int,
    tile: int,
) -> None:
    """One panel: y[s, 0:columns] = bias + x[s] @ panel, then ReLU if asked for, for ``samples`` <= ROWS rows.

    :param x: address of the first row, FP32[inputs]; rows are ``x_stride`` bytes apart, those of y ``y_stride``
    :param columns: <= PANEL; nothing beyond them is written
    :param tile: address of FP32[ROWS, PANEL], scratch for a short panel
    """
    if columns == PANEL:
        if WIDE != 0 or samples == 1:
            _wide(x, x_stride, panel, bias, inputs, y, y_stride, relu, samples)
        else:
            _both_halves(x, x_stride, panel, bias, inputs, y, y_stride, relu, samples)
        return
    if columns > NARROW:
        _both_halves(x, x_stride, panel, bias, inputs, tile, 4 * PANEL, relu, samples)
    else:
        _narrow(x, x_stride, panel, bias, inputs, tile, 4 * PANEL, relu, samples)
    for row in range(samples):
        copy(y + row * y_stride, tile + row * 4 * PANEL, 4 * columns)


@jit
def load_words(panels: int, inputs: int, first: int, data: int, count: int) -> None:
    """Place ``count`` words of a weight FP32[outputs, inputs] (PyTorch's layout), from word ``first`` on, in panels."""
    output, at = first // inputs, first % inputs
    for word in range(count):
        panel, column = output // PANEL, output % PANEL
        put_u32(panels, (panel * inputs + at) * PANEL + column, get_u32(data, word))
        at += 1
        if at == inputs:
            output, at = output + 1, 0
