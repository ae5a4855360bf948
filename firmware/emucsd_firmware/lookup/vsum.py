"""EV-sum: adds vectors in FP32, strictly in index order, many columns at once.

The order is what makes a sum equal NumPy's and PyTorch's bit for bit. LLVM may not reorder FP32 adds, and won't
vectorise a loop over addresses that might overlap; so the adder is spelt as LLVM vectors: one accumulator in registers
for a block of columns, one pass over the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from emucsd_firmware.lookup.rows import FP32, add_weighted
from emucsd_firmware.lookup.state import Lookup, Request, Table
from emucsd_wire.words import copy, fill, get_u32, jit, jit_inline

_I64 = ir.IntType(64)


def _adder(columns: int) -> Callable[[int, int, int, int], None]:
    """(sums, rows, count, byte): sums[column] += row[column] for ``count`` rows, in order, from byte ``byte`` of each.

    ``rows`` is the address of int64[count], the rows' addresses.
    """
    vector = ir.VectorType(ir.FloatType(), columns)

    @intrinsic  # type: ignore[untyped-decorator]
    def add(typingctx: Any, sums: Any, rows: Any, count: Any, byte: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def at(address: Any) -> Any:
                return builder.inttoptr(builder.add(address, args[3]), vector.as_pointer())

            def load(address: Any) -> Any:
                value = builder.load(at(address))
                value.align = 4
                return value

            start = load(args[0])
            before = builder.block
            head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
            builder.branch(head)
            builder.position_at_end(head)
            index, total = builder.phi(_I64), builder.phi(vector)
            index.add_incoming(ir.Constant(_I64, 0), before)
            total.add_incoming(start, before)
            builder.cbranch(builder.icmp_signed("<", index, args[2]), body, done)
            builder.position_at_end(body)
            cell = builder.inttoptr(builder.add(args[1], builder.shl(index, ir.Constant(_I64, 3))), _I64.as_pointer())
            total.add_incoming(builder.fadd(total, load(builder.load(cell))), body)
            index.add_incoming(builder.add(index, ir.Constant(_I64, 1)), body)
            builder.branch(head)
            builder.position_at_end(done)
            builder.store(total, at(args[0])).align = 4
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 4), codegen

    result: Callable[[int, int, int, int], None] = add
    return result


_add_64, _add_32, _add_16, _add_8, _add_1 = (_adder(columns) for columns in (64, 32, 16, 8, 1))


@jit_inline
def add_rows(sums: int, rows: int, count: int, dim: int) -> None:
    """sums[0:dim] += each of the ``count`` rows whose addresses are at ``rows``, in order."""
    byte, end = 0, 4 * dim
    while byte + 256 <= end:
        _add_64(sums, rows, count, byte)
        byte += 256
    if byte + 128 <= end:
        _add_32(sums, rows, count, byte)
        byte += 128
    if byte + 64 <= end:
        _add_16(sums, rows, count, byte)
        byte += 64
    if byte + 32 <= end:
        _add_8(sums, rows, count, byte)
        byte += 32
    while byte < end:
        _add_1(sums, rows, count, byte)
        byte += 4


@intrinsic  # type: ignore[untyped-decorator]
def _divide(typingctx: Any, sums: Any, dim: Any, count: Any) -> Any:
    """sums[0:dim] /= count, each rounded once, as PyTorch's mean does."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        divisor = builder.sitofp(args[2], ir.FloatType())
        with cgutils.for_range(builder, args[1]) as loop:
            place = builder.add(args[0], builder.shl(loop.index, ir.Constant(_I64, 2)))
            cell = builder.inttoptr(place, ir.FloatType().as_pointer())
            builder.store(builder.fdiv(builder.load(cell), divisor), cell)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 3), codegen


divide: Callable[[int, int, int], None] = _divide


@jit
def add_slice(lookup: Lookup, request: Request, table: Table, count: int) -> None:
    """Add the slice's ``count`` vectors, from ``request.cursor`` on, to the bags that they belong to."""
    if table.kind == FP32 and request.weights == 0:
        _add_plain(lookup, request, table, count)
    else:
        _add_others(lookup, request, table, count)


@jit_inline
def _add_plain(lookup: Lookup, request: Request, table: Table, count: int) -> None:
    bag, taken = request.bag, 0
    while taken < count:
        end = get_u32(request.offsets, bag + 1) - request.cursor
        if end > taken:
            piece = min(end, count) - taken
            add_rows(request.result + bag * request.stride, lookup.rows + 8 * taken, piece, table.dim)
            taken += piece
        if end <= taken:
            bag += 1
    request.bag = bag


@jit
def _add_others(lookup: Lookup, request: Request, table: Table, count: int) -> None:
    """Rows of any type, each multiplied by its weight: where none are given by 1, which changes no bit."""
    bag, taken = request.bag, 0
    weights = lookup.ones if request.weights == 0 else request.weights + 4 * request.cursor
    while taken < count:
        end = get_u32(request.offsets, bag + 1) - request.cursor
        if end > taken:
            piece = min(end, count) - taken
            sums, rows = request.result + bag * request.stride, lookup.rows + 8 * taken
            add_weighted(table.kind, sums, rows, weights + 4 * taken, piece, table.dim)
            taken += piece
        if end <= taken:
            bag += 1
    request.bag = bag


@jit
def clear(request: Request, table: Table) -> None:
    """What bags start from: zero, and the carry in the first one."""
    if request.stride == table.sum_bytes:
        fill(request.result, 0, request.bags * request.stride)
    else:
        for bag in range(request.bags):
            fill(request.result + bag * request.stride, 0, table.sum_bytes)
    if request.carry != 0:
        copy(request.result, request.carry, table.sum_bytes)


@jit
def average(request: Request, table: Table) -> None:
    """Divide each bag's sum by the number of its ids; an empty bag's stays zero."""
    for bag in range(request.bags):
        count = get_u32(request.offsets, bag + 1) - get_u32(request.offsets, bag)
        if count > 1:
            divide(request.result + bag * request.stride, table.dim, count)
