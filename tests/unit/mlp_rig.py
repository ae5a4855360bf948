"""An MLP program on buffers of its own, and the same graph in NumPy, sum by sum in the order that is promised."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd_firmware.mlp import engine
from emucsd_firmware.mlp.engine import Run, program_at, run_at
from emucsd_firmware.mlp.graph import Graph, Layer
from emucsd_firmware.mlp.program import ProgramMemory
from emucsd_wire.rm import Activation, Interaction
from emucsd_wire.words import jit

F32 = NDArray[np.float32]


@jit
def _step(program: int, run: int) -> int:
    return engine.forward_step(program_at(program, 0), run_at(run, 0))


def chain(*widths: int, last: Activation = Activation.RELU) -> tuple[Layer, ...]:
    """Layers of these widths, ReLU between them."""
    count = len(widths) - 1
    pairs = itertools.pairwise(widths)
    return tuple(Layer(a, b, last if i == count - 1 else Activation.RELU) for i, (a, b) in enumerate(pairs))


def parameters(graph: Graph, seed: int = 1) -> list[tuple[F32, F32]]:
    """(weight[outputs, inputs], bias[outputs]) of each layer."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.uniform(-1, 1, (layer.outputs, layer.inputs)).astype(np.float32),
            rng.uniform(-1, 1, layer.outputs).astype(np.float32),
        )
        for layer in graph.layers
    ]


class Rig:
    """A program with its weights."""

    def __init__(self, graph: Graph, seed: int = 1) -> None:
        self.graph = graph
        self.memory = ProgramMemory(graph)
        self.parameters = parameters(graph, seed)
        for number, (weight, bias) in enumerate(self.parameters):
            self.memory.load(number, 0, np.concatenate([weight.ravel(), bias]))
        assert self.memory.complete

    def inputs(self, samples: int, seed: int = 2) -> tuple[F32, F32]:
        """Dense features and the tables' sums."""
        rng = np.random.default_rng(seed)
        dense = rng.uniform(-1, 1, (samples, self.graph.dense)).astype(np.float32)
        return dense, rng.uniform(-1, 1, (samples, sum(self.graph.dims))).astype(np.float32)

    def start(self, dense: F32, sums: F32) -> Going:
        return Going(self, dense, sums)

    def run(self, dense: F32, sums: F32) -> F32:
        """To its end."""
        going = self.start(dense, sums)
        while not going.step():
            pass
        return going.out


class Going:
    """One mini-batch under way."""

    def __init__(self, rig: Rig, dense: F32, sums: F32) -> None:
        graph, samples = rig.graph, len(dense)
        sizes = rig.memory.sizes(samples)
        self.rig = rig
        self.x: F32 = np.full((samples, graph.width), np.nan, np.float32)
        self.x[:, graph.bottom_width :] = sums
        self.out: F32 = np.full((samples, graph.outputs), np.nan, np.float32)
        self.scratch = np.full(sizes.scratch, 0xFF, np.uint8)
        self.keep = np.ascontiguousarray(dense)
        assert (sizes.dense, sizes.x, sizes.out) == (self.keep.nbytes, self.x.nbytes, self.out.nbytes)
        self.state = np.zeros(1, Run.dtype)
        record: Any = self.state[0]
        record["dense"], record["x"], record["out"] = (a.ctypes.data for a in (self.keep, self.x, self.out))
        record["scratch"], record["samples"] = self.scratch.ctypes.data, samples

    def step(self) -> int:
        """One slice."""
        return _step(self.rig.memory.address, int(self.state.ctypes.data))


def linear(x: F32, weight: F32, bias: F32) -> F32:
    """Bias first, inputs ascending, each product rounded."""
    total = np.repeat(bias[None], len(x), 0)
    for at in range(weight.shape[1]):
        total = total + x[:, at : at + 1] * weight[None, :, at]
    return total


def activate(x: F32, activation: Activation) -> F32:
    if activation == Activation.RELU:
        return np.where(x < 0, np.float32(0), x)
    if activation == Activation.SIGMOID:
        values = [1 / (1 + math.exp(-value)) if value > -700 else 0.0 for value in x.ravel().tolist()]
        return np.array(values, np.float32).reshape(x.shape)
    return x


def reference(graph: Graph, weights: list[tuple[F32, F32]], dense: F32, sums: F32) -> F32:
    """The graph's result."""
    value = dense
    for layer, (weight, bias) in zip(graph.bottom, weights, strict=False):
        value = activate(linear(value, weight, bias), layer.activation)
    row = np.concatenate([value, sums], 1)
    if graph.interaction == Interaction.DOT:
        vectors = row.reshape(len(row), graph.vectors, -1)
        pairs = [(i, j) for i in range(graph.vectors) for j in range(i)]
        found = np.zeros((len(row), len(pairs)), np.float32)
        for at in range(vectors.shape[2]):
            left, right = ([pair[side] for pair in pairs] for side in (0, 1))
            found = found + vectors[:, left, at] * vectors[:, right, at]
        row = np.concatenate([value, found], 1)
    value = row
    for layer, (weight, bias) in zip(graph.top, weights[len(graph.bottom) :], strict=True):
        value = activate(linear(value, weight, bias), layer.activation)
    return value
