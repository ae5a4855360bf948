"""Beyond the paper's machine: more drives, several hosts, unequal private data, engines that slow down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emucsd.reproduce.stannis import published as paper
from emucsd.reproduce.stannis.points import Tell, Tuned
from emucsd.reproduce.stannis.settings import DRIVES_A_SERVER, NEWPORT_LIST, Settings
from emucsd.stannis.energy import PowerModel
from emucsd.stannis.fleet import profiles
from emucsd.stannis.fleet.allreduce import ALGORITHMS
from emucsd.stannis.fleet.fabric import Floats
from emucsd.stannis.fleet.training import Fleet, Trained
from emucsd.stannis.plan.balancer import balance
from emucsd.stannis.plan.plan import Engine, Plan, Pool
from emucsd.stannis.plan.retune import Retuner, retuned

NETWORKS = ("mobilenet_v2", "inception_v3")  # the smallest gradients for their computing, and the largest
Record = dict[str, Any]


def run_scale(tuned: dict[str, Tuned], power: PowerModel, settings: Settings, seed: int, tell: Tell) -> Record:
    """All of it, as JSON has it."""
    tell("several hosts", 0.0)
    hosts = [
        _point(tuned[name], [DRIVES_A_SERVER] * servers, algorithm, settings, seed)
        for servers in settings.servers
        for name in NETWORKS
        for algorithm in ALGORITHMS
    ]
    tell("more drives in one host", 0.5)
    one = [
        _point(tuned["mobilenet_v2"], [drives], algorithm, settings, seed)
        for drives in settings.in_one
        for algorithm in ALGORITHMS
    ]
    tell("unequal private data", 0.7)
    unequal = [imbalance(tuned["mobilenet_v2"], skew, settings, seed) for skew in settings.imbalance]
    for row in unequal:
        row["epoch_over_even"] = row["epoch_seconds"] / unequal[0]["epoch_seconds"]
    tell("engines that slow down", 0.75)
    slowed = [_slowed(case, slower, tuned["mobilenet_v2"], power, settings, seed) for case, slower in _cases().items()]
    said = _said(hosts, one, unequal, slowed)
    return {"hosts": hosts, "one_host": one, "imbalance": unequal, "retuning": slowed, "said": said}


def _said(
    hosts: Sequence[Record], one: Sequence[Record], unequal: Sequence[Record], slowed: Sequence[Record]
) -> list[str]:
    """What these figures say, in sentences."""
    most = max(row["drives"] for row in hosts)
    large = [row for row in hosts if row["drives"] == most]
    told = "; ".join(
        f"{profiles.network(name).title} "
        + ", ".join(
            f"{row['efficiency']:.0%} by {row['algorithm']} ({row['bound_by']})"
            for row in large
            if row["network"] == name
        )
        for name in NETWORKS
    )
    full = [row["drives"] for row in one if row["algorithm"] == "ring" and row["bound_by"] == "hosts"]
    network = max(row["link_seconds"]["network"] / row["sync_seconds"] for row in hosts)
    free = [row for row in unequal if row["epoch_over_even"] < 1.01]
    worst, best = unequal[-1], max(slowed, key=lambda row: row["gain"])
    return [
        f"With {most:,} drives this share of all engines' rates is left, and in brackets what the all-reduce waits "
        f"for: {told}.",
        f"A host's processes are what saturates first: with {min(full) if full else 'still more'} "
        "drives of one host they take longer than a drive's own tunnel (ring). The network between hosts takes at most "
        f"{network:.0%} of an all-reduce.",
        f"One drive may hold {free[-1]['skew']:g} times the mean of private images at no cost. With {worst['skew']:g} "
        f"times an epoch takes {worst['epoch_over_even']:.2f} times as long.",
        f"Retuning: {best['case']}: {best['gain']:.2f} times the speed, {best['energy_gain']:.2f} times less energy an "
        f"image, {best['steps_until']} steps after it began.",
    ]


# -- more drives, more hosts


def _point(tuned: Tuned, servers: Sequence[int], algorithm: Any, settings: Settings, seed: int) -> Record:
    fleet = Fleet.of(profiles.network(tuned.network), servers, algorithm)
    batches = fleet.batches(tuned.host, tuned.newport)
    run = fleet.train(batches, steps=settings.large_steps, seed=seed)
    alone = len(servers) * tuned.rates[1] + sum(servers) * tuned.rates[0]
    return {
        "network": tuned.network,
        "algorithm": algorithm,
        "servers": len(servers),
        "drives": sum(servers),
        "rate": run.rate,
        "efficiency": run.rate / alone,
        "step_seconds": run.step,
        "sync_seconds": run.sync_seconds,
        **_bound(fleet, run),
    }


def _bound(fleet: Fleet, run: Trained) -> Record:
    """What a step's bytes take at least on each kind of link, and which of them decides; else it is the rounds."""
    links = fleet.links
    parts = {
        "drives": float(run.tunnel_bytes.max()) / links.drive_rate,
        "hosts": float(run.host_bytes.max()) / links.host_rate,
        "network": float(run.nic_bytes.max()) / links.nic_rate,
    }
    most = max(parts, key=lambda kind: parts[kind])
    bound = most if parts[most] > 0.5 * run.sync_seconds else "latency"
    return {"link_seconds": parts, "bound_by": bound}


# -- private data


