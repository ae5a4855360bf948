"""Rows made from a seed: how a table of any size exists without its bytes; ``emucsd_wire.vendor`` has the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64, _I32, _F32 = ir.IntType(64), ir.IntType(32), ir.FloatType()
LANES = 16  # elements at a time; a row is written up to a multiple of it


def _word(value: int) -> Any:
    return ir.Constant(_I64, value)


def _key(builder: Any, seed: Any, row: Any) -> Any:
    """splitmix64's number ``row`` of a seed."""
    key = builder.add(seed, builder.mul(builder.add(row, _word(1)), _word(0x9E3779B97F4A7C15)))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = builder.mul(builder.xor(key, builder.lshr(key, _word(shift))), _word(factor))
    return builder.xor(key, builder.lshr(key, _word(31)))


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _elements(builder: Any, low: Any, high: Any) -> Any:
    """LANES elements; ``low`` is the key's low half plus each one's column times the golden ratio."""

    def word(value: int) -> Any:
        return ir.Constant(low.type, [value] * LANES)

    h = builder.mul(builder.xor(low, builder.lshr(low, word(16))), word(0x85EBCA6B))
    h = builder.add(h, high)
    h = builder.mul(builder.xor(h, builder.lshr(h, word(13))), word(0xC2B2AE35))
    h = builder.xor(h, builder.lshr(h, word(16)))
    floats = ir.VectorType(_F32, LANES)
    scale = ir.Constant(floats, [2.0**-23] * LANES)
    return builder.fmul(builder.sitofp(builder.ashr(h, word(8)), floats), scale)


@intrinsic  # type: ignore[untyped-decorator]
def _generate(typingctx: Any, target: Any, seed: Any, row: Any, dim: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        key = _key(builder, args[1], args[2])
        low = _splat(builder, builder.trunc(key, _I32))
        high = _splat(builder, builder.trunc(builder.lshr(key, _word(32)), _I32))
        columns = [n * 0x9E3779B9 & 0xFFFFFFFF for n in range(LANES)]
        low = builder.add(low, ir.Constant(low.type, columns))
        step = ir.Constant(_I32, LANES * 0x9E3779B9 & 0xFFFFFFFF)
        blocks = builder.lshr(builder.add(args[3], _word(LANES - 1)), _word(4))
        with cgutils.for_range(builder, blocks) as loop:
            moved = _splat(builder, builder.mul(builder.trunc(loop.index, _I32), step))
            elements = _elements(builder, builder.add(low, moved), high)
            place = builder.add(args[0], builder.shl(loop.index, _word(6)))
            builder.store(elements, builder.inttoptr(place, elements.type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), codegen


generate: Callable[[int, int, int, int], None] = _generate  # (target, seed, row, dim): FP32[dim] at ``target``
