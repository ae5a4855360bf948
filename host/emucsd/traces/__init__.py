"""Inputs of recommendation models, in the formats that people have, and made ones: docs/traces.md."""

from emucsd.traces.bags import Bags, Lookups, bags_of, sums_in_order
from emucsd.traces.criteo import CRITEO_ROWS, load_criteo
from emucsd.traces.data import AMAZON_FILE, CRITEO_FILE, find_data
from emucsd.traces.errors import TraceError, TraceFormat, TraceNeedsTorch
from emucsd.traces.interactions import load_amazon, load_ratings
from emucsd.traces.locality import (
    LOCALITIES,
    Distances,
    Distribution,
    load_distribution,
    make_from_distributions,
    make_locality,
    recssd_distances,
    save_distribution,
)
from emucsd.traces.made import (
    AMAZON,
    AMAZON_ITEMS,
    AMAZON_USERS,
    CRITEO,
    Zipf,
    draw,
    make_amazon,
    make_criteo,
    make_uniform,
)
from emucsd.traces.meta import load_meta
from emucsd.traces.stack import LruStack
from emucsd.traces.trace import Batch, Recorded, TableShape, Trace

__all__ = [
    "AMAZON",
    "AMAZON_FILE",
    "AMAZON_ITEMS",
    "AMAZON_USERS",
    "CRITEO",
    "CRITEO_FILE",
    "CRITEO_ROWS",
    "LOCALITIES",
    "Bags",
    "Batch",
    "Distances",
    "Distribution",
    "Lookups",
    "LruStack",
    "Recorded",
    "TableShape",
    "Trace",
    "TraceError",
    "TraceFormat",
    "TraceNeedsTorch",
    "Zipf",
    "bags_of",
    "draw",
    "find_data",
    "load_amazon",
    "load_criteo",
    "load_distribution",
    "load_meta",
    "load_ratings",
    "make_amazon",
    "make_criteo",
    "make_from_distributions",
    "make_locality",
    "make_uniform",
    "recssd_distances",
    "save_distribution",
    "sums_in_order",
]