def _engines(tuned: Tuned, drives: int, slowdown: float) -> list[Engine]:
    """As the planner knows them: in a group, each drive's step takes longer than alone."""
    network = profiles.network(tuned.network)
    newport, host = profiles.newport(network), profiles.host(network)
    curve = tuple((batch, slowdown * newport.seconds(batch)) for batch in NEWPORT_LIST)
    hosts = tuple((batch, host.seconds(batch)) for batch in (1, 16, 64, 128, 256, tuned.host, 2 * tuned.host))
    seconds = slowdown * tuned.seconds[0]
    nodes = [Engine("host", tuned.host, tuned.rates[1], tuned.seconds[1], host.largest_batch, hosts)]
    return nodes + [
        Engine(f"isp{n}", tuned.newport, tuned.newport / seconds, seconds, newport.largest_batch, curve)
        for n in range(drives)
    ]


def _pools(skew: float, drives: int) -> list[Pool]:
    """The paper's 72,000 public images, and its 12,000 private ones of which the first drive holds ``skew`` shares."""
    nodes = ["host", *(f"isp{number}" for number in range(drives))]
    size = int(profiles.values()["image_bytes"])
    most = round(skew * paper.PRIVATE / drives)
    others = (paper.PRIVATE - most) / (drives - 1)
    ends = np.round(np.cumsum([float(most), *[others] * (drives - 1)])).astype(int)
    counts = np.diff(np.concatenate(([0], ends)))
    public = Pool("public", False, paper.PUBLIC, size, dict.fromkeys(nodes, "/shared/public"))
    return [public] + [
        Pool(f"private{number}", True, int(count), size, {f"isp{number}": "ns:2"})
        for number, count in enumerate(counts)
    ]


def imbalance(tuned: Tuned, skew: float, settings: Settings, seed: int) -> Record:
    """An epoch where one drive holds so many times the mean of private images."""
    fleet = Fleet.of(profiles.network(tuned.network), [DRIVES_A_SERVER])
    engines = _engines(tuned, DRIVES_A_SERVER, fleet.group_slowdown)
    plan = balance(engines, _pools(skew, DRIVES_A_SERVER), seed=seed)
    share = {one.node: one for one in plan.shares}
    batches = [share[one.node].batch if one.node in share else 0 for one in engines]
    run = fleet.train(batches, steps=settings.large_steps, seed=seed)
    return {
        "skew": skew,
        "fullest": round(skew * paper.PRIVATE / DRIVES_A_SERVER),
        "strategy": plan.strategy,
        "steps": plan.steps,
        "step_seconds": run.step,
        "epoch_seconds": plan.steps * run.step,
        "unique_rate": plan.unique / (plan.steps * run.step),
        "repeats": plan.samples - plan.unique,
        "why": plan.why,
    }


# -- engines that slow down


def _cases() -> dict[str, Floats]:
    """Factors on each rank's computing."""

    def slower(host: float = 1.0, drives: int = 0, by: float = 1.0) -> Floats:
        factors = np.ones(1 + DRIVES_A_SERVER)
        factors[0] = host
        factors[1 : 1 + drives] = by
        return factors

    return {
        "one CSD at half its speed": slower(drives=1, by=2.0),
        "six CSDs at a quarter": slower(drives=6, by=4.0),
        "all CSDs at half": slower(drives=DRIVES_A_SERVER, by=2.0),
        "the host at half": slower(host=2.0),
        "the host at a quarter": slower(host=4.0),
    }


def _slowed(case: str, slower: Floats, tuned: Tuned, power: PowerModel, settings: Settings, seed: int) -> Record:
    """A run in which engines are slowed after its first third: with the batches as they were, and with the retuner."""
    fleet = Fleet.of(profiles.network(tuned.network), [DRIVES_A_SERVER])
    engines = _engines(tuned, DRIVES_A_SERVER, fleet.group_slowdown)
    plan = balance(engines, _pools(1.0, DRIVES_A_SERVER), seed=seed)
    fixed = fleet.train(plan.batches, steps=settings.large_steps * 2, seed=seed, slower=slower)
    followed, at = _follow(fleet, plan, slower, settings, seed)
    run = fleet.train(followed.batches, steps=settings.large_steps * 2, seed=seed, slower=slower)
    alone = tuned.rates[1] / float(slower[0])
    joules = [power.watts(DRIVES_A_SERVER, one.use) / one.rate for one in (fixed, run)]
    return {
        "case": case,
        "rate_fixed": fixed.rate,
        "rate": run.rate,
        "gain": run.rate / fixed.rate,
        "over_host": run.rate / alone,
        "steps_until": at,
        "changes": followed.generation - plan.generation,
        "batches": [followed.batches[0], min(followed.batches[1:]), max(followed.batches[1:])],
        "global_batch": followed.global_batch,
        "joules_fixed": joules[0],
        "joules": joules[1],
        "energy_gain": joules[0] / joules[1],
        "energy_over_host": power.watts(0) / alone / joules[1],
    }


def _follow(fleet: Fleet, plan: Plan, slower: Floats, settings: Settings, seed: int) -> tuple[Plan, int | None]:
    """Step by step under the retuner's eyes. :returns: the last plan; steps from the slowdown to the first change"""
    retuner = Retuner(plan)
    begins = settings.slowed_steps // 3
    first = None
    for step in range(settings.slowed_steps):
        factors = slower if step >= begins else np.ones_like(slower)
        run = fleet.train(plan.batches, steps=1, seed=seed + step, slower=factors)
        change = retuner.observe([float(one) for one in run.computing], plan.batches)
        if change is not None:
            plan = retuned(plan, change, step=min(step, plan.steps - 1))
            retuner.follow(plan)
            first = step - begins if first is None else first
    return plan, first
