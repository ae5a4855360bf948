"""Rows of every type as FP32, and their weighted sums: ``emucsd_wire.vendor`` says how each is stored.

An element is widened to FP32 exactly; a quantised one is then multiplied by its row's scale and rounded, and the bias
is added and rounded; the result is multiplied by the row's weight and rounded, and added to the sum and rounded. No
step is fused with another, so NumPy, doing the same in the same order, finds the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from emucsd_wire.vendor import Dtype
from emucsd_wire.words import jit

FP32, FP16, INT8, INT4 = (int(kind) for kind in (Dtype.FP32, Dtype.FP16, Dtype.INT8, Dtype.INT4))
_I64, _I32, _I16, _I8, _F32 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8), ir.FloatType()

Adder = Callable[[int, int, int, int, int, int], None]


def _vector(scalar: Any, lanes: int) -> Any:
    return ir.VectorType(scalar, lanes)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    vector = _vector(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(
        one, ir.Constant(vector, ir.Undefined), ir.Constant(_vector(_I32, lanes), [0] * lanes)
    )


def _load(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1  # strides are the host's choice
    return value


def _widened(builder: Any, halves: Any, lanes: int) -> Any:
    """binary16 as FP32, exactly, without instructions that a processor may lack: exponents move by a multiplication."""
    kind = _vector(_I32, lanes)

    def word(value: int) -> Any:
        return ir.Constant(kind, [value] * lanes)

    bits = builder.zext(halves, kind)
    sign = builder.shl(builder.and_(bits, word(0x8000)), word(16))
    rest = builder.shl(builder.and_(bits, word(0x7FFF)), word(13))
    floats = _vector(_F32, lanes)
    moved = builder.fmul(builder.bitcast(rest, floats), ir.Constant(floats, [2.0**112] * lanes))
    moved = builder.bitcast(moved, kind)
    endless = builder.or_(rest, word(0x7F800000))  # infinities and NaN keep the largest exponent
    moved = builder.select(builder.icmp_unsigned(">=", rest, word(0x0F800000)), endless, moved)
    return builder.bitcast(builder.or_(moved, sign), floats)


def _scaled(builder: Any, numbers: Any, scale: Any, bias: Any, lanes: int) -> Any:
    floats = builder.uitofp(numbers, _vector(_F32, lanes))
    return builder.fadd(builder.fmul(floats, _splat(builder, scale, lanes)), _splat(builder, bias, lanes))


def _half(builder: Any, address: Any) -> Any:
    """An FP16 scalar as FP32."""
    wide = _widened(builder, _splat(builder, _load(builder, address, _I16), 1), 1)
    return builder.extract_element(wide, ir.Constant(_I32, 0))


def _nibbles(builder: Any, row: Any, column: Any, lanes: int) -> Any:
    """``lanes`` columns of 4 bits from ``column`` on: an even one, where there are several."""
    byte = builder.add(row, builder.lshr(column, ir.Constant(_I64, 1)))
    if lanes == 1:
        shift = builder.trunc(builder.shl(builder.and_(column, ir.Constant(_I64, 1)), ir.Constant(_I64, 2)), _I8)
        nibble = builder.and_(builder.lshr(_load(builder, byte, _I8), shift), ir.Constant(_I8, 15))
        return _splat(builder, nibble, 1)
    half = _vector(_I8, lanes // 2)
    packed = _load(builder, byte, half)
    low = builder.and_(packed, ir.Constant(half, [15] * (lanes // 2)))
    high = builder.lshr(packed, ir.Constant(half, [4] * (lanes // 2)))
    order = [n // 2 + n % 2 * (lanes // 2) for n in range(lanes)]
    return builder.shuffle_vector(low, high, ir.Constant(_vector(_I32, lanes), order))


def _elements(builder: Any, dtype: int, row: Any, column: Any, dim: Any, lanes: int) -> Any:
    """``lanes`` elements of a row as FP32."""
    if dtype == FP32:
        return _load(builder, builder.add(row, builder.shl(column, ir.Constant(_I64, 2))), _vector(_F32, lanes))
    if dtype == FP16:
        place = builder.add(row, builder.shl(column, ir.Constant(_I64, 1)))
        return _widened(builder, _load(builder, place, _vector(_I16, lanes)), lanes)
    if dtype == INT8:
        tail = builder.add(row, dim)
        scale, bias = (_load(builder, builder.add(tail, ir.Constant(_I64, at)), _F32) for at in (0, 4))
        return _scaled(builder, _load(builder, builder.add(row, column), _vector(_I8, lanes)), scale, bias, lanes)
    tail = builder.add(row, builder.lshr(builder.add(dim, ir.Constant(_I64, 1)), ir.Constant(_I64, 1)))
    scale, bias = (_half(builder, builder.add(tail, ir.Constant(_I64, at))) for at in (0, 2))
    return _scaled(builder, _nibbles(builder, row, column, lanes), scale, bias, lanes)


def _adder(dtype: int, lanes: int) -> Adder:
    """(sums, rows, weights, count, column, dim): sums[column + lane] += weights[n] * row n's, for ``count`` rows.

    ``rows`` is the address of int64[count], the rows' addresses; ``weights`` of FP32[count].
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def add(typingctx: Any, sums: Any, rows: Any, weights: Any, count: Any, column: Any, dim: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            sums, rows, weights, count, column, dim = args
            floats = _vector(_F32, lanes)
            target = builder.inttoptr(builder.add(sums, builder.shl(column, ir.Constant(_I64, 2))), floats.as_pointer())
            start = builder.load(target)
            start.align = 4
            before = builder.block
            head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
            builder.branch(head)
            builder.position_at_end(head)
            index, total = builder.phi(_I64), builder.phi(floats)
            index.add_incoming(ir.Constant(_I64, 0), before)
            total.add_incoming(start, before)
            builder.cbranch(builder.icmp_signed("<", index, count), body, done)
            builder.position_at_end(body)
            row = _load(builder, builder.add(rows, builder.shl(index, ir.Constant(_I64, 3))), _I64)
            weight = _load(builder, builder.add(weights, builder.shl(index, ir.Constant(_I64, 2))), _F32)
            elements = _elements(builder, dtype, row, column, dim, lanes)
            weighted = builder.fmul(elements, _splat(builder, weight, lanes))
            total.add_incoming(builder.fadd(total, weighted), body)
            index.add_incoming(builder.add(index, ir.Constant(_I64, 1)), body)
            builder.branch(head)
            builder.position_at_end(done)
            builder.store(total, target).align = 4
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 6), codegen

    result: Adder = add
    return result


