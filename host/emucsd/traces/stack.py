"""An LRU stack that makes references from stack distances (Hassan et al., AINA 2007; facebookresearch/dlrm).

The stack holds every line, the one used last on top. Distance d > 0 refers to the d-th line from the top, distance 0 to
the one at the bottom; either moves to the top. Taken literally, a list of all lines, each reference moves every line
above (or all of them): minutes for a million references to a million lines. Here the stack is two parts that give the
same lines in the same order: a *window* of the ``deepest`` topmost lines, cut in blocks so that only one of them moves,
and a queue of all the rest, of which only the ends are ever touched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument

_BLOCK = 512  # lines of a block: moving half of one costs what stepping over a few blocks does


class LruStack:
    """:param lines: from the bottom to the top, each once
    :param deepest: largest distance that will be asked for
    :raises InvalidArgument: more distance than lines
    """

    def __init__(self, lines: NDArray[np.int64], deepest: int) -> None:
        if not 0 <= deepest <= len(lines) or not len(lines):
            raise InvalidArgument(f"distances up to {deepest} over {len(lines)} lines; use at least as many lines")
        cut = len(lines) - max(deepest, 1)
        self._below = lines[:cut]  # not yet referred to; an array, for there may be millions
        self._next = 0
        self._fallen: deque[int] = deque()  # left the window again, oldest first
        self._blocks: list[list[int]] = [lines[at : at + _BLOCK].tolist() for at in range(cut, len(lines), _BLOCK)] or [
            []
        ]

    def refer(self, distances: Iterable[int]) -> NDArray[np.int64]:
        """Lines that these distances refer to, one after the other."""
        blocks = self._blocks
        found: list[int] = []
        for distance in distances:
            top = blocks[-1]
            if distance == 0:
                line = self._bottom()
            elif distance <= len(top):
                line = top.pop(-distance)
            else:
                line = self._deep(distance)
                top = blocks[-1]
            top.append(line)
            if len(top) > 2 * _BLOCK:
                blocks[-1:] = [top[:_BLOCK], top[_BLOCK:]]
            found.append(line)
        return np.array(found, np.int64)

    def _bottom(self) -> int:
        """Take the line at the bottom; the window's lowest one sinks into the queue in its place."""
        self._fallen.append(self._lowest())
        if self._next < len(self._below):
            self._next += 1
            return int(self._below[self._next - 1])
        return self._fallen.popleft()

    def _lowest(self) -> int:
        blocks = self._blocks
        while not blocks[0] and len(blocks) > 1:
            del blocks[0]
        return blocks[0].pop(0)

    def _deep(self, distance: int) -> int:
        """Take a line from a block below the topmost."""
        blocks = self._blocks
        at = len(blocks) - 1
        while distance > len(blocks[at]):
            distance -= len(blocks[at])
            at -= 1
        line = blocks[at].pop(-distance)
        below = blocks[at - 1] if at else []
        if len(blocks[at]) < _BLOCK // 4 and len(below) <= _BLOCK and len(blocks) > 1:
            blocks[at - bool(at) : at + 1] = [below + blocks[at]] if below or blocks[at] else []
        return line
