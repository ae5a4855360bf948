"""A recommendation model: dense features, embedding tables, two stacks of layers, and what joins them.

    dense ── bottom layers ──┐
    ids ── tables (sums) ────┴── interaction ── top layers ── out

Pure description: no drive, no weights. ``configs`` has the published models, ``dlrm`` reads the arguments of
facebookresearch/dlrm, ``weights`` and ``reference`` are the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.rm.errors import ModelError

if TYPE_CHECKING:
    from emucsd.drive import Drive
    from emucsd.rm.inputs import SparseLike
    from emucsd.rm.weights import Weights
    from emucsd.table import Table

Activation = Literal["none", "relu", "sigmoid"]
Interaction = Literal["cat", "dot"]
Pooling = Literal["sum", "mean"]
Floats = NDArray[np.float32]

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
class Model:
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

    # -- others like it

    def with_rows(self, rows: int | Sequence[int]) -> Model:
        """The same with tables of other sizes: one for all, or one for each."""
        counts = [rows] * len(self.tables) if isinstance(rows, int) else list(rows)
        if len(counts) != len(self.tables):
            raise ModelError(f"{self.name}: {len(counts)} row counts for {len(self.tables)} tables")
        return replace(self, tables=tuple(t._replace(rows=n) for t, n in zip(self.tables, counts, strict=True)))

    def with_lookups(self, lookups: int) -> Model:
        """The same with ``lookups`` ids a sample in every table."""
        return replace(self, tables=tuple(table._replace(lookups=lookups) for table in self.tables))

    # -- the published ones

    @classmethod
    def rmc1(cls, rows: int = 4_000_000) -> Model:
        """RMC1 (DeepRecSys): 8 tables of ``rows`` x 32, 80 lookups; embedding-dominated."""
        from emucsd.rm import configs

        return configs.RMC1.model(rows)

    @classmethod
    def rmc2(cls, rows: int = 500_000) -> Model:
        """RMC2 (DeepRecSys): 32 tables of ``rows`` x 64, 120 lookups; embedding-dominated."""
        from emucsd.rm import configs

        return configs.RMC2.model(rows)

    @classmethod
    def rmc3(cls, rows: int = 2_000_000) -> Model:
        """RMC3 (DeepRecSys): 10 tables of ``rows`` x 32, 20 lookups; MLP-dominated."""
        from emucsd.rm import configs

        return configs.RMC3.model(rows)

    @classmethod
    def ncf(cls, rows: int | Sequence[int] | None = None) -> Model:
        """NCF (DeepRecSys): 4 tables of 140 K, 140 K, 28 K, 28 K rows x 64, 1 lookup; no bottom layers."""
        from emucsd.rm import configs

        return configs.NCF.model(rows)

    @classmethod
    def wnd(cls, rows: int = 1_000_000) -> Model:
        """WnD (DeepRecSys): 27 tables of ``rows`` x 32, 1 lookup; no bottom layers."""
        from emucsd.rm import configs

        return configs.WND.model(rows)

    @classmethod
    def named(cls, name: str, rows: int | Sequence[int] | None = None) -> Model:
        """One of ``configs.PUBLISHED``: rmc1, rmc2, rmc3, ncf, wnd. :raises ModelError: another name"""
        from emucsd.rm import configs

        if name.lower() not in configs.PUBLISHED:
            raise ModelError(f"no model {name!r}; there are {', '.join(configs.PUBLISHED)}")
        return configs.PUBLISHED[name.lower()].model(rows)

    @classmethod
    def from_dlrm_args(cls, arguments: str | Sequence[str]) -> Model:
        """The model that facebookresearch/dlrm would make of this command line.

        :param arguments: one text, or as ``sys.argv[1:]``; ``dlrm.parse`` gives the inputs that they describe as well
        :raises UnknownArgument: arguments that this library has no answer to; the error names them all
        :raises ModelError: what they say makes no model
        """
        from emucsd.rm import dlrm

        return dlrm.parse(arguments).model

    # -- numbers

    def random_weights(self, seed: int = 0) -> Weights:
        """Weights and biases as DLRM draws them: normal, of variance 2 / (inputs + outputs) and 1 / outputs."""
        from emucsd.rm import weights

        return weights.random(self, seed)

    def random_table(self, number: int, seed: int = 0) -> Floats:
        """FP32[rows, dim] of table ``number``, uniform within ±1/sqrt(rows), as DLRM draws them."""
        from emucsd.rm import weights

        return weights.random_table(self, number, seed)

    def weights_from_state_dict(self, state: Mapping[str, Any], **prefixes: str) -> Weights:
        """Weights out of a PyTorch state_dict.

        :param state: names to tensors (or arrays): DLRM's ``bot_l.N.weight``, ``top_l.N.weight``, ``emb_l.N.weight``,
            or a plain ``nn.Sequential`` of all layers
        :param prefixes: ``bottom``, ``top``, ``tables``: other names for DLRM's
        :raises WeightsMissing: layers that have none, named
        :raises ModelError: of another shape than the model's
        """
        from emucsd.rm import weights

        return weights.from_state_dict(self, state, **prefixes)

    def reference(self, weights: Weights, tables: Sequence[Floats], dense: ArrayLike, sparse: SparseLike) -> Floats:
        """The answer by NumPy: FP32[samples, outputs]. Sums in index order, so equal to the drive's bit for bit."""
        from emucsd.rm import reference

        return reference.infer(self, weights, tables, dense, sparse)

    def random_batch(
        self, samples: int, seed: int = 0
    ) -> tuple[Floats, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
        """Dense features and (indices, offsets) of every table, every row as likely."""
        from emucsd.rm import inputs

        return inputs.random_batch(self, samples, seed)

    def create_tables(
        self, drive: Drive, seed: int = 0, *, prefix: str | None = None, tables: Sequence[Floats] | None = None
    ) -> list[Table]:
        """Store the tables on a drive, named ``<prefix>.<number>``, and open them.

        :param prefix: default: the model's name
        :param tables: their rows; None: random ones
        :raises NameTaken: the volume has such a name; ``open_tables`` opens what is there
        """
        from emucsd.table import Table

        made: list[Table] = []
        try:
            for number, name in enumerate(self.table_names(prefix)):
                rows = self.random_table(number, seed) if tables is None else tables[number]
                made.append(Table.create(drive, name, rows))
        except BaseException:
            for table in made:
                table.close()
            raise
        return made

    def open_tables(self, drive: Drive, prefix: str | None = None) -> list[Table]:
        """Open the tables that ``create_tables`` stored. :raises NameUnknown: they are not there"""
        from emucsd.table import Table

        opened: list[Table] = []
        try:
            for name in self.table_names(prefix):
                opened.append(Table.open(drive, name))
        except BaseException:
            for table in opened:
                table.close()
            raise
        return opened

    def table_names(self, prefix: str | None = None) -> Iterator[str]:
        """What ``create_tables`` calls them."""
        for number in range(len(self.tables)):
            yield f"{prefix or self.name}.{number}"


def stack(widths: Sequence[int], last: Activation = "relu") -> tuple[Layer, ...]:
    """Layers between consecutive widths, ReLU but for the last one's activation."""
    count = len(widths) - 1
    return tuple(Layer(a, b, "relu" if n < count - 1 else last) for n, (a, b) in enumerate(itertools.pairwise(widths)))
