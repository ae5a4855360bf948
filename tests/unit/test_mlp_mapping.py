"""How MLPs are mapped: cycles, resources, placement, and a search that finds the minimum."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from emucsd_firmware.errors import BudgetExceeded, DramExceeded, GraphError
from emucsd_firmware.mlp.budget import Resources, brams, share_of
from emucsd_firmware.mlp.demand import embedding_ns, vector_ns
from emucsd_firmware.mlp.graph import Graph
from emucsd_firmware.mlp.kernels import BOTTOM, EMBEDDING, TOP, Engine, Kernel, Unit, in_stage, pairs, units
from emucsd_firmware.mlp.mapping import MECHANISMS, Mapping, mapping
from emucsd_firmware.mlp.search import Search
from emucsd_firmware.profile import KNOBS, load
from emucsd_wire.rm import Interaction, Placement, RmFlag
from tests.unit.mlp_rig import chain

RMSSD = load("rmssd")
ENGINE = Engine.of(RMSSD.mlp)
UNIFORM, NAIVE = RmFlag.DECOMPOSE | RmFlag.COMPOSE, RmFlag(0)
PLENTY = Resources(*[1 << 40] * 4)

# DeepRecSys' configurations, and the lookups of a sample
MODELS = {
    "rmc1": (Graph(dense=128, bottom=chain(128, 64, 32), dims=(32,) * 8, top=chain(288, 256, 64, 1)), 640),
    "rmc2": (Graph(dense=256, bottom=chain(256, 128, 64), dims=(64,) * 32, top=chain(2112, 128, 64, 1)), 3840),
    "rmc3": (Graph(dense=2560, bottom=chain(2560, 1024, 256, 32), dims=(32,) * 10, top=chain(352, 512, 256, 1)), 200),
    "ncf": (Graph(dense=0, dims=(64,) * 4, top=chain(256, 256, 256, 128, 64, 64)), 4),
    "wnd": (Graph(dense=512, dims=(32,) * 27, top=chain(1376, 1024, 512, 256, 1)), 27),
}


def mapped(name: str, flags: RmFlag = MECHANISMS, **settings: Any) -> Mapping:
    """A model on the drive's own engine."""
    graph, lookups = MODELS[name]
    call = {key: settings.pop(key) for key in ("samples", "kernels", "fpga") if key in settings}
    demand = settings.pop("emb_ns", embedding_ns(RMSSD, graph.dims, lookups))
    return mapping(graph, replace(RMSSD.mlp, **settings), demand, flags, **call)


# ---- cycles and resources of a unit ----


def test_cycles_of_a_layer() -> None:
    """R C / (kr kc) II for a sample; a border costs a whole step."""
    unit = Unit("layer", TOP, 0, 352, 512)
    assert ENGINE.cycles(unit, Kernel(16, 8), 1, dram=False) == 352 * 512 // (16 * 8) * 8
    assert ENGINE.cycles(unit, Kernel(16, 8), 5, dram=False) == 5 * ENGINE.cycles(unit, Kernel(16, 8), 1, dram=False)
    assert ENGINE.cycles(Unit("odd", TOP, 0, 17, 9), Kernel(16, 8), 1, dram=False) == 4 * 8


def test_columns_share_a_tree() -> None:
    """II columns follow one another through one tree: up to there more columns take no more arithmetic."""
    unit = Unit("layer", TOP, 0, 256, 256)
    taken = [ENGINE.resources(unit, Kernel(16, kc), 1, dram=False).dsp for kc in (1, 8, 9, 16)]
    assert taken == [16 * 5, 16 * 5, 2 * 16 * 5, 2 * 16 * 5]


def test_memory_follows_words_and_width() -> None:
    """1024 words a BRAM36, two of them a cycle; a layer in DRAM keeps two blocks only."""
    assert [brams(1024, 1), brams(1025, 2), brams(10, 64)] == [1, 2, 32]
    unit = Unit("layer", TOP, 0, 1024, 1024)
    inside, outside = (ENGINE.resources(unit, Kernel(4, 8), 1, dram=dram).bram for dram in (False, True))
    assert inside > 1024 > 10 > outside


def test_dram_layers_reuse_what_they_fetched() -> None:
    """A block takes the longer of its fetch and of its use by the whole mini-batch: II_D >= II_B."""
    unit, kernel = Unit("layer", TOP, 0, 1024, 1024), Kernel(64, 16)
    blocks, fetch = 1024 * 1024 // (64 * 16), 4 * 64 * 16 * 200 // 12_800
    assert fetch == 64
    assert ENGINE.cycles(unit, kernel, 1, dram=True) == blocks * fetch
    assert ENGINE.cycles(unit, kernel, 8, dram=True) == blocks * fetch
    assert ENGINE.cycles(unit, kernel, 16, dram=True) == blocks * 16 * 8


