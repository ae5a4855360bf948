"""What a session takes from its mapping onto the MLP engine: mini-batch, stage times, and what RM_INFO tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd_firmware.errors import GraphError
from emucsd_firmware.mlp.budget import Resources
from emucsd_firmware.mlp.graph import Graph
from emucsd_firmware.profile import Profile
from emucsd_wire.rm import RmFlag, RmLayer, RmLayerInfo, RmModel

Times = NDArray[np.int64]


class Plan(NamedTuple):
    """Times are int64[minibatch + 1] in ns: a stage's for that many samples, 0 for none."""

    minibatch: int
    embedding: Times
    bottom: Times
    top: Times
    layers: tuple[RmLayerInfo, ...]
    clock_mhz: int
    ii: int
    fpga: str
    used: Resources
    total: Resources
    dram: int  # bytes of weights that lie there
    dram_total: int
    traffic: int  # bytes of weights read from there for a whole mini-batch


def no_mlp() -> Plan:
    """Of a session that has no layers: sums go out one sample at a time, as soon as they are there."""
    nothing = np.zeros(2, np.int64)
    return Plan(1, nothing, nothing, nothing, (), 0, 0, "", Resources(), Resources(), 0, 0, 0)


def plan(profile: Profile, model: RmModel, graph: Graph, layers: Sequence[RmLayer], row_bytes: Sequence[int]) -> Plan:
    """A session's plan.

    :param row_bytes: of each table, in flash
    :raises GraphError: the model has layers, whose mapping this drive does not make yet
    """
    if not model.flags & RmFlag.NO_MLP:
        raise GraphError("layers are not mapped yet; open the session with NO_MLP")
    return no_mlp()
