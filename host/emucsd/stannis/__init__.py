"""Stannis: training spread over a host and the engines inside its drives, by unequal batches.

    from emucsd.stannis import Engine, Pool, balance

    engines = [Engine("host", 315, 31.05), Engine("csd0", 25, 3.08)]
    pools = [Pool("public", False, 72_000, 12_000, {"host": "/data/train", "csd0": "/data/train"}),
             Pool("csd0", True, 500, 12_000, {"csd0": "ns:2"})]
    print(balance(engines, pools).table())

Names are loaded when they are used. ``plan`` needs NumPy, ``training`` and ``models`` torch, the rest neither.
Source: HeydariGorji et al., "STANNIS: Low-Power Acceleration of Deep Neural Network Training Using Computational
Storage Devices", 2020.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emucsd.stannis.errors import StannisError
    from emucsd.stannis.plan.balancer import balance
    from emucsd.stannis.plan.measured import Measured
    from emucsd.stannis.plan.order import order, union
    from emucsd.stannis.plan.plan import Engine, Plan, Pool, Share
    from emucsd.stannis.plan.retune import Retuner
    from emucsd.stannis.plan.tuner import tune
    from emucsd.stannis.spec import Spec

__all__ = [
    "Engine",
    "Measured",
    "Plan",
    "Pool",
    "Retuner",
    "Share",
    "Spec",
    "StannisError",
    "balance",
    "order",
    "tune",
    "union",
]

_HOMES = {
    "Engine": "plan.plan",
    "Measured": "plan.measured",
    "Plan": "plan.plan",
    "Pool": "plan.plan",
    "Retuner": "plan.retune",
    "Share": "plan.plan",
    "Spec": "spec",
    "StannisError": "errors",
    "balance": "plan.balancer",
    "order": "plan.order",
    "tune": "plan.tuner",
    "union": "plan.order",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
