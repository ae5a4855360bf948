"""What Numba has no words for: typed pointers, ordered loads and stores, and a few system calls.

Everything takes *addresses* as signed 64-bit integers, so memory of any origin (a guest's, a mapped file, a NumPy
array) is used the same way and nothing is reference-counted on the data path. x86 and Arm alike: ``load*``/``store*``
are acquire/release, ``fence`` is sequentially consistent (EventIdx needs it: store, then load).
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from emucsd_wire.compiled import jit, jit_inline, jit_unit, record_type
from emucsd_wire.layout import State

__all__ = ["jit", "jit_inline", "jit_unit"]  # beside what is defined here

T = TypeVar("T")

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_I8P = ir.IntType(8).as_pointer()


def pointer(layout: type[T]) -> Callable[[int, int], T]:
    """``at(address, index)``: element ``index`` of an array of ``layout`` at ``address``, in compiled code.

    The result aliases memory: assigning to its fields stores. ``layout`` is a State, or a wire NamedTuple whose
    Codec is named ``codec`` in its module (give that Codec's dtype through ``pointer_to``).
    """
    if not issubclass(layout, State):
        raise TypeError(f"{layout.__name__} is no State; use pointer_to(layout, codec.dtype)")
    return pointer_to(layout, layout.dtype)


def pointer_to(layout: type[T], dtype: np.dtype[Any]) -> Callable[[int, int], T]:
    """``pointer`` for any layout class whose dtype is given. Raw bytes are no field in compiled code."""
    record = record_type(layout, dtype)
    size = dtype.itemsize

    @intrinsic  # type: ignore[untyped-decorator]
    def at(typingctx: Any, address: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            offset = builder.mul(args[1], ir.Constant(_I64, size))
            return builder.inttoptr(builder.add(args[0], offset), context.get_value_type(record))

        return record(types.int64, types.int64), codegen

    result: Callable[[int, int], T] = at
    return result


def _loader(scalar: Any, *, ordered: bool) -> Callable[[int, int], int]:
    """(base, index) -> value. Unsigned 8/16/32-bit values widen to int64."""
    bits = scalar.bitwidth
    integer = isinstance(scalar, types.Integer)
    result_type = types.int64 if integer else scalar

    @intrinsic  # type: ignore[untyped-decorator]
    def load(typingctx: Any, base: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cell = ir.IntType(bits) if integer else context.get_value_type(scalar)
            at = builder.add(args[0], builder.mul(args[1], ir.Constant(_I64, bits // 8)))
            pointer = builder.inttoptr(at, cell.as_pointer())
            value = builder.load_atomic(pointer, "acquire", bits // 8) if ordered else builder.load(pointer)
            if not ordered:
                value.align = bits // 8
            if not integer or bits == 64:
                return value
            return builder.sext(value, _I64) if scalar.signed else builder.zext(value, _I64)

        return result_type(types.int64, types.int64), codegen

    result: Callable[[int, int], int] = load
    return result


def _storer(scalar: Any, *, ordered: bool) -> Callable[[int, int, int], None]:
    """(base, index, value); integers are cut to the cell's width."""
    bits = scalar.bitwidth
    integer = isinstance(scalar, types.Integer)
    value_type = types.int64 if integer else scalar

    @intrinsic  # type: ignore[untyped-decorator]
    def store(typingctx: Any, base: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cell = ir.IntType(bits) if integer else context.get_value_type(scalar)
            at = builder.add(args[0], builder.mul(args[1], ir.Constant(_I64, bits // 8)))
            pointer = builder.inttoptr(at, cell.as_pointer())
            word = builder.trunc(args[2], cell) if integer and bits < 64 else args[2]
            if ordered:
                builder.store_atomic(word, pointer, "release", bits // 8)
            else:
                builder.store(word, pointer).align = bits // 8
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, value_type), codegen

    result: Callable[[int, int, int], None] = store
    return result


# plain element access: get_u32(base, index), put_u32(base, index, value)
get_u8, put_u8 = _loader(types.uint8, ordered=False), _storer(types.uint8, ordered=False)
get_u16, put_u16 = _loader(types.uint16, ordered=False), _storer(types.uint16, ordered=False)
get_u32, put_u32 = _loader(types.uint32, ordered=False), _storer(types.uint32, ordered=False)
get_i64, put_i64 = _loader(types.int64, ordered=False), _storer(types.int64, ordered=False)

# words that another thread or process writes: acquire loads, release stores
load_u8, store_u8 = _loader(types.uint8, ordered=True), _storer(types.uint8, ordered=True)
load_u32, store_u32 = _loader(types.uint32, ordered=True), _storer(types.uint32, ordered=True)
load_i64, store_i64 = _loader(types.int64, ordered=True), _storer(types.int64, ordered=True)


@intrinsic  # type: ignore[untyped-decorator]
def _fence(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


fence: Callable[[], None] = _fence

# a field of unsigned 64 bits as the signed integer that all of compiled code uses; for Numba this is np.int64 itself
signed: Callable[[int], int] = cast(Any, np.int64)


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I8P, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        arguments = [builder.inttoptr(args[0], _I8P), *(ir.Constant(_I32, n) for n in (0, 3, 1))]
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


prefetch: Callable[[int], None] = _prefetch


@intrinsic  # type: ignore[untyped-decorator]
def _relax(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # LLVM's own intrinsics: llvmlite does not load an assembly parser, so inline assembly would abort
        arm = platform.machine() in ("aarch64", "arm64")
        name, parameters = ("llvm.aarch64.hint", [_I32]) if arm else ("llvm.x86.sse2.pause", [])
        kind = ir.FunctionType(ir.VoidType(), parameters)
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(function, [ir.Constant(_I32, 1)] if arm else [])
        return context.get_dummy_value()

    return types.void(), codegen


relax: Callable[[], None] = _relax  # tell the core that this is a spin


def _libc(name: str, result: Any, *arguments: Any) -> Any:
    """A libc function, by name: unlike a ctypes pointer this keeps its callers cacheable."""
    return types.ExternalFunction(name, result(*arguments))


_memcpy = _libc("memcpy", types.int64, types.int64, types.int64, types.int64)
_memset = _libc("memset", types.int64, types.int64, types.int32, types.int64)
_memcmp = _libc("memcmp", types.int32, types.int64, types.int64, types.int64)
_sched_yield = _libc("sched_yield", types.int32)
_poll = _libc("poll", types.int32, types.int64, types.int64, types.int32)
_usleep = _libc("usleep", types.int32, types.uint32)


@jit_inline
def copy(target: int, source: int, count: int) -> None:
    """memcpy: the ranges must not overlap."""
    _memcpy(target, source, count)


@jit_inline
def fill(target: int, byte: int, count: int) -> None:
    _memset(target, np.int32(byte), count)


@jit_inline
def equal(left: int, right: int, count: int) -> bool:
    return bool(_memcmp(left, right, count) == 0)


@jit_inline
def yield_core() -> None:
    """Let another thread have this core: two cores carry QEMU, the drive and the host."""
    _sched_yield()


@intrinsic  # type: ignore[untyped-decorator]
def _monotonic(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cell = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        kind = ir.FunctionType(_I32, [_I32, cell.type])
        function = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
        builder.call(function, [ir.Constant(_I32, 1), cell])
        seconds = builder.load(cgutils.gep_inbounds(builder, cell, 0, 0))
        nanoseconds = builder.load(cgutils.gep_inbounds(builder, cell, 0, 1))
        return builder.add(builder.mul(seconds, ir.Constant(_I64, 1_000_000_000)), nanoseconds)

    return types.int64(), codegen


monotonic: Callable[[], int] = _monotonic  # CLOCK_MONOTONIC in ns, as time.monotonic_ns()


@intrinsic  # type: ignore[untyped-decorator]
def _signal(typingctx: Any, fd: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cell = cgutils.alloca_once_value(builder, ir.Constant(_I64, 1))
        kind = ir.FunctionType(_I64, [_I32, cell.type, _I64])
        function = cgutils.get_or_insert_function(builder.module, kind, "write")
        return builder.call(function, [builder.trunc(args[0], _I32), cell, ir.Constant(_I64, 8)])

    return types.int64(types.int64), codegen


signal: Callable[[int], int] = _signal  # add 1 to an eventfd; negative when the descriptor is gone


@intrinsic  # type: ignore[untyped-decorator]
def _wait(typingctx: Any, fd: Any, timeout: Any) -> Any:
    """ppoll(fd, POLLIN, timeout) and, when it fired, read the eventfd empty."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pollfd = cgutils.alloca_once(builder, _I64)
        low = builder.zext(builder.trunc(args[0], _I32), _I64)
        builder.store(builder.or_(low, ir.Constant(_I64, 1 << 32)), pollfd)  # struct pollfd: fd, events = POLLIN
        timespec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        second = ir.Constant(_I64, 1_000_000_000)
        builder.store(builder.sdiv(args[1], second), cgutils.gep_inbounds(builder, timespec, 0, 0))
        builder.store(builder.srem(args[1], second), cgutils.gep_inbounds(builder, timespec, 0, 1))
        kind = ir.FunctionType(_I32, [pollfd.type, _I64, timespec.type, _I64])
        ppoll = cgutils.get_or_insert_function(builder.module, kind, "ppoll")
        fired = builder.call(ppoll, [pollfd, ir.Constant(_I64, 1), timespec, ir.Constant(_I64, 0)])
        woken = builder.icmp_signed(">", fired, ir.Constant(_I32, 0))
        with builder.if_then(woken):
            count = cgutils.alloca_once(builder, _I64)
            read_kind = ir.FunctionType(_I64, [_I32, count.type, _I64])
            read = cgutils.get_or_insert_function(builder.module, read_kind, "read")
            builder.call(read, [builder.trunc(args[0], _I32), count, ir.Constant(_I64, 8)])
        return builder.zext(woken, _I64)

    return types.int64(types.int64, types.int64), codegen


wait: Callable[[int, int], int] = _wait  # (eventfd, timeout in ns) -> 1 when it was signalled, else 0
