"""What the host computes itself where the drive does not: layers and interaction, and what they take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emucsd.baselines.base import Baseline
from emucsd.baselines.costs import Costs
from emucsd.rm.model import Model
from emucsd.rm.reference import interact, run_layers
from emucsd.table import Rows
from emucsd.traces import Batch

_ACTIVATED = 2  # operators of a layer: product and activation


def mlp_ns(costs: Costs, model: Model, samples: int) -> tuple[float, float]:
    """Bottom layers, interaction and top layers of a batch on the host: the framework's time, and the arithmetic."""
    pairs = model.interaction_width - model.bottom_width if model.interaction == "dot" else 0
    arithmetic = sum(costs.layer(samples, layer.macs, 4 * layer.parameters) for layer in model.layers)
    return (
        (_ACTIVATED * len(model.layers) + 1) * costs.operator,
        arithmetic + costs.layer(samples, pairs * model.bottom_width, 0),
    )


def mlp(baseline: Baseline, dense: Rows | None, sums: Rows) -> Rows:
    """FP32[samples, outputs] from dense features and FP32[samples, tables x dim]."""
    model, layers = baseline.model, baseline.weights.layers
    inputs = np.zeros((len(sums), 0), np.float32) if dense is None else dense
    bottom = run_layers(model, 0, layers[: len(model.bottom)], inputs)
    parts = np.split(sums, np.cumsum([table.dim for table in model.tables])[:-1], axis=1)
    return run_layers(model, len(model.bottom), layers[len(model.bottom) :], interact(model, bottom, parts))


def side_by_side(sums: Sequence[Rows]) -> Rows:
    """Sums of table 0, then of table 1 ... FP32[samples, tables x dim], in memory of their own."""
    return np.concatenate(sums, axis=1)


class HostMlp(Baseline):
    """A baseline whose layers run on the host, after the sums.

    :ivar sls_ns: of all that ``infer`` took: the lookup operators alone
    """

    def __init__(self, costs: Costs | None = None) -> None:
        super().__init__(costs)
        self.sls_ns = 0

    def infer(self, batch: Batch) -> Rows:
        began = self.drive.clock.now
        sums = self.sls(batch)
        self.sls_ns += self.drive.clock.now - began
        framework, layers = mlp_ns(self.costs, self.model, batch.samples)
        self.spend_all({"framework": framework, "layers": layers})
        return mlp(self, batch.dense, sums)
