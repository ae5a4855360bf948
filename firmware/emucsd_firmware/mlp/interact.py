"""Dot interaction: the strictly lower triangle of T T^T, row by row, behind the bottom's output.

What facebookresearch/dlrm calls ``interact_features`` with ``arch_interaction_op = "dot"``, without itself.
Each dot product is a sum from +0 over the elements in ascending order, each product rounded: see ``gemm``.
"""

from __future__ import annotations

from emucsd_firmware.mlp.gemm import PANEL, ROWS, multiply
from emucsd_wire.words import copy, fill, get_u32, jit, put_u32


@jit
def _transpose(vectors: int, count: int, width: int, panels: int) -> None:
    """T's rows as columns of panels: they multiply like weights."""
    for vector in range(count):
        base = (vector // PANEL) * width * PANEL + vector % PANEL
        for at in range(width):
            put_u32(panels, base + at * PANEL, get_u32(vectors, vector * width + at))


@jit
def dot(source: int, count: int, width: int, head: int, target: int, panels: int, tile: int, zeros: int) -> None:
    """One sample.

    :param source: address of FP32[count, width], the vectors
    :param head: elements at the front of ``source`` that go over unchanged: the bottom's output, or 0
    :param target: address of FP32[head + count * (count - 1) / 2]
    :param panels: scratch, FP32[ceil(count / PANEL), width, PANEL]
    :param tile: scratch, FP32[ROWS, PANEL]
    :param zeros: address of FP32[PANEL], all 0
    """
    copy(target, source, 4 * head)
    fill(panels, 0, 4 * width * PANEL * ((count + PANEL - 1) // PANEL))
    _transpose(source, count, width, panels)
    first = 0
    while first < count:
        rows = min(ROWS, count - first)
        panel = 0
        while panel * PANEL < first + rows - 1:
            at = panels + 4 * panel * width * PANEL
            multiply(source + 4 * first * width, 4 * width, at, zeros, width, tile, 4 * PANEL, 0, rows, PANEL, tile)
            for row in range(first, first + rows):
                columns = min(row - panel * PANEL, PANEL)
                if columns > 0:
                    place = head + row * (row - 1) // 2 + panel * PANEL
                    copy(target + 4 * place, tile + 4 * PANEL * (row - first), 4 * columns)
            panel += 1
        first += ROWS