_fp32_32, _fp32_8, _fp32_1 = (_adder(FP32, lanes) for lanes in (32, 8, 1))
_fp16_32, _fp16_8, _fp16_1 = (_adder(FP16, lanes) for lanes in (32, 8, 1))
_int8_32, _int8_8, _int8_1 = (_adder(INT8, lanes) for lanes in (32, 8, 1))
_int4_32, _int4_8, _int4_1 = (_adder(INT4, lanes) for lanes in (32, 8, 1))


@jit
def _add_fp32(sums: int, rows: int, weights: int, count: int, dim: int) -> None:
    column = 0
    while column + 32 <= dim:
        _fp32_32(sums, rows, weights, count, column, dim)
        column += 32
    while column + 8 <= dim:
        _fp32_8(sums, rows, weights, count, column, dim)
        column += 8
    while column < dim:
        _fp32_1(sums, rows, weights, count, column, dim)
        column += 1


@jit
def _add_fp16(sums: int, rows: int, weights: int, count: int, dim: int) -> None:
    column = 0
    while column + 32 <= dim:
        _fp16_32(sums, rows, weights, count, column, dim)
        column += 32
    while column + 8 <= dim:
        _fp16_8(sums, rows, weights, count, column, dim)
        column += 8
    while column < dim:
        _fp16_1(sums, rows, weights, count, column, dim)
        column += 1


@jit
def _add_int8(sums: int, rows: int, weights: int, count: int, dim: int) -> None:
    column = 0
    while column + 32 <= dim:
        _int8_32(sums, rows, weights, count, column, dim)
        column += 32
    while column + 8 <= dim:
        _int8_8(sums, rows, weights, count, column, dim)
        column += 8
    while column < dim:
        _int8_1(sums, rows, weights, count, column, dim)
        column += 1


@jit
def _add_int4(sums: int, rows: int, weights: int, count: int, dim: int) -> None:
    column = 0
    while column + 32 <= dim:
        _int4_32(sums, rows, weights, count, column, dim)
        column += 32
    while column + 8 <= dim:
        _int4_8(sums, rows, weights, count, column, dim)
        column += 8
    while column < dim:
        _int4_1(sums, rows, weights, count, column, dim)
        column += 1


@jit
def add_weighted(dtype: int, sums: int, rows: int, weights: int, count: int, dim: int) -> None:
    """sums[0:dim] += weight * row, for each of ``count`` rows of a type, in order."""
    if dtype == FP32:
        _add_fp32(sums, rows, weights, count, dim)
    elif dtype == FP16:
        _add_fp16(sums, rows, weights, count, dim)
    elif dtype == INT8:
        _add_int8(sums, rows, weights, count, dim)
    else:
        _add_int4(sums, rows, weights, count, dim)
