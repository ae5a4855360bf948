"""The wire of inference sessions: sizes, directions, and where a batch's parts lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucsd_wire import rm
from emucsd_wire.nvme import MAX_TRANSFER, PAGE, Io
from emucsd_wire.rm import RmAdmin, RmBatchFlag, RmFlag
from emucsd_wire.tunnel import TunnelAdmin
from emucsd_wire.vendor import VendorAdmin


def test_directions() -> None:
    """Bits 1:0 of every opcode say which way its data go, so that Linux passthrough can carry it."""
    to_drive = (RmAdmin.RM_OPEN, Io.RM_SEND, Io.RM_WEIGHTS)
    to_host = (RmAdmin.RM_INFO, Io.RM_READ)
    assert {opcode & 3 for opcode in to_drive} == {1}
    assert {opcode & 3 for opcode in to_host} == {2}
    assert RmAdmin.RM_CLOSE & 3 == 0


def test_opcodes_are_free() -> None:
    """No other vendor command has them."""
    assert not {int(o) for o in RmAdmin} & {int(o) for o in (*VendorAdmin, *TunnelAdmin)}


def test_limits() -> None:
    """All sessions' registers fit their page, and the largest descriptions one transfer."""
    assert rm.MAX_SESSIONS * rm.RM_REGISTERS.size <= PAGE
    assert max(rm.RM_OPEN_BYTES, rm.RM_INFO_BYTES, rm.MAX_RM_PAYLOAD) <= MAX_TRANSFER
    assert [rm.RM_REGISTERS.offset(name) % 8 for name in ("accepted", "ready", "failed")] == [0, 0, 0]
    assert sum(RmFlag) == 63


@given(
    samples=st.integers(1, 300),
    lookups=st.integers(0, 3000),
    flags=st.integers(0, 3),
    dense=st.integers(0, 40),
    tables=st.integers(1, 64),
)
def test_batch_layout(samples: int, lookups: int, flags: int, dense: int, tables: int) -> None:
    """Parts follow each other without overlap, ids and weights on multiples of 8."""
    layout = rm.batch_layout(samples, lookups, flags, dense=dense, tables=tables)
    width = 8 if flags & RmBatchFlag.WIDE_IDS else 4
    assert layout.dense == rm.RM_BATCH.size
    assert layout.offsets == layout.dense + 4 * samples * dense
    assert 0 <= layout.ids - (layout.offsets + 4 * (tables * samples + 1)) < 8
    assert layout.ids % 8 == layout.weights % 8 == 0
    end = layout.ids + width * lookups
    assert layout.size == (layout.weights + 4 * lookups if flags & RmBatchFlag.WEIGHTED else end)
    assert 0 <= layout.weights - end < 8


@pytest.mark.parametrize(("inputs", "outputs", "size"), [(1, 1, 8), (288, 256, 256 * 289 * 4)])
def test_weight_bytes(inputs: int, outputs: int, size: int) -> None:
    """A layer is its weights and its bias, FP32."""
    assert rm.weight_bytes(inputs, outputs) == size
