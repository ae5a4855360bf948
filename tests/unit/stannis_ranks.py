"""Ranks to train with in tests: one process as the reference, and real processes that meet over Gloo.

Data, models and plans come out of names and seeds alone, so that nothing has to be sent.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from emucsd.stannis.errors import NonFinite
from emucsd.stannis.group.retuning import Follower
from emucsd.stannis.plan.balancer import balance
from emucsd.stannis.plan.order import order, union
from emucsd.stannis.plan.plan import Engine, Plan, Pool, Share
from emucsd.stannis.spec import Spec
from emucsd.stannis.training import batchnorm
from emucsd.stannis.training.collective import Collective, Pending
from emucsd.stannis.training.errors import LayoutDiffers
from emucsd.stannis.training.evaluate import part
from emucsd.stannis.training.factory import build_loss, build_model, build_optimizer
from emucsd.stannis.training.gradients import Flag, Gradients
from emucsd.stannis.training.report import StepReport
from emucsd.stannis.training.schedule import learning_rate
from emucsd.stannis.training.trainer import Hooks, Trainer

ROOT = Path(__file__).resolve().parents[2]
NETS = ROOT / "tests" / "unit" / "stannis_nets.py"
SIDE, CLASSES, SAMPLES, STEPS = 8, 4, 59, 6
SECONDS = 60.0
BUCKET = 1000  # bytes: several, of which the first leave during backward
START = "from emucsd.stannis import torchstart; torchstart.start(); from tests.unit import stannis_ranks as s; s.main()"


def spec(net: str, **more: Any) -> Spec:
    """A run of a small net, with all that makes a step depend on more than its own gradient."""
    about: dict[str, Any] = {
        "lr": 0.05,
        "base_batch": 4,
        "warmup_epochs": 1.0,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "epochs": 2,
        "seed": 5,
        "image": (3, SIDE, SIDE),
    }
    return Spec(f"{NETS}:{net}", **about | more)


def plan(*samples: int) -> Plan:
    """Ranks with so many samples of an epoch; the last one of three has none in some of its steps."""
    shares = [
        Share(rank, f"node{rank}", max(1, -(-count // STEPS)), {"public": count}) for rank, count in enumerate(samples)
    ]
    pool = Pool("public", False, sum(samples), 1, {share.node: "here" for share in shares})
    return Plan(seed=3, generation=0, steps=STEPS, shares=tuple(shares), pools=(pool,))


def plans(world: int) -> Plan:
    """The plans of these tests: unequal, and with three ranks one that is often without a sample."""
    return {1: plan(SAMPLES), 2: plan(41, 18), 3: plan(37, 19, 3)}[world]


def data(bad: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """All samples; with ``bad`` one of them has an infinite pixel."""
    chance = np.random.default_rng(11)
    labels = chance.integers(0, CLASSES, SAMPLES)
    images = chance.standard_normal((SAMPLES, 3, SIDE, SIDE)) + labels[:, None, None, None] * 0.2
    if bad is not None:
        images[bad, 0, 0, 0] = np.inf
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)


def batches(indices: Iterable[Sequence[tuple[str, int]]], bad: int | None = None) -> Iterator[SimpleNamespace]:
    """What a loader would give."""
    images, labels = data(bad)
    for batch in indices:
        chosen = [index for _, index in batch]
        yield SimpleNamespace(images=images[chosen], labels=labels[chosen])


def loaders(plan: Plan, rank: int, epoch: int, first_step: int) -> Iterable[SimpleNamespace]:
    """A rank's batches of an epoch."""
    return batches(order(plan, epoch, rank, first_step))


def reference(about: Spec, plan: Plan) -> tuple[torch.nn.Module, list[float]]:
    """The same run by one process on the union, written down as one would without this package. :return: losses too"""
    model, loss = build_model(about).train(), build_loss(about)
    optimizer = build_optimizer(about, model)
    ratios = [group["lr"] / about.lr for group in optimizer.param_groups]
    losses = []
    steps = [(epoch, step, batch) for epoch in range(about.epochs) for step, batch in enumerate(union(plan, epoch))]
    for (epoch, step, _), batch in zip(steps, batches(chosen for _, _, chosen in steps), strict=True):
        lr = learning_rate(about, plan.global_batch, epoch + step / plan.steps, about.epochs)
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = lr * ratio
        optimizer.zero_grad(set_to_none=True)
        value = loss(model(batch.images), batch.labels)
        value.backward()
        if about.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), about.clip)
        optimizer.step()
        losses.append(float(value.detach()))
    return model, losses


