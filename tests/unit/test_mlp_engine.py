"""The functional MLP engine: sums in the promised order, the same bits however the work is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emucsd_firmware.errors import GraphError
from emucsd_firmware.mlp import gemm
from emucsd_firmware.mlp.engine import SLICE
from emucsd_firmware.mlp.graph import Graph, Layer
from emucsd_firmware.mlp.program import ProgramMemory
from emucsd_wire.rm import Activation, Interaction
from emucsd_wire.words import jit
from tests.unit.mlp_rig import Rig, chain, linear, reference

CAT, DOT = Interaction.CAT, Interaction.DOT
GRAPHS = {
    "rmc1": Graph(dense=128, bottom=chain(128, 64, 32), dims=(32,) * 8, top=chain(288, 256, 64, 1)),
    "odd widths": Graph(
        dense=13,
        bottom=chain(13, 51, 17),
        dims=(8, 4, 33),
        top=chain(62, 100, 33, 3, last=Activation.SIGMOID),
    ),
    "dot": Graph(
        dense=13,
        bottom=chain(13, 40, 16),
        dims=(16,) * 26,
        interaction=DOT,
        top=chain(16 + 351, 70, 1, last=Activation.SIGMOID),
    ),
    "dot of many": Graph(dense=0, dims=(20,) * 40, interaction=DOT, top=chain(780, 16, last=Activation.NONE)),
    "dot of two, no top": Graph(dense=5, dims=(5,), interaction=DOT),
    "no bottom": Graph(dense=100, dims=(32, 32), top=chain(164, 40, 2, last=Activation.NONE)),
    "no dense": Graph(dense=0, dims=(64,) * 4, top=chain(256, 256, 128, 64, 64)),
    "bottom alone": Graph(dense=9, bottom=chain(9, 70, 7, last=Activation.NONE)),
    "nothing to learn": Graph(dense=3, dims=(2, 2)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_bits_are_the_references(name: str) -> None:
    """Every output equals, bit for bit, NumPy's sum from the bias over ascending inputs with each product rounded."""
    rig = Rig(GRAPHS[name])
    dense, sums = rig.inputs(11)
    assert np.array_equal(rig.run(dense, sums), reference(rig.graph, rig.parameters, dense, sums))


