"""Training on a host and two engines of a tenth of its speed: together against each alone, and against equal batches.

Everything is pinned: the host's rank to one processor; drives, tunnel and engines to another. The figures are ratios
within one run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from emucsd.bench.environment import environment
from emucsd.bench.sync import sync_figures
from emucsd.errors import InvalidArgument
from emucsd.stannis.data.put import put
from emucsd.stannis.group.cluster import Cluster, Member, Place
from emucsd.stannis.launch.embedded import EmbeddedDrives, EngineOptions
from emucsd.stannis.launch.nodes import Node
from emucsd.stannis.launch.run import Run
from emucsd.stannis.launch.standing import Standing
from emucsd.stannis.spec import Spec

Tell = Callable[[str], None]
SHARE = 0.1  # of a processor, that each engine gets: it has one core
ENGINES = 2
FACTORY, ARGUMENTS = "emucsd.stannis.models:small", {"channels": 64}
TRIED = "128"  # batch of the engines: a step is to take seconds, for they run in bursts of some milliseconds
WARM_UP = 2  # steps that don't count
SIDE, SAMPLES, CLASSES = 32, 4000, 10  # of images that are made where none are given


def run_stannis_bench(*, data: str | None = None, steps: int = 8, seconds: float = 3.0, tell: Tell) -> dict[str, Any]:
    """All figures.

    :param data: real images of 32x32, as for ``emucsd train --data``; None: JPEGs made here
    :param steps: that are measured of each run
    :param seconds: of each run of iperf3
    :raises EmucsdError: engines can't be had
    :raises RunFailed: one of the runs failed
    """
    with tempfile.TemporaryDirectory(prefix="emucsd-") as name:
        folder = Path(name)
        figures = {"environment": environment(), **whole_figures(folder, data, steps, tell)}
        return {**figures, **sync_figures(folder, seconds, tell)}


def whole_figures(folder: Path, data: str | None, steps: int, tell: Tell) -> dict[str, Any]:
    """Tuned, each alone, all together, all together with equal batches: in this order, on the same drives."""
    host_cores, engine_cores = cores()
    samples = data or str(made_images(folder / "images.tar"))
    options = EngineOptions(SHARE, cores=1, processors=engine_cores)
    with EmbeddedDrives.make(ENGINES, folder, options, tell) as drives, contextlib.ExitStack() as stack:
        for drive in drives.drives:
            where = put(drive, samples)
        nodes = drives.nodes(host_cores)
        for node in nodes:
            stack.callback(node.close)
        bench = Together(nodes, drives, where.location, folder, steps, tell)
        plan = bench.tuned()
        batches = {share["node"]: share["batch"] for share in plan["shares"]}
        alone = {node.name: bench.rate(f"{node.name} alone", [node], batches) for node in nodes}
        whole = bench.rate("together", nodes, batches)
        equal = bench.rate("together, equal batches", nodes, batches, equal=True)
    total = sum(alone.values())
    engines = [rate for name, rate in alone.items() if name != nodes[0].name]
    return {
        "data": "given" if data else "made here",
        "host_cores": list(host_cores),
        "engine_cores": list(engine_cores),
        "cpu_share": SHARE,
        "batches": batches,
        "alone_images_per_s": alone,
        "speed_ratio": alone[nodes[0].name] / (sum(engines) / len(engines)),
        "whole_images_per_s": whole,
        "equal_images_per_s": equal,
        "whole_over_sum": whole / total,
        "whole_over_equal": whole / equal,
    }


def cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The host's processor, and that of everything else. :raises InvalidArgument: there is only one"""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise InvalidArgument(
            "this benchmark pins the host's rank and the drives' engines apart: it takes 2 processors"
        )
    return (found[0],), (found[1],)


class Together:
    """Runs on the same nodes.

    :param location: of the samples, at each engine
    """

    def __init__(
        self, nodes: Sequence[Node], drives: EmbeddedDrives, location: str, folder: Path, steps: int, tell: Tell
    ) -> None:
        self._nodes, self._drives, self._location = list(nodes), drives, location
        self._folder, self._steps, self._tell = folder, steps, tell
        self._runs = 0

    def tuned(self) -> dict[str, Any]:
        """Algorithm 1 on the real nodes. :returns: the plan"""
        self._tell("tuning")
        standing, _ = self._run(self._nodes, self._spec(), ["--dry-run", "--no-cache", "--batches", TRIED])
        return dict(standing.plans[-1])

    def rate(self, what: str, nodes: Sequence[Node], batches: dict[str, int], *, equal: bool = False) -> float:
        """Images/s of these nodes: of the median step, so that what else the computer does for a moment is left out."""
        self._tell(what)
        chosen = {node.name: batches[node.name] for node in nodes}
        spec = dataclasses.replace(
            self._spec(),
            tune=False,
            batches=chosen,
            global_batch=sum(chosen.values()),
            steps=self._steps + WARM_UP,
            epochs=1000,
        )
        _, steps = self._run(nodes, spec, ["--equal"] if equal else [])
        taken = [(step["total"], step["time"] - before["time"]) for before, step in pairwise(steps)]
        return float(statistics.median(total / seconds for total, seconds in taken[WARM_UP - 1 :]))

    def _spec(self) -> Spec:
        threads = {node.name: 1 for node in self._nodes}
        return Spec(FACTORY, {**ARGUMENTS, "num_classes": CLASSES}, lr=0.01, threads=threads, image=(3, SIDE, SIDE))

    def _run(self, nodes: Sequence[Node], spec: Spec, options: Sequence[str]) -> tuple[Standing, list[dict[str, Any]]]:
        self._runs += 1
        names = [node.name for node in nodes]
        host = self._nodes[0].name
        pool = Place("public", {name: f"{self._location}@0" if name == host else self._location for name in names})
        members = tuple(Member(node.name, engine=node.kind) for node in nodes)
        steps: list[dict[str, Any]] = []
        standing = Standing({node.name: node.kind for node in nodes}, dict.fromkeys(names, "host"))

        def heard(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                steps.append(event)

        run = Run(
            nodes,
            spec,
            Cluster(members, (pool,)),
            self._folder / f"run{self._runs}",
            standing,
            leader=self._nodes[0],
            options=options,
            tell=heard,
        )
        run.run()
        return standing, steps


def made_images(path: Path) -> Path:
    """A tar of JPEGs in class folders: each class a pattern of its own under noise."""
    from PIL import Image

    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (CLASSES, SIDE, SIDE, 3))
    with tarfile.open(path, "w") as shard:
        for number in range(SAMPLES):
            kind = number % CLASSES
            noisy = np.clip(patterns[kind] + random.normal(0, 48, patterns[kind].shape), 0, 255).astype(np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(noisy).save(encoded, "JPEG")
            member = tarfile.TarInfo(f"{kind}/{number:06}.jpg")
            member.size = encoded.tell()
            encoded.seek(0)
            shard.addfile(member, encoded)
    return path
