"""Weights of a model's layers: at random, or out of a PyTorch state_dict (which is read without PyTorch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.rm.errors import ModelError, WeightsMissing
from emucsd.rm.shape import Layer, Shape

Floats = NDArray[np.float32]


class LayerWeights(NamedTuple):
    """FP32[outputs, inputs] and FP32[outputs], as ``torch.nn.Linear`` has them."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class Weights:
    """All numbers of a model.

    :ivar layers: bottom layers, then top layers
    :ivar tables: FP32[rows, dim] of each table where the source had them, else empty
    """

    layers: tuple[LayerWeights, ...]
    tables: tuple[Floats, ...] = ()

    @classmethod
    def of(cls, model: Shape, layers: Sequence[tuple[Any, Any]], tables: Sequence[Any] = ()) -> Weights:
        """Pairs (weight, bias), checked against a model; a bias may be None: zeros.

        :raises WeightsMissing: fewer layers than the model has
        :raises ModelError: another shape
        """
        if len(layers) < len(model.layers):
            missing = tuple(model.layer_name(n) for n in range(len(layers), len(model.layers)))
            raise WeightsMissing(f"{model.name}: no weights for {', '.join(missing)}", missing)
        if len(layers) > len(model.layers):
            raise ModelError(f"{model.name}: weights for {len(layers)} layers; the model has {len(model.layers)}")
        checked = [
            _checked(model, number, layer, weight, bias)
            for number, (layer, (weight, bias)) in enumerate(zip(model.layers, layers, strict=True))
        ]
        return cls(tuple(checked), tuple(_table(model, n, rows) for n, rows in enumerate(tables)))

    @property
    def nbytes(self) -> int:
        """Of all layers."""
        return sum(layer.weight.nbytes + layer.bias.nbytes for layer in self.layers)


def _checked(model: Shape, number: int, layer: Layer, weight: Any, bias: Any) -> LayerWeights:
    name = f"{model.name}: {model.layer_name(number)}"
    matrix = _floats(weight, (layer.outputs, layer.inputs), f"{name}'s weight")
    vector = np.zeros(layer.outputs, np.float32)
    if bias is not None:
        vector = _floats(bias, (layer.outputs,), f"{name}'s bias")
    return LayerWeights(matrix, vector)


def _table(model: Shape, number: int, rows: Any) -> Floats:
    if number >= len(model.tables):
        raise ModelError(f"{model.name}: rows for {number + 1} tables and more; the model has {len(model.tables)}")
    table = model.tables[number]
    return _floats(rows, (table.rows, table.dim), f"{model.name}: table {number}")


def _floats(values: Any, shape: tuple[int, ...], name: str) -> Floats:
    """An array or tensor as FP32, copied where need be. :raises ModelError: another shape or kind"""
    array = as_array(values)
    if array.shape != shape:
        raise ModelError(f"{name} is {list(array.shape)}; the model's is {list(shape)}")
    if array.dtype.kind != "f":
        raise ModelError(f"{name} is {array.dtype}; weights are floating-point numbers")
    return np.ascontiguousarray(array, np.float32)


def as_array(values: Any) -> NDArray[Any]:
    """An array, or a PyTorch tensor (of any device, with or without gradient) as one."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # NumPy has no such type
            values = values.float()
        values = values.numpy()
    return np.asarray(values)


# -- at random


def random(model: Shape, seed: int) -> Weights:
    """As DLRM draws them: normal, of variance 2 / (inputs + outputs), biases 1 / outputs."""
    rng = np.random.default_rng((seed, 0))
    layers = []
    for layer in model.layers:
        weight = rng.standard_normal((layer.outputs, layer.inputs), np.float32)
        weight *= np.float32(np.sqrt(2.0 / (layer.inputs + layer.outputs)))
        bias = rng.standard_normal(layer.outputs, np.float32) * np.float32(np.sqrt(1.0 / layer.outputs))
        layers.append(LayerWeights(weight, bias))
    return Weights(tuple(layers))


def random_table(model: Shape, number: int, seed: int) -> Floats:
    """FP32[rows, dim], uniform within ±1/sqrt(rows), as DLRM draws them."""
    table = model.tables[number]
    rng = np.random.default_rng((seed, 1, number))
    rows = rng.random((table.rows, table.dim), np.float32)
    rows -= np.float32(0.5)
    rows *= np.float32(2.0 / np.sqrt(table.rows))
    return rows


# -- from PyTorch


def from_state_dict(
    model: Shape, state: Mapping[str, Any], *, bottom: str = "bot_l", top: str = "top_l", tables: str = "emb_l"
) -> Weights:
    """See ``Model.weights_from_state_dict``; names that are none of these groups' are left alone."""
    layers = [*_group(state, bottom), *_group(state, top)]
    if not layers:
        layers = _group(state, "")
        if not layers:
            raise WeightsMissing(
                f"{model.name}: none of the {len(state)} names is {bottom}.N.weight, {top}.N.weight or N.weight; "
                f"give bottom= and top= the names of the two groups of layers (there are: {_some(state)})",
                tuple(model.layer_name(n) for n in range(len(model.layers))),
            )
    else:
        _check_counts(model, state, bottom, top)
    rows = [weight for weight, _ in _group(state, tables)]
    return Weights.of(model, layers, rows)


def _check_counts(model: Shape, state: Mapping[str, Any], bottom: str, top: str) -> None:
    """Each group by itself: or a missing bottom layer would be taken for a top layer of another shape."""
    for prefix, group, first in ((bottom, model.bottom, 0), (top, model.top, len(model.bottom))):
        found = len(_group(state, prefix))
        if found < len(group):
            missing = tuple(model.layer_name(first + n) for n in range(found, len(group)))
            raise WeightsMissing(
                f"{model.name}: {prefix} has weights of {found} layers, none for {missing[0]}", missing
            )
        if found > len(group):
            raise ModelError(f"{model.name}: {prefix} has weights of {found} layers; the model has {len(group)} there")


def _group(state: Mapping[str, Any], prefix: str) -> list[tuple[Any, Any]]:
    """(weight, bias) of ``<prefix>.N``, by N; a Sequential counts its activations, too, so N has gaps."""
    start = f"{prefix}." if prefix else ""
    numbers = []
    for name in state:
        middle = name.removeprefix(start).removesuffix(".weight")
        if name == f"{start}{middle}.weight" and middle.isdecimal():
            numbers.append(int(middle))
    return [(state[f"{start}{n}.weight"], state.get(f"{start}{n}.bias")) for n in sorted(numbers)]


def _some(state: Mapping[str, Any]) -> str:
    names = list(state)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
