"""Memory shared with a drive: allocation, lifetimes, seals."""

from __future__ import annotations

import fcntl
import gc
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucsd.buffers import SharedMemory, owner_of
from emucsd.errors import BufferExhausted, InvalidArgument


def test_arrays_are_aligned_and_apart() -> None:
    """Arrays start on the alignment asked for and never overlap."""
    memory = SharedMemory(1 << 20)
    arrays = [memory.array(100, align=a) for a in (4096, 64, 8192, 512)]
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays)
    assert [a.ctypes.data % b for a, b in zip(arrays, (4096, 64, 8192, 512), strict=True)] == [0] * 4
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_shapes_and_dtypes() -> None:
    """Any shape and dtype, written through one view and seen through another."""
    memory = SharedMemory(1 << 16)
    table = memory.array((3, 5), np.float32)
    table[:] = np.arange(15).reshape(3, 5)
    assert table.shape == (3, 5)
    assert table.reshape(-1)[7] == 7.0
    assert memory.array(0).shape == (0,)


def test_memory_returns_with_the_last_view() -> None:
    """A range is free again when no array looks at it, and not before."""
    memory = SharedMemory(1 << 16)
    whole = memory.free_bytes
    array = memory.array(4096)
    view = array[10:20].view(np.uint16)
    del array
    assert memory.free_bytes == whole - 4096
    del view
    gc.collect()
    assert memory.free_bytes == whole


def test_memory_outlives_its_owner() -> None:
    """An array stays valid after the drive, and with it the SharedMemory, is gone."""
    memory = SharedMemory(1 << 16)
    array = memory.array(10)
    array[:] = 7
    memory.close()
    del memory
    gc.collect()
    assert array.sum() == 70


def test_borrowed_memory_is_free_afterwards() -> None:
    """A borrowed range is free after its `with`, even while a name still holds the array."""
    memory = SharedMemory(1 << 16)
    whole = memory.free_bytes
    with memory.borrow((4, 1024), np.uint32) as array:
        assert memory.free_bytes < whole
    assert memory.free_bytes == whole
    assert array.shape == (4, 1024)


def test_kept_memory_is_not_given_away() -> None:
    """What a timed-out command may still write to is not free at the end of a `with`."""
    memory = SharedMemory(1 << 16)
    with memory.borrow(4096) as array:
        owner = owner_of(array[:100])
        assert owner is not None
        owner.kept = True
    assert memory.free_bytes == memory.size - 4096


def test_exhausted() -> None:
    """Asking for more than is free names the sizes and what to do."""
    memory = SharedMemory(1 << 16)
    with pytest.raises(BufferExhausted, match="larger memory="):
        memory.array(1 << 17)
    with pytest.raises(InvalidArgument, match="power of two"):
        memory.array(1, align=3)
    with pytest.raises(InvalidArgument, match="Python objects"):
        memory.array(1, np.object_)


def test_reachable() -> None:
    """Only contiguous, dword-aligned arrays of this memory are reached in place."""
    memory = SharedMemory(1 << 16)
    array = memory.array((8, 8), np.uint32)
    assert memory.holds(array)
    assert memory.holds(array[1:3])
    assert not memory.holds(array[:, 1])
    assert not memory.holds(array.view(np.uint8).reshape(-1)[1:5])
    assert not memory.holds(np.zeros(8, np.uint32))


def test_sealed() -> None:
    """The file can neither shrink nor grow: the drive cannot be made to fault on it."""
    memory = SharedMemory(1 << 16)
    seals = fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_SHRINK
    assert seals & fcntl.F_SEAL_GROW


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9000), st.sampled_from([64, 512, 4096])), max_size=60))
def test_free_list_keeps_account(steps: list[tuple[int, int, int]]) -> None:
    """Whatever is taken and given back, free bytes add up and live arrays never overlap."""
    memory = SharedMemory(1 << 18)
    held: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = {}
    for slot, size, align in steps:
        if slot in held:
            del held[slot]
            continue
        held[slot] = memory.array(size, align=align)
        spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in held.values())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    used = sum(-(-a.nbytes // 64) * 64 for a in held.values())
    assert memory.free_bytes == memory.size - used
    held.clear()
    assert memory.free_bytes == memory.size