# ---- decomposition, composition ----


def test_decomposition_splits_the_first_top_layer() -> None:
    """R C = Rb C + Re C: one part with the bottom, one behind the lookups, the rest in the top."""
    graph = MODELS["rmc1"][0]
    whole, split = (units(graph, decompose=on) for on in (False, True))
    assert [unit.stage for unit in whole] == [BOTTOM, BOTTOM, TOP, TOP, TOP]
    assert [unit.stage for unit in split] == [BOTTOM, BOTTOM, BOTTOM, EMBEDDING, TOP, TOP]
    assert [(unit.inputs, unit.outputs) for unit in split[2:4]] == [(32, 256), (256, 256)]
    assert sum(u.words for u in whole) == sum(u.words for u in split) == graph.weight_bytes // 4


def test_decomposition_of_dots() -> None:
    """Dot products need both sides: their part of the layer stays in the top, behind the interaction."""
    graph = Graph(dense=13, bottom=chain(13, 16), dims=(16,) * 4, interaction=Interaction.DOT, top=chain(26, 8, 1))
    parts = units(graph, decompose=True)
    assert [(unit.name, unit.stage) for unit in parts] == [
        ("bottom 0", BOTTOM),
        ("interaction", TOP),
        ("top 0, bottom's part", BOTTOM),
        ("top 0, sums' part", TOP),
        ("top 1", TOP),
    ]
    assert (parts[1].inputs, parts[1].outputs, parts[1].words) == (16, 10, 0)
    assert sum(unit.words for unit in parts) == graph.weight_bytes // 4


def test_decomposition_without_a_side() -> None:
    """Without dense features the whole layer is behind the lookups, without tables with the bottom."""
    assert [unit.stage for unit in units(MODELS["ncf"][0], decompose=True)] == [EMBEDDING, TOP, TOP, TOP, TOP]
    alone = Graph(dense=4, bottom=chain(4, 3), top=chain(3, 2))
    assert [unit.stage for unit in units(alone, decompose=True)] == [BOTTOM, BOTTOM]


def test_a_pair_takes_its_longer_half() -> None:
    """Composed neighbours take the maximum, uncomposed ones the sum; a third layer is on its own."""
    parts = [Unit(str(n), TOP, n, 64, size) for n, size in enumerate((64, 32, 16))]
    chosen = [(unit, Kernel(8, 8), False) for unit in parts]
    times = [ENGINE.cycles(unit, Kernel(8, 8), 2, dram=False) for unit in parts]
    assert ENGINE.stage_cycles(chosen, pairs([0, 1, 2], compose=True), 2) == max(times[:2]) + times[2]
    assert ENGINE.stage_cycles(chosen, pairs([0, 1, 2], compose=False), 2) == sum(times)


def test_composition_hides_the_sums_part() -> None:
    """Behind the lookups only the last table's part of the layer is left; uncomposed all of it."""
    for flags, left in ((MECHANISMS, 1 / 8), (MECHANISMS & ~RmFlag.COMPOSE, 1)):
        found = mapped("rmc1", flags)
        assert found.tail_ns[-1] == found.embedding_ns[-1] * left > 0


# ---- the search ----


def small(compose: bool, decompose: bool) -> list[Unit]:
    graph = Graph(dense=6, bottom=chain(6, 4, 3), dims=(2, 3), top=chain(8, 4, 2) if decompose else chain(8, 5))
    return units(graph, decompose=decompose)


@pytest.mark.parametrize("compose", [True, False])
@pytest.mark.parametrize("decompose", [True, False])
def test_search_finds_the_minimum(compose: bool, decompose: bool) -> None:
    """For every limit, mini-batch and placement: no kernels of a smaller sum keep to it, tried one by one."""
    parts = small(compose, decompose)
    places = {stage: in_stage(parts, stage) for stage in (BOTTOM, TOP, EMBEDDING)}
    for samples, dram in itertools.product((1, 4), (frozenset[int](), frozenset({0}), frozenset({0, 1}))):
        engine = ENGINE._replace(dram_bytes_per_us=400)
        search = Search(parts, engine, PLENTY, 0, compose=compose)
        for stage, own in places.items():
            ways = []
            for kernels in itertools.product(*(list(parts[place].kernels()) for place in own)):
                chosen = {p: (parts[p], kernel, p in dram) for p, kernel in zip(own, kernels, strict=True)}
                filled = [chosen.get(place, (unit, Kernel(1, 1), False)) for place, unit in enumerate(parts)]
                cycles = engine.stage_cycles(filled, pairs(own, compose=compose), samples)
                ways.append((cycles, sum(kernel.kr * kernel.kc for kernel in kernels)))
            found = search.frontier(stage, samples, dram)
            for limit in {cycles for cycles, _ in ways}:
                least = min(size for cycles, size in ways if cycles <= limit)
                assert min(point.size for point in found if point.cycles <= limit) == least


