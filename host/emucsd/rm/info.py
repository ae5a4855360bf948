"""What a session says of itself: how it is mapped onto the engine, and what it has done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from emucsd_wire.rm import RM_INFO, RM_LAYER_INFO, Budget, LayerGroup, Placement, RmFlag, RmInfo, RmLayerInfo


class LayerMapping(NamedTuple):
    """A layer on the engine. A decomposed first top layer is two: ``embedding``, over the sums, and ``top``.

    :ivar kr: inputs at a time; ``kc``: outputs at a time
    :ivar placement: of its weights: ``bram`` or ``dram``
    :ivar composed: its time overlaps with its neighbour's
    :ivar cycles: for a mini-batch
    """

    group: str
    inputs: int
    outputs: int
    kr: int
    kc: int
    placement: str
    composed: bool
    cycles: int


class Resource(NamedTuple):
    """Of the FPGA, or of its memory."""

    used: int
    total: int


@dataclass(frozen=True)
class SessionInfo:
    """A session, as RM_INFO tells it.

    :ivar mechanisms: those that are on: decompose, compose, search, pipeline; page_grain, no_mlp
    :ivar minibatch: samples that go through the stages together
    :ivar embedding_ns: of a mini-batch in the stage, after its lookups; ``bottom_ns`` and ``top_ns`` likewise
    :ivar resources: lut, ff, bram (36 Kbit blocks), dsp; ``dram`` in bytes
    :ivar dram_traffic: bytes of weights read for a mini-batch
    :ivar accepted: batches; ``ready`` of them ended, ``failed`` of those not well; ``inferred`` samples did
    :ivar stall_ns: that the top layers waited with work to come
    """

    mechanisms: tuple[str, ...]
    fpga: str
    clock_mhz: int
    ii: int
    depth: int
    max_samples: int
    minibatch: int
    embedding_ns: int
    bottom_ns: int
    top_ns: int
    layers: tuple[LayerMapping, ...]
    resources: dict[str, Resource]
    dram_traffic: int
    weight_bytes: int
    outputs: int
    in_flight: int
    accepted: int
    ready: int
    failed: int
    inferred: int
    lookups: int
    embedding_busy_ns: int
    bottom_busy_ns: int
    top_busy_ns: int
    stall_ns: int

    @classmethod
    def unpack(cls, data: bytes) -> SessionInfo:
        """From RM_INFO's answer."""
        told = RM_INFO.unpack(data[: RM_INFO.size])
        size = RM_LAYER_INFO.size
        starts = range(RM_INFO.size, RM_INFO.size + told.layers * size, size)
        layers = tuple(_layer(RM_LAYER_INFO.unpack(data[at : at + size])) for at in starts)
        return cls(
            mechanisms=tuple(str(flag.name).lower() for flag in RmFlag if told.flags & flag),
            fpga=Budget(told.budget).name,
            max_samples=told.samples,
            outputs=told.out,
            layers=layers,
            resources=_resources(told),
            weight_bytes=told.weights,
            **{name: getattr(told, name) for name in _SAME},
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = asdict(self)
        plain["layers"] = [layer._asdict() for layer in self.layers]
        plain["resources"] = {name: resource._asdict() for name, resource in self.resources.items()}
        return plain


_SAME = (
    "clock_mhz", "ii", "depth", "minibatch", "embedding_ns", "bottom_ns", "top_ns", "dram_traffic", "in_flight",
    "accepted", "ready", "failed", "inferred", "lookups", "embedding_busy_ns", "bottom_busy_ns", "top_busy_ns",
    "stall_ns",
)  # fmt: skip


def _layer(told: RmLayerInfo) -> LayerMapping:
    group, placement = LayerGroup(told.group).name.lower(), Placement(told.placement).name.lower()
    return LayerMapping(group, told.inputs, told.outputs, told.kr, told.kc, placement, bool(told.composed), told.cycles)


def _resources(told: RmInfo) -> dict[str, Resource]:
    names = ("lut", "ff", "bram", "dsp", "dram")
    return {name: Resource(getattr(told, name), getattr(told, f"{name}_total")) for name in names}