@pytest.mark.parametrize("name", ["rmc1", "odd widths", "dot"])
def test_batch_changes_nothing(name: str) -> None:
    """A sample has the same bits alone and in mini-batches of any size."""
    rig = Rig(GRAPHS[name])
    dense, sums = rig.inputs(23)
    whole = rig.run(dense, sums)
    for size in (1, 2, 3, 4, 6, 8, 13):
        parts = [rig.run(dense[at : at + size], sums[at : at + size]) for at in range(0, 23, size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_runs_take_turns() -> None:
    """Slices are bounded, and runs of different programs between them leave each other alone."""
    wide = Rig(Graph(dense=700, bottom=chain(700, 600, 100), dims=(20,), top=chain(120, 5)))
    other = Rig(GRAPHS["odd widths"], seed=5)
    inputs = [rig.inputs(40, seed) for seed, rig in enumerate((wide, wide, other))]
    alone = [rig.run(*given) for rig, given in zip((wide, wide, other), inputs, strict=True)]
    going = [rig.start(*given) for rig, given in zip((wide, wide, other), inputs, strict=True)]
    steps = [0, 0, 0]
    left = [0, 1, 2]
    while left:
        for number in list(left):
            steps[number] += 1
            if going[number].step():
                left.remove(number)
    assert all(np.array_equal(run.out, right) for run, right in zip(going, alone, strict=True))
    assert steps[0] == steps[1] >= 40 * wide.graph.macs // (2 * SLICE) > 3


@jit
def _panel(x: int, panel: int, bias: int, inputs: int, wide: int, halves: int) -> None:
    for rows in range(1, 16):
        place = 4 * 16 * 32 * (rows - 1)
        gemm._wide(x, 4 * inputs, panel, bias, inputs, wide + place, 128, 0, rows)
        gemm._both_halves(x, 4 * inputs, panel, bias, inputs, halves + place, 128, 0, rows)


def test_kernels_agree() -> None:
    """The kernels for long and for short vector registers give the same bits for any number of samples."""
    rng = np.random.default_rng(4)
    x, panel, bias = (rng.standard_normal(shape, np.float32) for shape in ((16, 77), (77, 32), 32))
    wide, halves = np.zeros((2, 16, 16, 32), np.float32)
    _panel(x.ctypes.data, panel.ctypes.data, bias.ctypes.data, 77, wide.ctypes.data, halves.ctypes.data)
    assert np.array_equal(wide, halves)
    assert np.array_equal(wide[14, :15], linear(x[:15], panel.T, bias))


def test_no_samples() -> None:
    """A run of nothing has ended."""
    rig = Rig(GRAPHS["rmc1"])
    assert rig.start(*rig.inputs(0)).step() == 1


@pytest.mark.parametrize("activation", list(Activation))
def test_extremes(activation: Activation) -> None:
    """Infinities and NaN come out as PyTorch has them, and sigmoid keeps its tails."""
    rig = Rig(Graph(dense=1, bottom=(Layer(1, 1, activation),)))
    rig.memory.load(0, 0, np.array([1, 0], np.float32))
    given = [np.nan, np.inf, -np.inf, 3e38, -3e38, 88, -88, -100, 17, -17, 1e-30, 0, -1, 1e-7]
    dense = np.array(given, np.float32)[:, None]
    found = rig.run(dense, np.zeros((len(dense), 0), np.float32))
    right = {
        Activation.NONE: dense,
        Activation.RELU: np.where(dense < 0, 0, dense),
        Activation.SIGMOID: 1 / (1 + np.exp(-dense.astype(np.float64).clip(-700, 700))),
    }[activation]
    np.testing.assert_allclose(found, right.astype(np.float32), rtol=1e-7)


def test_within_torchs_rounding() -> None:
    """Within 1e-5 relative of PyTorch's result for a DLRM of both kinds of interaction."""
    torch = pytest.importorskip("torch")
    for name in ("rmc1", "dot"):
        rig = Rig(GRAPHS[name])
        dense, sums = rig.inputs(16)
        value = torch.from_numpy(dense)
        ours = rig.run(dense, sums)
        layers = list(zip(rig.graph.layers, rig.parameters, strict=True))
        functions: dict[Activation, Any] = {
            Activation.NONE: lambda x: x,
            Activation.RELU: torch.relu,
            Activation.SIGMOID: torch.sigmoid,
        }

        def through(part: list[Any], value: Any, functions: dict[Activation, Any] = functions) -> Any:
            for layer, (weight, bias) in part:
                given = (torch.from_numpy(weight), torch.from_numpy(bias))
                value = functions[layer.activation](torch.nn.functional.linear(value, *given))
            return value

        bottom = through(layers[: len(rig.graph.bottom)], value)
        row = torch.cat([bottom, torch.from_numpy(sums)], 1)
        if rig.graph.interaction == DOT:
            vectors = row.view(len(row), rig.graph.vectors, -1)
            product = torch.bmm(vectors, vectors.transpose(1, 2))
            i, j = torch.tril_indices(rig.graph.vectors, rig.graph.vectors, offset=-1)
            row = torch.cat([bottom, product[:, i, j]], 1)
        theirs = through(layers[len(rig.graph.bottom) :], row).numpy()
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


# ---- weights ----


def test_weights_in_any_order() -> None:
    """Parts of a layer may come in any order and again; it is complete when every parameter has come."""
    graph = Graph(dense=13, bottom=chain(13, 45))
    memory = ProgramMemory(graph)
    rig = Rig(graph)
    weight, bias = rig.parameters[0]
    data = np.concatenate([weight.ravel(), bias]).tobytes()
    order = np.random.default_rng(3).permutation(range(0, len(data), 52))
    for at in order[:-1]:
        memory.load(0, int(at), data[at : at + 100])
    assert memory.missing[0] > 0 or memory.complete
    memory.load(0, int(order[-1]), data[order[-1] : order[-1] + 52])
    assert memory.complete
    assert memory.missing == [0]
    dense, sums = rig.inputs(5)
    other = Rig(graph, seed=9)
    other.memory.load(0, 0, data)  # in place of what was there
    assert np.array_equal(other.run(dense, sums), rig.run(dense, sums))


@pytest.mark.parametrize(("layer", "at", "count"), [(0, 4 * 45 * 14, 4), (0, -4, 8), (0, 2, 4), (0, 0, 6), (1, 0, 4)])
def test_weights_out_of_range(layer: int, at: int, count: int) -> None:
    """Refused, with the layer's size; nothing is written."""
    memory = ProgramMemory(Graph(dense=13, bottom=chain(13, 45)))
    with pytest.raises(GraphError, match=rf"weights of layer {layer}: bytes {at} to .*whole FP32 words"):
        memory.load(layer, at, bytes(count))
    assert memory.missing == [4 * 45 * 14]


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ({"dense": 5, "bottom": chain(6, 4)}, "first bottom layer takes 6 inputs, there are 5"),
        ({"dense": 5, "dims": (4,), "top": chain(8, 1)}, "first top layer takes 8 inputs, the interaction makes 9"),
        ({"dense": 4, "bottom": (Layer(4, 3), Layer(2, 1))}, "layer 0 has 3 outputs, layer 1 takes 2"),
        ({"dense": 5, "dims": (4, 4), "interaction": DOT}, "must be equally wide"),
        ({"dense": 0, "dims": (4,), "interaction": DOT}, "no pairs"),
        ({"dense": 0}, "something must go in"),
        ({"dense": 1 << 17}, "each must be 1 to 65536"),
        ({"dense": 2, "bottom": chain(*[2] * 40)}, "at most 32"),
    ],
)
def test_graphs_that_do_not_fit(graph: dict[str, Any], says: str) -> None:
    """Each error names the widths at fault."""
    with pytest.raises(GraphError, match=says):
        Graph(**graph)