@pytest.mark.parametrize("name", MODELS)
def test_models_keep_up_with_the_lookups(name: str) -> None:
    """On the prototype's FPGA T_bot' <= T_emb' and T_top' <= T_emb' hold, with the smallest mini-batch that can."""
    found = mapped(name)
    times = found.stage_ns
    assert found.bound == "lookups"
    assert max(times["embedding"], times["bottom"], times["top"]) <= times["lookups"]
    assert found.resources.within(share_of("XCVU9P", RMSSD.mlp.share))
    if found.minibatch > 1:
        assert mapped(name, samples=found.minibatch // 2).bound != "lookups"


def test_batch_doubles_for_what_dram_holds() -> None:
    """RMC3's first layer does not fit the BRAM: its weights are fetched once for a mini-batch of 8."""
    found = mapped("rmc3")
    assert found.minibatch == 8
    assert [unit.placement for unit in found.layers].count(Placement.DRAM) == 1
    assert found.layers[0].placement == Placement.DRAM
    assert found.dram_traffic == 4 * (2560 + 1) * 1024
    assert mapped("rmc1").dram_bytes == mapped("rmc2").dram_bytes == 0


@pytest.mark.parametrize("name", MODELS)
def test_small_fpga_does_what_it_can(name: str) -> None:
    """Where the budget does not let the MLPs keep up, the fastest design within it."""
    found = mapped(name, fpga="XC7A200T")
    assert found.resources.within(share_of("XC7A200T", RMSSD.mlp.share))
    assert found.interval_ns >= 0.999 * mapped(name).interval_ns
    assert found.interval_ns <= mapped(name, UNIFORM, fpga="XC7A200T").interval_ns
    assert (found.bound == "lookups") == (name in ("rmc1", "rmc2"))


def test_search_saves() -> None:
    """On RMC3 the searched kernels take less of everything than uniform ones of the same speed."""
    searched, uniform = mapped("rmc3"), mapped("rmc3", UNIFORM)
    assert (searched.design, uniform.design) == ("searched", "uniform")
    assert searched.interval_ns == uniform.interval_ns
    assert len({unit.kernel for unit in uniform.units if min(unit.inputs, unit.outputs) >= 32}) == 1
    for name in ("lut", "ff", "bram", "dsp"):
        assert getattr(searched.resources, name) < 0.9 * getattr(uniform.resources, name)


def test_mechanisms_can_be_left_out() -> None:
    """Without composition or decomposition more arithmetic is needed for the same speed, or more time."""
    whole = mapped("wnd")
    for flag in (RmFlag.COMPOSE, RmFlag.DECOMPOSE):
        less = mapped("wnd", MECHANISMS & ~flag)
        assert less.resources.dsp > whole.resources.dsp
        assert less.interval_ns >= whole.interval_ns


def test_naive_is_one_kernel_after_another() -> None:
    """One kernel as wide as the DRAM's port, a sample at a time, nothing beside the lookups."""
    found = mapped("rmc3", NAIVE)
    graph = MODELS["rmc3"][0]
    assert (found.design, found.minibatch) == ("naive", 1)
    assert {unit.kernel for unit in found.units} == {Kernel(16, 8)}
    assert found.stage_ns["bottom"] == found.stage_ns["embedding"] == 0
    assert graph.macs / 16 * 5 <= found.stage_ns["top"] <= 1.01 * graph.macs / 16 * 5
    assert found.resources.dsp == 16 * 5
    assert mapped("rmc3", NAIVE, fpga="XC7A200T").resources.within(share_of("XC7A200T", RMSSD.mlp.share))


def test_tables_of_times() -> None:
    """A mini-batch of fewer samples takes no longer than a larger one, and none takes no time."""
    found = mapped("rmc3")
    for array in (found.embedding_ns, found.tail_ns, found.bottom_ns, found.top_ns):
        assert len(array) == found.minibatch + 1
        assert array[0] == 0
        assert (array[1:] >= array[:-1]).all()
    assert found.bottom_ns[1] >= 10_489_856 / 12_800 * 1000  # what is fetched is fetched for one sample as well


# ---- what is asked for, and what does not fit ----


def test_kernels_may_be_asked_for() -> None:
    """Each number that is not 0 is kept, with and without a search."""
    asked = [(4, 16), (0, 0), (0, 8), (8, 8), (2, 1)]
    for flags in (MECHANISMS, UNIFORM, NAIVE, RmFlag.SEARCH):
        for unit in mapped("rmc1", flags, kernels=asked).layers:
            kr, kc = asked[unit.layer]
            assert kr in (0, unit.kernel.kr)
            assert kc in (0, unit.kernel.kc)


def test_kernels_beyond_their_layer() -> None:
    """Refused, with the layer's size."""
    with pytest.raises(GraphError, match="kernel 129 x 1 of layer 0: the layer is 128 x 64"):
        mapped("rmc1", kernels=[(129, 1), *[(0, 0)] * 4])


@pytest.mark.parametrize("flags", [MECHANISMS, UNIFORM, NAIVE])
def test_beyond_the_budget(flags: RmFlag) -> None:
    """Kernels too large for the FPGA, or a share too small for any: what is taken, what there is, what to do."""
    with pytest.raises(BudgetExceeded, match=r"takes .* DSP, 75% of an XC7A200T are 100950 LUT.*mlp\.share"):
        mapped("rmc3", flags, kernels=[(256, 256), *[(0, 0)] * 5], fpga="XC7A200T")
    with pytest.raises(BudgetExceeded, match=r"0% of an XCVU9P"):
        mapped("rmc3", flags, share=0.001)


def test_beyond_the_dram() -> None:
    """Weights that fit neither BRAM nor DRAM: both sizes are named. In BRAM they need none."""
    with pytest.raises(DramExceeded, match=r"10489856 bytes of weights .* has 1048576 bytes.*mlp\.dram_bytes"):
        mapped("rmc3", dram_bytes=1 << 20)
    assert mapped("rmc1", dram_bytes=0).dram_bytes == 0


def test_without_lookups() -> None:
    """Without tables, or on flash that takes no time, the fastest design of the budget; without layers nothing."""
    fast = mapped("rmc1", emb_ns=0.0)
    assert fast.interval_ns < 0.01 * mapped("rmc1").interval_ns
    assert fast.resources.within(fast.budget)
    none = mapping(Graph(dense=0, dims=(4, 4)), RMSSD.mlp, 1000.0, MECHANISMS, samples=64)
    assert (none.minibatch, none.units, int(none.top_ns.max())) == (64, (), 0)


def test_describe_is_plain() -> None:
    """Reports take it as JSON."""
    for flags in (MECHANISMS, NAIVE):
        found = json.loads(json.dumps(mapped("rmc3", flags).describe()))
        assert found["kernels"][0]["placement"] == "DRAM"
        assert 0 < found["share_of_fpga"]["dsp"] < 1


# ---- lookups, knobs ----


@pytest.mark.parametrize(
    ("dies", "grain", "us"), [(1, False, 2270), (4, False, 568), (8, False, 284), (4, True, 960), (1, True, 3200)]
)
def test_lookups_of_rmc1(dies: int, grain: bool, us: int) -> None:
    """640 vectors of 128 bytes over 4 channels, by the published formula: bound by dies, or by channels."""
    flash = load("rmssd", **{"geometry.dies": dies, "capacity_bytes": 1 << 30})
    assert embedding_ns(flash, (32,) * 8, 640, page_grain=grain) / 1000 == pytest.approx(us, rel=0.002)


def test_lookup_engine_may_be_the_limit() -> None:
    """The translator and the adders are pipelined beside the flash, and bound it when they are slower."""
    assert vector_ns(load("rmssd", **{"lookup.translate_cycles": 1000}), 128, 32) == 5000
    assert vector_ns(load("rmssd", **{"lookup.sum_cycles": 1000}), 256, 64) == 10_000
    assert vector_ns(load("null"), 128, 32) == 0


OTHER = {
    "mlp.clock_mhz": 100,
    "mlp.fpga": "XC7A200T",
    "mlp.share": 0.1,
    "mlp.ii": 4,
    "mlp.dram_bytes": 1 << 20,
    "mlp.dram_bytes_per_us": 6_400,
}


@pytest.mark.parametrize("key", OTHER)
def test_every_knob_changes_a_figure(key: str) -> None:
    """Another value of this knob alone gives another mapping, or a refusal."""
    changed: dict[str, Any] = {key.removeprefix("mlp."): OTHER[key]}
    if key == "mlp.dram_bytes":
        with pytest.raises(DramExceeded):
            mapped("rmc3", **changed)
    else:
        assert mapped("rmc3", **changed).describe() != mapped("rmc3").describe()


def test_every_knob_is_tried() -> None:
    """The table above has all knobs of the MLP engine."""
    assert {key for key in KNOBS if key.startswith("mlp.")} == set(OTHER)
