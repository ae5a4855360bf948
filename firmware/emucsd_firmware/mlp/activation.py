"""Sigmoid, the same bits on every machine: libm's exp differs from version to version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from emucsd_wire.words import jit, jit_inline

_F32, _F64 = ir.FloatType(), ir.DoubleType()
_I64 = ir.IntType(64)
_LOG2E = 1.4426950408889634
_LN2_HIGH = 0.6931471803691238  # 32 bits: its product with an exponent is exact
_LN2_LOW = 1.9082149292705877e-10
_BEYOND = 110.0  # e^-110 is less than half of FP32's least


@intrinsic  # type: ignore[untyped-decorator]
def _power_of_two(typingctx: Any, exponent: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.add(args[0], _I64(1023)), _I64(52)), _F64)

    return types.float64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _get_f32(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.inttoptr(args[0], _F32.as_pointer()))
        value.align = 4
        return builder.fpext(value, _F64)

    return types.float64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _put_f32(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cut = builder.fptrunc(args[1], _F32)
        builder.store(cut, builder.inttoptr(args[0], _F32.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), codegen


power_of_two: Callable[[int], float] = _power_of_two
get_f32: Callable[[int], float] = _get_f32
put_f32: Callable[[int, float], None] = _put_f32


@jit_inline
def exponential(x: float) -> float:
    """e^x for \\|x\\| <= 700, to some 1e-15: 2^n e^r with \\|r\\| <= ln 2 / 2, Taylor's series to r^13."""
    n = int(x * _LOG2E + 1024.5) - 1024  # rounds to the nearest
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    total = 1.0
    for k in range(13, 0, -1):
        total = 1.0 + total * r / k
    return total * power_of_two(n)


@jit
def sigmoid(target: int, count: int) -> None:
    """FP32[count] at ``target`` becomes 1 / (1 + e^-x), computed in FP64 and rounded once. NaN stays NaN."""
    for at in range(target, target + 4 * count, 4):
        x = get_f32(at)
        if x > _BEYOND:
            put_f32(at, 1.0)
        elif x < -_BEYOND:
            put_f32(at, 0.0)
        elif x == x:
            put_f32(at, 1.0 / (1.0 + exponential(-x)))
