"""Cycles and resources of fully connected layers on adder trees (Sun et al., RM-SSD, HPCA 2022).

A layer of R inputs and C outputs with a kernel of kr x kc takes ``R C / (kr kc) II`` cycles for a sample (with
borders: ``ceil(R / kr) ceil(C / kc) II``): each step multiplies kr inputs with a kr x kc block of weights, adds each
column up in a tree and accumulates it. II is the time that an accumulator needs; within it the columns follow one
another through the same tree, so ``kc`` columns need ``ceil(kc / II)`` trees of ``kr`` multipliers and as many adders.

*Decomposition* splits the first top layer's inputs, R C = Rb C + Re C: the part that takes the bottom's output runs
with the bottom, the part that takes the tables' sums runs behind the lookups; the rest of the top adds the two. With
dot interaction the second part needs both, and stays in the top, behind the interaction.

*Composition*: neighbours scan in alternate directions, the first by columns (outputs complete one after the other), the
second by rows (it takes each as it comes), so a pair takes as long as the longer one. The part behind the lookups is
composed with them: it takes each table's sums as they come, and only the last table's are left when the lookups end.

*Placement*: weights in BRAM, or in DRAM with two buffers of a block each. A block of DRAM weights is fetched in II_D
cycles while the last one is used by all samples of the mini-batch, N II cycles; it is kept until then: max(II_D, N II).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from emucsd_firmware.errors import GraphError
from emucsd_firmware.mlp.budget import ADDER, LAYER, MULTIPLIER, Resources, brams
from emucsd_firmware.mlp.graph import Graph
from emucsd_firmware.parts import Mlp
from emucsd_wire.rm import Interaction, LayerGroup

BOTTOM, TOP, EMBEDDING = LayerGroup.BOTTOM, LayerGroup.TOP, LayerGroup.EMBEDDING


class Kernel(NamedTuple):
    """Inputs and outputs of one step."""

    kr: int
    kc: int


ANY = Kernel(0, 0)


@dataclass(frozen=True, slots=True)
class Unit:
    """A layer, or a part of one, that has a kernel of its own."""

    name: str
    stage: LayerGroup  # with which of the pipeline's three stages it runs
    layer: int  # its layer's number, bottom layers first; -1: the interaction, which has no weights
    inputs: int
    outputs: int
    bias: int = 0  # words
    asked: Kernel = ANY  # what the model wants; 0: the search's choice

    @property
    def words(self) -> int:
        """FP32 parameters."""
        return self.inputs * self.outputs + self.bias if self.layer >= 0 else 0

    def kernels(self) -> Iterator[Kernel]:
        """All that the search looks at: powers of two, as banks of memory and adder trees come, up to the layer."""
        rows, columns = (
            (given,) if given else tuple(1 << bit for bit in range((size - 1).bit_length() + 1))
            for given, size in zip(self.asked, (self.inputs, self.outputs), strict=True)
        )
        for kr in rows:
            for kc in columns:
                yield Kernel(kr, kc)

    def square(self, side: int) -> Kernel:
        """A kernel of this side, cut down to the layer; what was asked for stays."""
        limits = (1 << (size - 1).bit_length() for size in (self.inputs, self.outputs))
        return Kernel(*(asked or min(side, limit) for asked, limit in zip(self.asked, limits, strict=True)))


def units(graph: Graph, *, decompose: bool, kernels: Sequence[tuple[int, int]] = ()) -> list[Unit]:
    """What runs in each stage, in order.

    :param kernels: (kr, kc) that each layer must have, bottom layers first; 0: any
    :raises GraphError: a kernel is larger than its layer
    """
    found: list[Unit] = []
    bottoms = len(graph.bottom)
    asked = [Kernel(*pair) for pair in kernels] or [ANY] * len(graph.layers)
    for number, (layer, kernel) in enumerate(zip(graph.layers, asked, strict=True)):
        if not (0 <= kernel.kr <= layer.inputs and 0 <= kernel.kc <= layer.outputs):
            raise GraphError(
                f"kernel {kernel.kr} x {kernel.kc} of layer {number}: the layer is {layer.inputs} x {layer.outputs}; "
                "ask for no more than that, or 0 to let the drive choose"
            )
        bottom = number < bottoms
        name = f"bottom {number}" if bottom else f"top {number - bottoms}"
        stage = BOTTOM if bottom else TOP
        dot = graph.interaction == Interaction.DOT
        if number == bottoms and dot:
            found.append(_interaction(graph))
        own, rest = graph.bottom_width, graph.interacted - graph.bottom_width
        if number == bottoms and decompose and ((own and rest) or not dot):
            last = TOP if dot else EMBEDDING
            parts = [Unit(f"{name}, bottom's part", BOTTOM, number, own, layer.outputs, layer.outputs, kernel)]
            bias = 0 if own else layer.outputs
            parts += [Unit(f"{name}, sums' part", last, number, rest, layer.outputs, bias, kernel)]
            found += [part for part in parts if part.inputs]
        else:
            found.append(Unit(name, stage, number, layer.inputs, layer.outputs, layer.outputs, kernel))
    if graph.interaction == Interaction.DOT and not graph.top:
        found.append(_interaction(graph))
    return found


def _interaction(graph: Graph) -> Unit:
    """The dot products as a layer: as many multiply-adds, no weights."""
    return Unit("interaction", TOP, -1, graph.dims[0], graph.interacted - graph.bottom_width)


def in_stage(all_units: Sequence[Unit], stage: LayerGroup) -> list[int]:
    """Places of a stage's units, in the order in which they run."""
    return [place for place, unit in enumerate(all_units) if unit.stage == stage]


