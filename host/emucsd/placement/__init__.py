"""Placement of a table's rows, learnt from a trace: docs/traces.md."""

from emucsd.placement.coaccess import by_coaccess
from emucsd.placement.order import Order, Placement, PlacementError, by_frequency, by_spread, heat, pages_read
from emucsd.placement.placed import Placed

__all__ = [
    "Order",
    "Placed",
    "Placement",
    "PlacementError",
    "by_coaccess",
    "by_frequency",
    "by_spread",
    "heat",
    "pages_read",
]
