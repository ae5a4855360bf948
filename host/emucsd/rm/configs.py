"""The published models, as DeepRecSys ships them (harvard-acc/DeepRecSys, ``models/configs/*.json``).

Three sets of numbers carry these names: DeepRecSys' repository, its paper's table, and RecSSD's scripts. They differ
in bottom layers, tables and rows; this is the first, because only it agrees with the sizes of RM-SSD's MLPs (0.39,
1.23 and 12.23 MB). All join by concatenation and end in a sigmoid, with ReLU elsewhere, as DLRM builds its layers.

NCF and WnD say ``bottom: 512``: one width and so no layer. The 512 dense features go straight to the concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from emucsd.rm.shape import EmbeddingTable, Interaction, Shape, stack

S = TypeVar("S", bound=Shape)


@dataclass(frozen=True)
class Config:
    """A model in DeepRecSys' terms: widths, the input of the top layers left out."""

    name: str
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    dim: int
    rows: tuple[int, ...]
    lookups: int
    interaction: Interaction = "cat"

    def build(self, kind: type[S], rows: int | Sequence[int] | None = None) -> S:
        """The model; the width of the top layers' input is computed.

        :param rows: one number for all tables, or one for each; None: as published
        """
        counts = self.rows if rows is None else (rows,) * len(self.rows) if isinstance(rows, int) else tuple(rows)
        tables = tuple(EmbeddingTable(count, self.dim, self.lookups) for count in counts)
        top = stack((self.bottom[-1] + self.dim * len(tables), *self.top), last="sigmoid")
        return kind(self.name, self.bottom[0], stack(self.bottom), tables, self.interaction, top)


RMC1 = Config("rmc1", (128, 64, 32), (256, 64, 1), 32, (4_000_000,) * 8, 80)
RMC2 = Config("rmc2", (256, 128, 64), (128, 64, 1), 64, (500_000,) * 32, 120)
RMC3 = Config("rmc3", (2560, 1024, 256, 32), (512, 256, 1), 32, (2_000_000,) * 10, 20)
NCF = Config("ncf", (512,), (256, 256, 128, 64, 64), 64, (140_000, 140_000, 28_000, 28_000), 1)
WND = Config("wnd", (512,), (1024, 512, 256, 1), 32, (1_000_000,) * 27, 1)

PUBLISHED = {config.name: config for config in (RMC1, RMC2, RMC3, NCF, WND)}
