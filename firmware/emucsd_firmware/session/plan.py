"""What a session takes from its mapping onto the MLP engine: mini-batch, stage times, and what RM_INFO tells of it."""

from __future__ import annotations

from collections.abc import Sequence

from emucsd_firmware.mlp.demand import vector_ns
from emucsd_firmware.mlp.graph import Graph
from emucsd_firmware.mlp.mapping import Mapping, mapping
from emucsd_firmware.profile import Profile
from emucsd_wire.rm import Budget, RmFlag, RmLayer, RmLayerInfo, RmModel


def lookups_ns(profile: Profile, model: RmModel, graph: Graph, row_bytes: Sequence[int]) -> float:
    """What a sample's lookups are expected to take, spread evenly over the tables.

    :param row_bytes: of each table, in flash
    """
    each = model.lookups / len(graph.dims)
    whole = bool(model.flags & RmFlag.PAGE_GRAIN)
    pairs = zip(row_bytes, graph.dims, strict=True)
    return sum(each * vector_ns(profile, nbytes, dim, page_grain=whole) for nbytes, dim in pairs)


def plan(
    profile: Profile, model: RmModel, graph: Graph, layers: Sequence[RmLayer], row_bytes: Sequence[int]
) -> Mapping:
    """A session's mapping. May take a second for a model of many layers.

    :raises GraphError: a kernel that is larger than its layer
    :raises BudgetExceeded: the kernels do not fit the FPGA
    :raises DramExceeded: weights do not fit the DRAM
    """
    return mapping(
        graph,
        profile.mlp,
        lookups_ns(profile, model, graph, row_bytes),
        RmFlag(model.flags),
        samples=model.samples,
        kernels=[(layer.kr, layer.kc) for layer in layers],
        fpga=None if model.budget == Budget.PROFILE else Budget(model.budget).name,
    )


def layer_infos(mapped: Mapping) -> tuple[RmLayerInfo, ...]:
    """The layers, for RM_INFO: a decomposed one is two."""
    return tuple(
        RmLayerInfo(
            inputs=unit.inputs,
            outputs=unit.outputs,
            kr=unit.kernel.kr,
            kc=unit.kernel.kc,
            group=int(unit.stage),
            placement=int(unit.placement),
            composed=int(unit.composed),
            reserved0=0,
            cycles=unit.cycles,
            reserved1=0,
        )
        for unit in mapped.layers
    )
