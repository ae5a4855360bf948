"""The heap of what is due."""

from __future__ import annotations

import heapq

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emucsd_firmware import clock as c
from emucsd_wire.words import jit


@jit
def push(address: int, time: int, token: int) -> None:
    c.push(c.clock_at(address, 0), time, token)


@jit
def due(address: int) -> int:
    return c.due(c.clock_at(address, 0))


@jit
def pop(address: int) -> int:
    return c.pop(c.clock_at(address, 0))


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=200))
def test_heap_is_a_stable_priority_queue(moves: list[int | None]) -> None:
    """Tokens come out by time, equal times in the order they went in, whatever mix of pushes and pops."""
    state = np.zeros(1, c.Clock.dtype)
    memory = c.ClockMemory(c.VIRTUAL, 256)
    memory.fill(state[0])
    address, model = state.ctypes.data, list[tuple[int, int]]()
    for token, move in enumerate(moves):
        if move is not None:
            push(address, move, token)
            heapq.heappush(model, (move, token))
        elif model:
            assert due(address) == model[0][0]
            assert pop(address) == heapq.heappop(model)[1]
    assert due(address) == (model[0][0] if model else c.NEVER)
