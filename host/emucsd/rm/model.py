"""A recommendation model: its shape, the published ones, and its numbers.

``shape`` says what a model is, ``configs`` which are published; ``dlrm`` reads the arguments of facebookresearch/dlrm;
``weights``, ``inputs`` and ``reference`` are the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.drive import Drive
from emucsd.rm import configs, dlrm, inputs, reference, weights
from emucsd.rm.errors import ModelError
from emucsd.rm.inputs import SparseLike
from emucsd.rm.shape import EmbeddingTable, Layer, Shape
from emucsd.rm.weights import Weights
from emucsd.table import Table

Floats = NDArray[np.float32]

__all__ = ["EmbeddingTable", "Layer", "Model"]


@dataclass(frozen=True)
class Model(Shape):
    """A model. Its fields are ``Shape``'s; make one from them, or by one of the class methods."""

    # -- the published ones

    @classmethod
    def rmc1(cls, rows: int = 4_000_000) -> Self:
        """RMC1 (DeepRecSys): 8 tables of ``rows`` x 32, 80 lookups; embedding-dominated."""
        return configs.RMC1.build(cls, rows)

    @classmethod
    def rmc2(cls, rows: int = 500_000) -> Self:
        """RMC2 (DeepRecSys): 32 tables of ``rows`` x 64, 120 lookups; embedding-dominated."""
        return configs.RMC2.build(cls, rows)

    @classmethod
    def rmc3(cls, rows: int = 2_000_000) -> Self:
        """RMC3 (DeepRecSys): 10 tables of ``rows`` x 32, 20 lookups; MLP-dominated."""
        return configs.RMC3.build(cls, rows)

    @classmethod
    def ncf(cls, rows: int | Sequence[int] | None = None) -> Self:
        """NCF (DeepRecSys): 4 tables of 140 K, 140 K, 28 K, 28 K rows x 64, 1 lookup; no bottom layers."""
        return configs.NCF.build(cls, rows)

    @classmethod
    def wnd(cls, rows: int = 1_000_000) -> Self:
        """WnD (DeepRecSys): 27 tables of ``rows`` x 32, 1 lookup; no bottom layers."""
        return configs.WND.build(cls, rows)

    @classmethod
    def named(cls, name: str, rows: int | Sequence[int] | None = None) -> Self:
        """One of ``configs.PUBLISHED``: rmc1, rmc2, rmc3, ncf, wnd. :raises ModelError: another name"""
        if name.lower() not in configs.PUBLISHED:
            raise ModelError(f"no model {name!r}; there are {', '.join(configs.PUBLISHED)}")
        return configs.PUBLISHED[name.lower()].build(cls, rows)

    @classmethod
    def from_dlrm_args(cls, arguments: str | Sequence[str]) -> Self:
        """The model that facebookresearch/dlrm would make of this command line.

        :param arguments: one text, or as ``sys.argv[1:]``
        :raises UnknownArgument: arguments that this library has no answer to; the error names them all
        :raises ModelError: what they say makes no model
        """
        return dlrm.parse(arguments, cls).model

    @classmethod
    def dlrm_arguments(cls, arguments: str | Sequence[str]) -> dlrm.Arguments[Self]:
        """The same with the inputs that the command line describes. :raises UnknownArgument: as ``from_dlrm_args``"""
        return dlrm.parse(arguments, cls)

    # -- numbers

    def random_weights(self, seed: int = 0) -> Weights:
        """Weights and biases as DLRM draws them: normal, of variance 2 / (inputs + outputs) and 1 / outputs."""
        return weights.random(self, seed)

    def random_table(self, number: int, seed: int = 0) -> Floats:
        """FP32[rows, dim] of table ``number``, uniform within ±1/sqrt(rows), as DLRM draws them."""
        return weights.random_table(self, number, seed)

    def weights_from_state_dict(self, state: Mapping[str, Any], **prefixes: str) -> Weights:
        """Weights out of a PyTorch state_dict.

        :param state: names to tensors (or arrays): DLRM's ``bot_l.N.weight``, ``top_l.N.weight``, ``emb_l.N.weight``,
            or a plain ``nn.Sequential`` of all layers
        :param prefixes: ``bottom``, ``top``, ``tables``: other names for DLRM's
        :raises WeightsMissing: layers that have none, named
        :raises ModelError: of another shape than the model's
        """
        return weights.from_state_dict(self, state, **prefixes)

    def reference(self, weights: Weights, tables: Sequence[Floats], dense: ArrayLike, sparse: SparseLike) -> Floats:
        """The answer by NumPy: FP32[samples, outputs]. Sums in index order, so equal to the drive's bit for bit."""
        return reference.infer(self, weights, tables, dense, sparse)

    def random_batch(
        self, samples: int, seed: int = 0
    ) -> tuple[Floats, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
        """Dense features and (indices, offsets) of every table, every row as likely."""
        return inputs.random_batch(self, samples, seed)

    def create_tables(
        self, drive: Drive, seed: int = 0, *, prefix: str | None = None, tables: Sequence[Floats] | None = None
    ) -> list[Table]:
        """Store the tables on a drive, named ``<prefix>.<number>``, and open them.

        :param prefix: default: the model's name
        :param tables: their rows; None: random ones
        :raises NameTaken: the volume has such a name; ``open_tables`` opens what is there
        """
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
        opened: list[Table] = []
        try:
            for name in self.table_names(prefix):
                opened.append(Table.open(drive, name))
        except BaseException:
            for table in opened:
                table.close()
            raise
        return opened
