"""What the paper has, as far as it is not an input of the engines' profiles."""

from __future__ import annotations

from typing import NamedTuple

TABLE_I = "Stannis, Table I"
TABLE_II = "Stannis, Table II"
TEXT = "Stannis, text"
ABSTRACT = "Stannis, abstract"
HYPERTUNE = "HyperTune (arXiv 2007.08077), abstract"


class Row(NamedTuple):
    """A column of Table II. :ivar energy: J an image; ``flops``: millions of FLOPS per watt"""

    energy: float
    flops: float


ENERGY = {0: Row(13.10, 5.87), 4: Row(8.30, 7.05), 8: Row(6.84, 8.18), 16: Row(5.05, 10.37), 24: Row(4.02, 12.26)}
SAVED = {4: 37.0, 8: 48.0, 16: 62.0, 24: 69.0}  # % of the energy an image
CSDS = 24
SPEEDUP = 2.7
CONVERGES = 5.5  # "after 5 to 6 devices"
LOSS = {1: 1.1859, 6: 1.1907}  # nodes -> loss after 416,000 images
ACCURACY = 0.31  # on 1 and on 6
PUBLIC, PRIVATE = 72_000, 12_000  # images
RETUNED = {"speed": 3.1, "energy": 2.45}  # HyperTune, "up to"