def difference(state: dict[str, torch.Tensor], model: torch.nn.Module) -> float:
    """How far apart two models are: of all their tensors the largest distance, relative to the tensor's own length."""
    return max(
        float((state[name].double() - mine.double()).norm() / mine.double().norm().clamp(min=1e-12))
        for name, mine in model.state_dict().items()
        if mine.is_floating_point()
    )


# -- processes -------------------------------------------------------------------------------------------------------


class Gloo:
    """A ``Collective`` of processes that share a file."""

    def __init__(self, store: Path, rank: int, size: int) -> None:
        distributed = torch.distributed
        self.rank, self.size = rank, size
        self._group = distributed.ProcessGroupGloo(
            distributed.FileStore(str(store), size), rank, size, datetime.timedelta(seconds=SECONDS)
        )

    def begin(self, tensor: torch.Tensor) -> Pending:
        return self._group.allreduce([tensor])  # type: ignore[no-any-return]

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self._group.allreduce([tensor]).wait()

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        options = torch.distributed.BroadcastOptions()
        options.rootRank = source
        self._group.broadcast([tensor], options).wait()


def spawn(folder: Path, size: int) -> list[dict[str, Any]]:
    """Run all of ``SCENARIOS`` in ``size`` processes; what each found, by scenario."""
    path = os.pathsep.join(str(ROOT / home) for home in ("", "firmware", "host"))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    argv = [sys.executable, "-c", START, str(folder)]
    logs = [open(folder / f"{rank}.log", "w+") for rank in range(size)]  # noqa: SIM115  # closed below
    processes = [
        subprocess.Popen([*argv, str(rank), str(size)], cwd=ROOT, env=env, stdout=logs[rank], stderr=subprocess.STDOUT)
        for rank in range(size)
    ]
    try:
        ends = [process.wait(timeout=SECONDS) for process in processes]
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    text = "\n".join((folder / f"{rank}.log").read_text() for rank in range(size))
    assert ends == [0] * size, f"{ends}\n{text}"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def outcome(trainer: Trainer, reports: list[StepReport]) -> dict[str, Any]:
    """What the parent compares."""
    return {
        "model": trainer.model.state_dict(),
        "losses": [report.loss for report in reports],
        "samples": [report.samples for report in reports],
        "totals": [report.global_samples for report in reports],
        "at": trainer.at,
        "reports": reports,
    }


def trained(group: Collective, about: Spec) -> dict[str, Any]:
    """A whole run."""
    reports: list[StepReport] = []
    hooks = Hooks(step=reports.append)
    trainer = Trainer(about, build_model(about), group, plans(group.size), loaders, hooks=hooks, bucket_bytes=BUCKET)
    trainer.run()
    return outcome(trainer, reports)


def paused(group: Collective) -> dict[str, Any]:
    """The last rank asks for a pause during its third step; all go on, and it asks to stop."""
    about, ends = spec("plain"), []
    reports: list[StepReport] = []
    trainer: Trainer

    def ask(report: StepReport) -> None:
        reports.append(report)
        if group.rank == group.size - 1 and report.step in (2, 5):
            trainer.ask(Flag.PAUSE if report.step == 2 else Flag.STOP)

    trainer = Trainer(
        about, build_model(about), group, plans(group.size), loaders, hooks=Hooks(step=ask), bucket_bytes=BUCKET
    )
    for _ in range(3):
        ends.append((trainer.run(), trainer.at.step))
    return {**outcome(trainer, reports), "ends": ends}


def joined(group: Collective) -> dict[str, Any]:
    """After three steps rank 1 starts anew, with other weights, and joins as a stranger would."""
    about = spec("plain")
    reports: list[StepReport] = []
    hooks = Hooks(step=reports.append)
    trainer = Trainer(about, build_model(about), group, plans(group.size), loaders, hooks=hooks, bucket_bytes=BUCKET)
    trainer.run(until=3)
    if group.rank == 1:
        other = build_model(replace(about, seed=99))
        trainer = Trainer(about, other, group, plans(group.size), loaders, hooks=hooks, bucket_bytes=BUCKET)
    else:
        trainer.regroup(group, plans(group.size))
    trainer.run()
    return outcome(trainer, reports)


