"""What a model answers, by NumPy: the yardstick for every other way to compute it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.lookup import IndexOutOfRange
from emucsd.rm.errors import IndexOutOfRangeOfTable, InputError
from emucsd.rm.inputs import Sparse, SparseLike, checked
from emucsd.rm.shape import Activation, Shape
from emucsd.rm.weights import LayerWeights, Weights
from emucsd.traces import Bags, sums_in_order

Floats = NDArray[np.float32]

__all__ = ["IndexOutOfRange", "bag_sums", "infer", "interact", "pooled", "run_layers"]


def infer(
    model: Shape, weights: Weights, tables: Sequence[Floats], dense: ArrayLike | None, sparse: SparseLike
) -> Floats:
    """FP32[samples, outputs].

    :param tables: FP32[rows, dim] for each table
    :raises InputError: inputs that do not fit the model
    :raises IndexOutOfRangeOfTable: an id names no row
    """
    features, ids = checked(model, dense, sparse)
    if len(tables) != len(model.tables):
        raise InputError(f"rows of {len(tables)} tables; {model.name} has {len(model.tables)}")
    sums = [pooled(model, number, rows, ids) for number, rows in enumerate(tables)]
    lowest = np.zeros((ids.samples, 0), np.float32) if features is None else features
    bottom = run_layers(model, 0, weights.layers[: len(model.bottom)], lowest)
    joined = interact(model, bottom, sums)
    return run_layers(model, len(model.bottom), weights.layers[len(model.bottom) :], joined)


def pooled(model: Shape, number: int, rows: Floats, sparse: Sparse) -> Floats:
    """The sums of one table, or their means; FP32[samples, dim]."""
    sums = bag_sums(number, rows, sparse)
    if model.tables[number].pooling == "mean":
        counts = np.diff(sparse.bounds[number]).astype(np.float32)
        sums /= np.maximum(counts, np.float32(1))[:, None]
    return sums


def bag_sums(number: int, rows: Floats, sparse: Sparse) -> Floats:
    """The sums of one table, added in index order; FP32[samples, dim]."""
    ids = sparse.table(number).astype(np.int64)
    wrong = np.flatnonzero((ids < 0) | (ids >= len(rows)))
    if len(wrong):
        raise IndexOutOfRangeOfTable(number, int(wrong[0]), int(ids[wrong[0]]), len(rows))
    if sparse.weights is None:
        return sums_in_order(rows, Bags(ids, sparse.bounds[number]))
    weighted = rows[ids] * sparse.weights[number][:, None]
    return sums_in_order(weighted, Bags(np.arange(len(ids)), sparse.bounds[number]))


def interact(model: Shape, bottom: Floats, sums: Sequence[Floats]) -> Floats:
    """What enters the top layers; FP32[samples, interaction_width]."""
    if model.interaction == "cat":
        return np.concatenate([bottom, *sums], axis=1)
    vectors = np.stack([bottom, *sums], axis=1)
    products = vectors @ vectors.transpose(0, 2, 1)
    rows, columns = np.tril_indices(vectors.shape[1], -1)
    return np.concatenate([bottom, products[:, rows, columns]], axis=1)


def run_layers(model: Shape, first: int, layers: Sequence[LayerWeights], inputs: Floats) -> Floats:
    """Layers ``first`` on, one after the other."""
    for layer, (weight, bias) in zip(model.layers[first:], layers, strict=False):
        inputs = _activate(inputs @ weight.T + bias, layer.activation)
    return np.ascontiguousarray(inputs)


def _activate(values: Floats, activation: Activation) -> Floats:
    match activation:
        case "relu":
            return np.maximum(values, np.float32(0))
        case "sigmoid":
            with np.errstate(over="ignore"):  # e**x beyond FP32: 1 / infinity is the 0 that is meant
                return np.float32(1) / (np.float32(1) + np.exp(-values))
        case _:
            return values
