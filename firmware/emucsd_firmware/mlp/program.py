"""A program's memory: the graph translated into stages, packed weights, and what a run's buffers must hold."""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd_firmware.errors import GraphError
from emucsd_firmware.mlp import engine
from emucsd_firmware.mlp.engine import COPY, DENSE, DOT, LINEAR, OUT, ROW, TILE_BYTES, Program, Stage, X, program_at
from emucsd_firmware.mlp.gemm import PANEL
from emucsd_firmware.mlp.graph import Graph, Layer
from emucsd_wire.rm import Interaction
from emucsd_wire.words import jit


class Sizes(NamedTuple):
    """Bytes of a run's buffers."""

    dense: int
    x: int
    out: int
    scratch: int


class Place(NamedTuple):
    """Where a stage's rows are: which buffer, the first byte of a row's part, and from row to row."""

    buffer: int
    at: int
    stride: int


@jit
def _load(program: int, layer: int, offset: int, data: int, count: int) -> int:
    return engine.load_weights(program_at(program, 0), layer, offset, data, count)


def _panels(outputs: int) -> int:
    return -(-outputs // PANEL)


class ProgramMemory:
    """Owns a program's record, stages and packed weights.

    ``address`` is that of its Program record. Weights take memory as they are loaded; with a short last panel a little
    more than they have bytes (``packed_bytes``).
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        wide = max([1, *(layer.outputs for layer in graph.layers)])
        row = 2 * wide + graph.interacted  # two layers in turn, then what the interaction makes
        self._row_bytes = -(-4 * row // 64) * 64 + 64  # an odd number of cache lines: rows do not share their sets
        self._row_bytes += 64 * (self._row_bytes // 64 % 2 == 0)
        self._halves = (0, 4 * wide)
        self._interaction = 8 * wide
        self._stages: list[dict[str, int]] = []
        self._layers: list[int] = []
        self._build()
        self.record = np.zeros(1, Program.dtype)
        self.stages = np.zeros(max(len(self._stages), 1), Stage.dtype)
        self._zeros = np.zeros(PANEL, np.float32)
        self._stage_of = np.array([*self._layers, 0], np.int64)
        self._weights: list[NDArray[np.float32]] = []
        self._others: list[NDArray[Any]] = []
        self._fill()

    @property
    def address(self) -> int:
        """Address of the Program record."""
        return int(self.record.ctypes.data)

    @property
    def complete(self) -> bool:
        """All parameters of all layers have been loaded."""
        return int(self.record[0]["missing"]) == 0

    @property
    def missing(self) -> list[int]:
        """Bytes of each layer that have not been loaded."""
        return [4 * int(self.stages[place]["missing"]) for place in self._layers]

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return sum(weights.nbytes for weights in self._weights)

    @property
    def x_stride(self) -> int:
        """Bytes from one row of X to the next."""
        return 4 * self.graph.width

    def column(self, table: int) -> int:
        """Byte of a row of X at which a table's sum begins."""
        return 4 * (self.graph.bottom_width + sum(self.graph.dims[:table]))

    def sizes(self, samples: int) -> Sizes:
        """What the buffers of a run of ``samples`` take, in bytes. All are best aligned to 64."""
        graph = self.graph
        scratch = int(self.record[0]["rows_at"]) + samples * self._row_bytes
        return Sizes(4 * samples * graph.dense, self.x_stride * samples, 4 * samples * graph.outputs, scratch)

    def load(self, layer: int, byte_offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Parameters of a layer (bottom layers first): FP32 weight[outputs, inputs] then bias[outputs], from a byte on.

        :raises GraphError: there is no such layer, or the bytes are not whole words within it
        """
        view = np.frombuffer(data, np.uint8)
        if _load(self.address, layer, byte_offset, view.ctypes.data, view.size):
            layers = self.graph.layers
            limit = 4 * layers[layer].words if 0 <= layer < len(layers) else 0
            raise GraphError(
                f"weights of layer {layer}: bytes {byte_offset} to {byte_offset + view.size}: there are {len(layers)} "
                f"layers, this one has {limit} bytes; send whole FP32 words within it"
            )

    # ---- building ----

    def _build(self) -> None:
        graph = self.graph
        dense, sums = Place(DENSE, 0, 4 * graph.dense), Place(X, 0, self.x_stride)
        if graph.bottom:
            self._chain(graph.bottom, dense, sums)
        elif graph.dense:
            self._stage(COPY, dense, sums, inputs=graph.dense)
        result = Place(OUT, 0, 4 * graph.outputs)
        if graph.interaction == Interaction.DOT:
            target = Place(ROW, self._interaction, self._row_bytes) if graph.top else result
            width = graph.dims[0]
            self._stage(DOT, sums, target, inputs=width, vectors=graph.vectors, head=graph.bottom_width)
            sums = target
        elif not graph.top:
            self._stage(COPY, sums, result, inputs=graph.width)
        if graph.top:
            self._chain(graph.top, sums, result)

    def _chain(self, layers: tuple[Layer, ...], source: Place, result: Place) -> None:
        """Layers one after the other; what is between two of them lies in the halves of a scratch row, in turn."""
        for number, layer in enumerate(layers):
            last = number == len(layers) - 1
            target = result if last else Place(ROW, self._halves[number % 2], self._row_bytes)
            self._layers.append(len(self._stages))
            self._stage(
                LINEAR,
                source,
                target,
                inputs=layer.inputs,
                outputs=layer.outputs,
                activation=int(layer.activation),
                missing=layer.words,
            )
            source = target

    def _stage(self, kind: int, source: Place, target: Place, **values: int) -> None:
        places = {"source": source.buffer, "source_at": source.at, "source_stride": source.stride}
        places |= {"target": target.buffer, "target_at": target.at, "target_stride": target.stride}
        self._stages.append({"kind": kind, **places, **values})

    def _fill(self) -> None:
        for stage, values in zip(self.stages, self._stages, strict=False):
            for name, value in values.items():
                stage[name] = value
        for place in self._layers:
            stage = self.stages[place]
            inputs, panels = int(stage["inputs"]), _panels(int(stage["outputs"]))
            memory = mmap.mmap(-1, 4 * PANEL * inputs * panels)
            weights = np.frombuffer(memory, np.float32)
            bias, seen = np.zeros(PANEL * panels, np.float32), np.zeros(int(stage["missing"]) // 8 + 1, np.uint8)
            self._weights.append(weights)
            self._others += [bias, seen]
            stage["weights"], stage["bias"], stage["seen"] = (a.ctypes.data for a in (weights, bias, seen))
        record, graph = self.record[0], self.graph
        record["stages"], record["count"] = self.stages.ctypes.data, len(self._stages)
        record["layers"], record["layer_count"] = self._stage_of.ctypes.data, len(self._layers)
        record["missing"] = sum(layer.words for layer in graph.layers)
        record["zeros"] = self._zeros.ctypes.data
        pairs = graph.interaction == Interaction.DOT
        record["rows_at"] = TILE_BYTES + (4 * PANEL * graph.dims[0] * _panels(graph.vectors) if pairs else 0)
        record["x_stride"], record["dense_stride"] = self.x_stride, 4 * graph.dense
        record["out_stride"] = 4 * graph.outputs
