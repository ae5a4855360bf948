"""How a graph is mapped onto the engine: kernels, placement, mini-batch, the stages' times, and what they take.

Three stages, a unit of hardware each. For a mini-batch of n samples:

- *embedding*: the sums' part of a decomposed first top layer, behind the lookups;
- *bottom*: the bottom layers, and the bottom's part of that layer;
- *top*: everything else.

With ``ready`` the time at which the lookups end, each stage ends at

    embedding' = max(ready + tail_ns[n], max(batch there, embedding_free) + embedding_ns[n])
    bottom'    = max(batch there, bottom_free) + bottom_ns[n]
    out        = max(embedding', bottom', top_free) + top_ns[n]

where ``*_free`` is the end of the one before. ``tail_ns`` is what is left of the embedding stage when the lookups end:
with composition the last table's part, without it all of it.

Which designs there are:

- *searched* (SEARCH): see ``search``. It is the least sum of kernels without loss of speed.
- *uniform* (not SEARCH, but DECOMPOSE or COMPOSE): one square kernel, a power of two, for all layers, the smallest with
  which the constraints hold; placement and mini-batch by the same rules. This is what the search's savings are
  compared with: kernels that nobody trimmed layer by layer, of equal speed. Published for RMC3: LUT 40 %, FF 40 %,
  BRAM 10 %, DSP 40 % saved, against a default design whose kernels are not known. Here, on the XCVU9P: 77, 76, 17 and
  80 % (66,340 for 289,700 LUT, 800 for 4,000 DSP), for one layer of RMC3 has four fifths of its multiply-adds, and
  uniform kernels give all others what that one needs.
- *naive* (none of the three): one kernel that all layers share, one after the other, when the lookups have ended,
  sample by sample. Its size is what the DRAM's port feeds: as many inputs as FP32 words come in a cycle, as many
  outputs as keep their adder tree busy (II). A straightforward offload streams weights through such a core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd_firmware.errors import BudgetExceeded, DramExceeded
from emucsd_firmware.mlp.budget import FPGAS, Resources, share_of
from emucsd_firmware.mlp.graph import Graph
from emucsd_firmware.mlp.kernels import BOTTOM, EMBEDDING, TOP, Engine, Kernel, units
from emucsd_firmware.mlp.search import MAX_MINIBATCH, Design, Search
from emucsd_firmware.parts import Mlp
from emucsd_wire.rm import LayerGroup, Placement, RmFlag

MECHANISMS = RmFlag.DECOMPOSE | RmFlag.COMPOSE | RmFlag.SEARCH

Times = NDArray[np.int64]


class Mapped(NamedTuple):
    """One unit as it is mapped."""

    name: str
    layer: int  # its number, bottom layers first; -1: the interaction
    stage: LayerGroup
    inputs: int
    outputs: int
    kernel: Kernel
    placement: Placement
    composed: bool
    cycles: int  # for a whole mini-batch


@dataclass(frozen=True, slots=True)
class Mapping:
    """A graph on the engine. Times are ns, of arrays by number of samples: int64[minibatch + 1]."""

    design: str  # searched, uniform or naive
    fpga: str
    clock_mhz: int
    ii: int
    minibatch: int
    units: tuple[Mapped, ...]
    lookups_ns: int  # of a whole mini-batch, as expected: T_emb'
    embedding_ns: Times
    tail_ns: Times
    bottom_ns: Times
    top_ns: Times
    resources: Resources
    budget: Resources  # what the engine may take
    total: Resources  # what the FPGA has
    dram_bytes: int  # weights that lie there
    dram_total: int
    dram_traffic: int  # bytes of weights that a mini-batch reads from it
    weight_bytes: int

    @property
    def layers(self) -> tuple[Mapped, ...]:
        """The units that have weights."""
        return tuple(unit for unit in self.units if unit.layer >= 0)

    @property
    def stage_ns(self) -> dict[str, int]:
        """Each stage's time for a whole mini-batch, the lookups first."""
        times = {"embedding": self.embedding_ns, "bottom": self.bottom_ns, "top": self.top_ns}
        return {"lookups": self.lookups_ns, **{name: int(array[-1]) for name, array in times.items()}}

    @property
    def interval_ns(self) -> float:
        """From one sample to the next when all stages are busy."""
        return max(self.stage_ns.values()) / self.minibatch

    @property
    def bound(self) -> str:
        """The stage that all others wait for."""
        times = self.stage_ns
        return max(times, key=lambda name: times[name])

    def describe(self) -> dict[str, Any]:
        """Plain values, for reports."""
        names = ("lut", "ff", "bram", "dsp")
        return {
            "design": self.design,
            "fpga": self.fpga,
            "clock_mhz": self.clock_mhz,
            "ii": self.ii,
            "minibatch": self.minibatch,
            "kernels": [
                {
                    "unit": unit.name,
                    "stage": unit.stage.name.lower(),
                    "inputs": unit.inputs,
                    "outputs": unit.outputs,
                    "kr": unit.kernel.kr,
                    "kc": unit.kernel.kc,
                    "placement": unit.placement.name,
                    "composed": unit.composed,
                    "cycles": unit.cycles,
                }
                for unit in self.units
            ],
            "kernel_sum": sum(unit.kernel.kr * unit.kernel.kc for unit in self.units),
            "stage_ns": self.stage_ns,
            "stage_cycles": {name: ns * self.clock_mhz // 1000 for name, ns in self.stage_ns.items()},
            "interval_ns": self.interval_ns,
            "bound": self.bound,
            "used": {name: getattr(self.resources, name) for name in names},
            "budget": {name: getattr(self.budget, name) for name in names},
            "share_of_fpga": {name: getattr(self.resources, name) / getattr(self.total, name) for name in names},
            "dram_bytes": self.dram_bytes,
            "dram_traffic": self.dram_traffic,
            "weight_bytes": self.weight_bytes,
        }


def mapping(
    graph: Graph,
    settings: Mlp,
    emb_ns_per_sample: float,
    flags: RmFlag,
    *,
    samples: int = MAX_MINIBATCH,
    kernels: Sequence[tuple[int, int]] = (),
    fpga: str | None = None,
) -> Mapping:
    """Map a graph.

    :param emb_ns_per_sample: what the lookups of a sample take: ``demand.embedding_ns``
    :param flags: of which DECOMPOSE, COMPOSE and SEARCH matter here
    :param samples: of a batch, at most: a mini-batch is never larger
    :param kernels: (kr, kc) that a layer must have, bottom layers first; 0: the drive's choice
    :param fpga: another than the settings'
    :raises GraphError: a kernel is larger than its layer
    :raises BudgetExceeded: not even the smallest kernels, or not those asked for, come within the budget
    :raises DramExceeded: weights that BRAM does not hold exceed the DRAM
    """
    name = fpga or settings.fpga
    budget, engine = share_of(name, settings.share), Engine.of(settings)
    emb_cycles = emb_ns_per_sample * settings.clock_mhz / 1000
    wanted = flags & MECHANISMS
    parts = units(graph, decompose=bool(wanted & RmFlag.DECOMPOSE), kernels=kernels)
    search = Search(parts, engine, budget, emb_cycles, compose=bool(wanted & RmFlag.COMPOSE))
    if not parts:
        design, kind = Design(min(samples, MAX_MINIBATCH), 0, (), frozenset(), Resources()), "none"
    elif not wanted:
        design, kind = _naive(search, engine), "naive"
    else:
        kind = "searched" if wanted & RmFlag.SEARCH else "uniform"
        found = search.best(samples) if kind == "searched" else search.uniform(samples)
        if found is None:
            _refuse(search, name, settings.share)
        assert found is not None
        design = found
    _check(design, search, name, settings)
    return _mapping(graph, settings, search, design, kind, name)


def _naive(search: Search, engine: Engine) -> Design:
    """One kernel for all, as wide as the DRAM's port and as deep as II; a sample at a time."""
    words = max(engine.dram_bytes_per_us // engine.clock_mhz // 4, 1)
    kernel = Kernel(1 << (words.bit_length() - 1), 1 << (engine.ii - 1).bit_length())
    kernels = tuple(Kernel(unit.asked.kr or kernel.kr, unit.asked.kc or kernel.kc) for unit in search.units)
    widest = max(range(len(kernels)), key=lambda place: kernels[place].kr * engine.trees(kernels[place]))
    core = engine.resources(search.units[widest], kernels[widest], 1, dram=True)
    for dram in search.placements(1):
        memory = search.resources(kernels, 1, dram).bram
        design = Design(1, 0, kernels, dram, Resources(core.lut, core.ff, memory, core.dsp))  # each layer's own memory
        if design.resources.within(search.budget):
            break
    return design


def _refuse(search: Search, fpga: str, share: float) -> None:
    """:raises BudgetExceeded: always, with what the smallest design takes"""
    kernels = tuple(unit.square(1) for unit in search.units)
    dram = frozenset(place for place, unit in enumerate(search.units) if unit.layer >= 0)
    _over(search.resources(kernels, 1, dram), search.budget, fpga, share)


def _over(taken: Resources, budget: Resources, fpga: str, share: float) -> None:
    raise BudgetExceeded(
        f"the engine takes {_text(taken)}, {share:.0%} of an {fpga} are {_text(budget)}; ask for smaller kernels, or "
        f"set mlp.fpga ({', '.join(FPGAS)}) or mlp.share"
    )


def _text(amount: Resources) -> str:
    return f"{amount.lut} LUT, {amount.ff} FF, {amount.bram} BRAM, {amount.dsp} DSP"


def _check(design: Design, search: Search, fpga: str, settings: Mlp) -> None:
    """:raises BudgetExceeded: :raises DramExceeded: the design does not fit"""
    if not design.resources.within(search.budget):
        _over(design.resources, search.budget, fpga, settings.share)
    held = 4 * search.words(design.dram)
    if held > settings.dram_bytes:
        raise DramExceeded(
            f"{held} bytes of weights do not fit the BRAM, the drive has {settings.dram_bytes} bytes of DRAM for them; "
            "use a smaller model, or set mlp.dram_bytes"
        )


def _mapping(graph: Graph, settings: Mlp, search: Search, design: Design, kind: str, fpga: str) -> Mapping:
    def stage(group: LayerGroup) -> Times:
        cycles = [search.stage_cycles(group, design, n) for n in range(design.samples + 1)]
        return np.array([-(-count * 1000 // settings.clock_mhz) for count in cycles], np.int64)

    times = {group: stage(group) for group in LayerGroup}
    if kind == "naive":  # one core: the bottom layers wait for the lookups and go before the top layers
        times[TOP], times[BOTTOM] = times[TOP] + times[BOTTOM], times[BOTTOM] * 0
    behind = any(unit.stage == EMBEDDING for unit in search.units)
    composed = {place for groups in search.groups.values() for group in groups if len(group) == 2 for place in group}
    last = graph.dims[-1] / sum(graph.dims) if behind and search.compose else 1.0
    traffic = 4 * search.words(design.dram)
    return Mapping(
        design=kind,
        fpga=fpga,
        clock_mhz=settings.clock_mhz,
        ii=settings.ii,
        minibatch=design.samples,
        units=tuple(
            _mapped(search, design, place, place in composed or (search.compose and unit.stage == EMBEDDING))
            for place, unit in enumerate(search.units)
        ),
        lookups_ns=round(design.samples * search.emb_cycles * 1000 / settings.clock_mhz),
        embedding_ns=times[EMBEDDING],
        tail_ns=np.ceil(times[EMBEDDING] * last).astype(np.int64),
        bottom_ns=times[BOTTOM],
        top_ns=times[TOP],
        resources=design.resources,
        budget=search.budget,
        total=FPGAS[fpga],
        dram_bytes=traffic,
        dram_total=settings.dram_bytes,
        dram_traffic=traffic,
        weight_bytes=graph.weight_bytes,
    )


def _mapped(search: Search, design: Design, place: int, composed: bool) -> Mapped:
    unit, kernel, dram = search.units[place], design.kernels[place], place in design.dram
    cycles = search.engine.cycles(unit, kernel, design.samples, dram=dram)
    where = Placement.DRAM if dram else Placement.BRAM
    return Mapped(unit.name, unit.layer, unit.stage, unit.inputs, unit.outputs, kernel, where, composed, cycles)