def pairs(places: Sequence[int], *, compose: bool) -> list[tuple[int, ...]]:
    """Neighbours that run as one: two and two from the first on."""
    width = 2 if compose else 1
    return [tuple(places[at : at + width]) for at in range(0, len(places), width)]


class Engine(NamedTuple):
    """What cycles and resources depend on besides layer and kernel."""

    ii: int
    clock_mhz: int
    dram_bytes_per_us: int

    @classmethod
    def of(cls, settings: Mlp) -> Engine:
        """The one that a profile describes."""
        return cls(settings.ii, settings.clock_mhz, settings.dram_bytes_per_us)

    def fetch(self, words: int) -> int:
        """Cycles to read so many FP32 words from DRAM."""
        return -(-4 * words * self.clock_mhz // self.dram_bytes_per_us)

    def cycles(self, unit: Unit, kernel: Kernel, samples: int, *, dram: bool) -> int:
        """A unit's time for a mini-batch of ``samples``."""
        blocks = -(-unit.inputs // kernel.kr) * -(-unit.outputs // kernel.kc)
        step = samples * self.ii
        if dram and samples:
            step = max(step, self.fetch(kernel.kr * kernel.kc))
        return blocks * step

    def trees(self, kernel: Kernel) -> int:
        """Adder trees that the kernel's columns share."""
        return -(-kernel.kc // self.ii)

    def brams(self, unit: Unit, kernel: Kernel, samples: int, *, dram: bool) -> int:
        """BRAM36 of a unit, with two buffers for its inputs: one fills while the other is read."""
        inputs = brams(2 * samples * unit.inputs, kernel.kr)
        words = 2 * kernel.kr * kernel.kc + unit.bias if dram else unit.words
        return inputs + (brams(words, kernel.kr * self.trees(kernel)) if unit.layer >= 0 else 0)

    def resources(self, unit: Unit, kernel: Kernel, samples: int, *, dram: bool) -> Resources:
        """What a unit takes."""
        memory = Resources(bram=self.brams(unit, kernel, samples, dram=dram))
        return (MULTIPLIER + ADDER) * (kernel.kr * self.trees(kernel)) + LAYER + memory

    def stage_cycles(
        self, chosen: Sequence[tuple[Unit, Kernel, bool]], groups: Sequence[tuple[int, ...]], samples: int
    ) -> int:
        """A stage's time: its pairs one after the other. Two of a pair that are both in DRAM share its bandwidth."""
        total = 0
        for group in groups:
            times = [self.cycles(unit, kernel, samples, dram=dram) for unit, kernel, dram in (chosen[i] for i in group)]
            fetched = sum(self.fetch(chosen[i][0].words) for i in group if chosen[i][2] and samples)
            total += max(*times, fetched)
        return total
