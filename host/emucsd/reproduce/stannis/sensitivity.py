"""What the speed-up hangs on: each thing that is published nowhere, changed by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emucsd.reproduce.stannis import published as paper
from emucsd.reproduce.stannis.points import Tuned, knee
from emucsd.stannis.fleet import profiles
from emucsd.stannis.fleet.fabric import Links
from emucsd.stannis.fleet.training import Fleet

_BENDS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24)


def sensitivity(tuned: Mapping[str, Tuned], steps: int, seed: int) -> list[dict[str, Any]]:
    """Speed-up of every network with 24 CSDs, and where the all-reduce's time bends, for each change."""
    links = Links.load()
    changes: dict[str, dict[str, Any]] = {
        "nothing": {},
        "engines' ends of the tunnel twice as fast": {"links": replace(links, drive_rate=2 * links.drive_rate)},
        "engines' ends of the tunnel half as fast": {"links": replace(links, drive_rate=links.drive_rate / 2)},
        "latency of a hop, four times": {"links": replace(links, drive_latency=4 * links.drive_latency)},
        "the host's processes half as fast": {"links": replace(links, host_rate=links.host_rate / 2)},
        "no jitter": {"jitter": 0.0},
        "three times the jitter": {"jitter": 3 * profiles.values()["jitter"]},
        "a group does not slow its CSDs down": {"group_slowdown": 1.0},
        "all-reduce by a tree": {"algorithm": "tree"},
        "all-reduce over the host (hierarchical)": {"algorithm": "hierarchical"},
    }
    return [{"what": what, **_row(tuned, change, steps, seed)} for what, change in changes.items()]


def _row(tuned: Mapping[str, Tuned], change: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    speedups = {}
    for name, batches in tuned.items():
        fleet = Fleet.of(profiles.network(name), [paper.CSDS], **change)
        run = fleet.train(fleet.batches(batches.host, batches.newport), steps=steps, seed=seed)
        speedups[name] = run.rate / batches.rates[1]
    network = profiles.network("mobilenet_v2")
    bends = {csds: Fleet.of(network, [csds], **change).reduce_seconds() for csds in _BENDS}
    return {"speedups": speedups, "converges": knee(bends)}
