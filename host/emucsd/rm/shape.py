"""The shape of a recommendation model: dense features, embedding tables, two stacks of layers, and what joins them.

    dense ── bottom layers ──┐
    ids ── tables (sums) ────┴── interaction ── top layers ── out

Pure description: no drive, no weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self, get_args

from emucsd.rm.errors import ModelError

Activation = Literal["none", "relu", "sigmoid"]
Interaction = Literal["cat", "dot"]
Pooling = Literal["sum", "mean"]

MAX_TABLES, MAX_LAYERS, MAX_WIDTH = 64, 32, 1 << 16


class Layer(NamedTuple):
    """A fully connected layer: ``activation(x @ weight.T + bias)``, weight FP32[outputs, inputs]."""

    inputs: int
    outputs: int
    activation: Activation = "relu"

    @property
    def macs(self) -> int:
        """Multiplications with additions, one sample."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.macs + self.outputs


class EmbeddingTable(NamedTuple):
    """A table, and how many of its rows a sample sums up.

    :ivar lookups: ids a sample; where bags differ in length, what is to be expected
    :ivar pooling: how a bag's rows become one vector; the mean of none is zeros
    """

    rows: int
    dim: int
    lookups: int = 1
    pooling: Pooling = "sum"


@dataclass(frozen=True)
class Shape:
    """A model's shape.

    :ivar dense: dense features a sample; 0: none
    :ivar bottom: layers over the dense features; none: they go to the interaction as they are
    :ivar interaction: ``cat``: bottom output and sums side by side. ``dot``: bottom output, then the dot products of
        each pair of {bottom output, sums}, as facebookresearch/dlrm orders them: (1,0), (2,0), (2,1), (3,0) …
    :raises ModelError: widths that do not fit each other, or beyond what a session holds
    """

    name: str
    dense: int
    bottom: tuple[Layer, ...]
    tables: tuple[EmbeddingTable, ...]
    interaction: Interaction
    top: tuple[Layer, ...]

    def __post_init__(self) -> None:
        self._check_tables()
        self._check_layers("bottom", self.bottom, self.dense)
        if not self.top:
            raise ModelError(f"{self.name}: no top layers; a model ends in at least one")
        self._check_layers("top", self.top, self.interaction_width)
        if len(self.layers) > MAX_LAYERS:
            raise ModelError(f"{self.name}: {len(self.layers)} layers; a session holds {MAX_LAYERS}")

    def _check_tables(self) -> None:
        if not 1 <= len(self.tables) <= MAX_TABLES:
            raise ModelError(f"{self.name}: {len(self.tables)} tables; a session holds 1 to {MAX_TABLES}")
        for number, table in enumerate(self.tables):
            if table.rows < 1 or table.dim < 1 or table.lookups < 0:
                raise ModelError(f"{self.name}: table {number} is {table}; rows and dim are at least 1, lookups 0")
        if self.interaction not in get_args(Interaction):
            raise ModelError(f"{self.name}: interaction {self.interaction!r}; use 'cat' or 'dot'")
        if self.interaction == "dot":
            widths = {self.bottom_width, *(table.dim for table in self.tables)}
            if len(widths) > 1:
                raise ModelError(
                    f"{self.name}: dot products of vectors of {sorted(widths)} elements; the bottom layers' output "
                    "and every table's rows have one width, or use interaction 'cat'"
                )

    def _check_layers(self, group: str, layers: tuple[Layer, ...], width: int) -> None:
        if width < 0 or width > MAX_WIDTH:
            raise ModelError(f"{self.name}: {group} input of {width}; 0 to {MAX_WIDTH} elements")
        for number, layer in enumerate(layers):
            if layer.inputs != width or not 1 <= layer.outputs <= MAX_WIDTH or width < 1:
                raise ModelError(
                    f"{self.name}: {group} layer {number} takes {layer.inputs} and gives {layer.outputs}; "
                    f"{width} elements come in, and 1 to {MAX_WIDTH} may leave"
                )
            if layer.activation not in get_args(Activation):
                raise ModelError(f"{self.name}: activation {layer.activation!r}; use 'none', 'relu' or 'sigmoid'")
            width = layer.outputs

    # -- shape

    @property
    def bottom_width(self) -> int:
        """Elements that leave the bottom layers."""
        return self.bottom[-1].outputs if self.bottom else self.dense

    @property
    def interaction_width(self) -> int:
        """Elements that enter the top layers."""
        if self.interaction == "cat":
            return self.bottom_width + sum(table.dim for table in self.tables)
        vectors = len(self.tables) + 1
        return self.bottom_width + vectors * (vectors - 1) // 2

    @property
    def outputs(self) -> int:
        """Elements of a sample's result."""
        return self.top[-1].outputs

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Bottom layers, then top layers."""
        return (*self.bottom, *self.top)

    @property
    def lookups(self) -> int:
        """Rows that a sample sums up, over all tables."""
        return sum(table.lookups for table in self.tables)

    @property
    def macs(self) -> int:
        """Multiplications with additions, one sample, of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def parameter_bytes(self) -> int:
        """FP32 weights and biases of all layers."""
        return 4 * sum(layer.parameters for layer in self.layers)

    @property
    def table_bytes(self) -> int:
        """FP32 rows of all tables."""
        return sum(4 * table.rows * table.dim for table in self.tables)

    def layer_name(self, number: int) -> str:
        """Layer ``number`` of ``layers``, for people."""
        bottom = len(self.bottom)
        return f"bottom layer {number}" if number < bottom else f"top layer {number - bottom}"

    def table_names(self, prefix: str | None = None) -> Iterator[str]:
        """What ``Model.create_tables`` calls them: ``<prefix>.<number>``, the prefix being the model's name."""
        for number in range(len(self.tables)):
            yield f"{prefix or self.name}.{number}"

    # -- others like it

    def with_rows(self, rows: int | Sequence[int]) -> Self:
        """The same with tables of other sizes: one for all, or one for each."""
        counts = [rows] * len(self.tables) if isinstance(rows, int) else list(rows)
        if len(counts) != len(self.tables):
            raise ModelError(f"{self.name}: {len(counts)} row counts for {len(self.tables)} tables")
        return replace(self, tables=tuple(t._replace(rows=n) for t, n in zip(self.tables, counts, strict=True)))

    def with_lookups(self, lookups: int) -> Self:
        """The same with ``lookups`` ids a sample in every table."""
        return replace(self, tables=tuple(table._replace(lookups=lookups) for table in self.tables))


def stack(widths: Sequence[int], last: Activation = "relu") -> tuple[Layer, ...]:
    """Layers between consecutive widths, ReLU but for the last one's activation."""
    count = len(widths) - 1
    return tuple(Layer(a, b, "relu" if n < count - 1 else last) for n, (a, b) in enumerate(itertools.pairwise(widths)))