def retuned(group: Collective) -> dict[str, Any]:
    """Rank 0 is sixteen times as slow as planned; all move samples to the others at the same step."""
    pool = Pool("public", False, SAMPLES, 1, {f"node{rank}": "here" for rank in range(group.size)})
    first = balance([Engine(node, 4, 2000.0) for node in pool.at], [pool], seed=3)
    about, plans, trained = spec("plain", retune=True, epochs=5), [], []  # type: ignore[var-annotated]

    def loaders(plan: Plan, rank: int, epoch: int, first_step: int) -> Iterator[SimpleNamespace]:
        for chosen in order(plan, epoch, rank, first_step):
            trained.extend((epoch, index) for _, index in chosen)
            if rank == 0:
                time.sleep(0.008 * len(chosen))  # what a busy drive would make of it
            yield from batches([chosen])

    hooks = Hooks(plan=lambda report: plans.append((report.step, report.plan.batches, report.why)))
    trainer = Trainer(about, build_model(about), group, first, loaders, hooks=hooks, retuner=Follower(first))
    trainer.run()
    return {"plans": plans, "trained": trained, "first": first.batches, "model": trainer.model.state_dict()}


def infinite(group: Collective) -> dict[str, Any]:
    """One sample of one rank is infinite: all skip that step, or all fail."""
    about = spec("normed", epochs=1, sync_batchnorm=True)
    bad = next(iter(order(plans(group.size), 0, 1, 2)))[0][1]
    found: dict[str, Any] = {"bad": bad}

    def loaders(plan: Plan, rank: int, epoch: int, first_step: int) -> Iterable[SimpleNamespace]:
        return batches(order(plan, epoch, rank, first_step), bad)

    for policy in ("skip", "fail"):
        reports: list[StepReport] = []
        trainer = Trainer(
            about,
            build_model(about),
            group,
            plans(group.size),
            loaders,
            hooks=Hooks(step=reports.append),
            on_nonfinite=policy,
        )
        try:
            trainer.run()
        except NonFinite as problem:
            found["error"] = (str(problem), problem.parameter, problem.step)
        found[policy] = outcome(trainer, reports)
    return found


def differing(group: Collective) -> str:
    """Rank 1's model has another width."""
    try:
        Gradients(torch.nn.Linear(3, 4 + (group.rank == 1)), group.size).agree(group)
    except LayoutDiffers as problem:
        return str(problem)
    return ""


def averaged(group: Collective) -> dict[str, Any]:
    """Running statistics without synchronisation, averaged by samples; and a test set that is split."""
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean.fill_(float(group.rank))
    batchnorm.average_statistics(norm, group, (group.rank + 1) % 3)
    about = spec("plain")
    trainer = Trainer(about, build_model(about), group, plans(group.size), loaders)
    rows = part(SAMPLES, group.rank, group.size)
    found = trainer.evaluate(batches([("public", i) for i in rows[at : at + 8]] for at in range(0, len(rows), 8)))
    return {"mean": norm.running_mean, "evaluation": found}


# what is trained from begin to end, in three processes and in one
RUNS = {
    "plain": spec("plain"),
    "normed": spec("normed", sync_batchnorm=True),
    "branches": spec("branches"),
    "adam": spec("plain", optimizer="adam", lr=0.002, clip=0.5, label_smoothing=0.1, decay="cosine"),
    "own": spec("plain", optimizer=f"{NETS}:two_speeds", loss=f"{NETS}:squared"),
}
SCENARIOS: dict[str, Callable[[Collective], Any]] = {
    **{name: partial(trained, about=about) for name, about in RUNS.items()},
    "paused": paused,
    "joined": joined,
    "retuned": retuned,
    "infinite": infinite,
    "differing": differing,
    "averaged": averaged,
}


def main() -> None:
    """One process, FOLDER RANK SIZE: all scenarios in a group of all, then some in a group of two; writes RANK.pt."""
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    group = Gloo(folder / "store", rank, size)
    found: dict[str, Any] = {name: scenario(group) for name, scenario in SCENARIOS.items()}
    if rank < 2:
        pair = Gloo(folder / "pair", rank, 2)
        found |= {f"{name} of two": SCENARIOS[name](pair) for name in ("plain", "normed")}
    torch.save(found, folder / f"{rank}.pt")
