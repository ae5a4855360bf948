"""Points of Figures 6 and 7, and the energies of Table II, out of steps in virtual time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from emucsd.process import environment
from emucsd.reproduce.stannis.settings import NEWPORT_LIST, Settings
from emucsd.stannis.energy import PowerModel, Use, calibrate
from emucsd.stannis.fleet import profiles
from emucsd.stannis.fleet.training import Flash, Fleet, Trained
from emucsd.stannis.plan.tuner import tune
from emucsd.stannis.plan.tuning import Tuning

Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Tuned:
    """What the tuner gave for a network, in virtual time.

    :ivar rates: images/s alone at these batches: Newport, host
    :ivar seconds: of a step alone
    """

    network: str
    newport: int
    host: int
    rates: tuple[float, float]
    seconds: tuple[float, float]
    trials: int
    fits: tuple[int, int]  # the largest batches that the memories take


@dataclass(frozen=True)
class Point:
    """A network on the host and so many CSDs.

    :ivar rate: images/s, all of them
    :ivar speedup: over the host alone
    :ivar slowdown: of one CSD: share of its rate alone that it loses
    :ivar sync_seconds: of a step, from the last rank's gradients to the last rank's sum
    :ivar reduce_seconds: an all-reduce by itself, all ranks ready at the same moment
    :ivar waiting: shares of the time: host, CSDs (mean)
    :ivar loading_share: of a CSD's step, that its samples take to be read, hidden behind computing
    """

    network: str
    csds: int
    rate: float
    speedup: float
    csd_rate: float
    slowdown: float
    step_seconds: float
    sync_seconds: float
    reduce_seconds: float
    waiting: tuple[float, float]
    loading_share: float


@dataclass(frozen=True)
class Energy:
    """A column of Table II.

    :ivar flops_ratio: FLOPS per watt over the first column's, in a server without other drives
    """

    csds: int
    watts: float
    joules_per_image: float
    saving: float
    flops_ratio: float


def tune_networks() -> dict[str, tuple[Tuned, Tuning]]:
    """Algorithm 1 on every network's profiles."""
    found = {}
    for name, network in profiles.networks().items():
        newport, host = profiles.newport(network), profiles.host(network)
        tuning = tune(newport.bench, host.bench, batches=NEWPORT_LIST, tolerance=0.0)
        slow, fast = tuning.tuned["newport"], tuning.tuned["host"]
        tuned = Tuned(
            name,
            slow.batch,
            fast.batch,
            (slow.rate, fast.rate),
            (slow.seconds, fast.seconds),
            len(tuning.trials),
            (newport.largest_batch, host.largest_batch),
        )
        found[name] = (tuned, tuning)
    return found


def flash_seconds() -> Flash:
    """What a sample costs to read, one at a time, by the emulated drive's own profile."""
    argv = [sys.executable, "-m", "emucsd_firmware", "profile", "newport"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["settings"]
    known = {row["key"]: row["value"] for row in rows}
    size, page = profiles.values()["image_bytes"], known["geometry.page_bytes"]
    ns = known["nand.command_ns"] + known["nand.read_ns"] + known["nand.transfer_ns_per_4k"] * page / 4096
    link = known["link.delay_ns"] + size / known["link.bytes_per_us"] * 1e3 + known["front_end.command_ns"]
    return Flash(newport=ns * 1e-9, host=(ns + link) * 1e-9)  # a sample's two pages come from two dies, side by side


def measure(
    tuned: dict[str, Tuned], settings: Settings, seed: int, flash: Flash, tell: Tell
) -> tuple[list[Point], dict[int, Trained]]:
    """Every network with every number of CSDs. :returns: points; and MobileNetV2's steps by the number of CSDs"""
    points, trained = [], {}
    for number, (name, batches) in enumerate(tuned.items()):
        tell(profiles.network(name).title, number / len(tuned))
        for csds in settings.csds:
            fleet = Fleet.of(profiles.network(name), [csds], flash=flash)
            run = fleet.train(fleet.batches(batches.host, batches.newport), steps=settings.steps, seed=seed)
            points.append(_point(batches, csds, run, fleet.reduce_seconds()))
            if name == "mobilenet_v2":
                trained[csds] = run
    return points, trained


def _point(tuned: Tuned, csds: int, run: Trained, reduce_seconds: float) -> Point:
    csd_rate = run.rate_of(1) if csds else tuned.rates[0]
    return Point(
        network=tuned.network,
        csds=csds,
        rate=run.rate,
        speedup=run.rate / tuned.rates[1],
        csd_rate=csd_rate,
        slowdown=1 - csd_rate / tuned.rates[0],
        step_seconds=run.step,
        sync_seconds=run.sync_seconds,
        reduce_seconds=reduce_seconds,
        waiting=(float(run.waiting[0]), float(run.waiting[1:].mean()) if csds else 0.0),
        loading_share=float(run.loading[1:].mean() / run.seconds) if csds else 0.0,
    )


def of(points: Sequence[Point], network: str) -> dict[int, Point]:
    """A network's points by the number of CSDs."""
    return {point.csds: point for point in points if point.network == network}


def energies(trained: dict[int, Trained], csds: Sequence[int]) -> tuple[PowerModel, list[Energy]]:
    """Table II: the power model solved for with this run's rates, and what it gives at each number of CSDs."""
    alone, full = trained[0].rate, trained[max(trained)]
    power = calibrate(alone, full.rate, full.use)
    bare = alone / power.watts(0, others=False)
    rows = []
    for number in csds:
        run = trained[number]
        use = run.use if number else Use()
        watts = power.watts(number, use)
        flops = run.rate / power.watts(number, use, others=False) / bare
        joules = watts / run.rate
        rows.append(Energy(number, watts, joules, 1 - joules / (power.watts(0) / alone), flops))
    return power, rows


def knee(values: dict[int, float]) -> int:
    """Where a curve bends: the point that lies farthest above the line between its ends."""
    (first, low), *_, (last, high) = values.items()
    return max(values, key=lambda x: (values[x] - low) / (high - low) - (x - first) / (last - first))
