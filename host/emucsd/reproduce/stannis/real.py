"""Really trained: six unequal ranks through `emucsd train`'s own launcher, and one process, on the same samples.

The ranks are processes on this machine, one of them with most of each batch, five with less and with private samples
of their own; coordinator, workers, Gloo and trainer are those of any run. One process then takes the same steps (each
of all ranks' samples together), and more of its kind with orders, augmentations and weights of their own, to show how
far apart two runs are by chance.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emucsd.reproduce.stannis.points import Tell
from emucsd.reproduce.stannis.real_data import SIDE, Files, prepare
from emucsd.reproduce.stannis.settings import Settings
from emucsd.stannis.plan.plan import Plan, Share
from emucsd.stannis.spec import Spec

if TYPE_CHECKING:
    from emucsd.stannis.data.loader import Loader
    from emucsd.stannis.data.source import Source

RANKS = tuple(f"process{number}" for number in range(6))
BATCHES = (72, 16, 12, 12, 8, 8)  # images a step: as of engines that are so unequal
TEST_BATCH = 200
Record = dict[str, Any]


def lacking() -> str:
    """Why it can't be run here; empty: it can."""
    if importlib.util.find_spec("torch") is None:
        return "Left out: training for real needs PyTorch: pip install 'emucsd[torch]'."
    return ""


def run_real(settings: Settings, data: str | None, seed: int, tell: Tell) -> Record:
    """Train on six ranks, then on one; compare.

    :raises EmucsdError: the run failed, or there are no samples
    """
    with tempfile.TemporaryDirectory(prefix="emucsd-") as name:
        folder = Path(name)
        tell("samples of the real run", 0.0)
        files = prepare(folder, data, settings, seed)
        spec = _spec(settings, seed)
        tell("training on six ranks", 0.05)
        six, plan = _six(spec, files, folder / "six")
        tell("training on one process, the same steps", 0.4)
        with _Alone(files) as alone:
            weights = alone.weights(folder / "six" / "checkpoints", spec)
            six |= alone.evaluated(spec, weights)
            one, same = alone.same_steps(spec, plan)
            runs = []
            for number in range(settings.real_seeds):
                tell(f"training on one process, order {number + 1}", 0.55 + 0.45 * number / settings.real_seeds)
                runs.append(alone.own_order(_spec(settings, seed + 100 + number), plan))
    return _compared(settings, files, plan, six, one, runs, _apart(weights, same))


def _spec(settings: Settings, seed: int) -> Spec:
    return Spec(
        "emucsd.stannis.models:small",
        lr=0.06,  # so small that sums in another order stay rounding errors over the run
        base_batch=sum(BATCHES),
        warmup_epochs=0.5,
        decay="cosine",
        momentum=0.9,
        clip=1.0,
        epochs=settings.real_epochs,
        seed=seed,
        image=(3, SIDE, SIDE),
        transform="flip",
        evaluate_every=0,
        tune=False,
        batches=dict(zip(RANKS, BATCHES, strict=True)),
        threads=dict.fromkeys(RANKS, 1),
    )


# -- six ranks


class _Silent:
    """Nobody looks at this run as it goes on."""

    def note(self, text: str) -> None:
        """Not shown."""

    def event(self, event: Mapping[str, Any], standing: Any) -> None:
        """Not shown."""

    def close(self) -> None:
        """Nothing is held."""


def _six(spec: Spec, files: Files, folder: Path) -> tuple[Record, Plan]:
    """Through the launcher, as a user would. :returns: what is told of it, and its plan"""
    from emucsd.stannis.launch.request import Request
    from emucsd.stannis.launch.train import train

    private = tuple(f"{node}={path}" for node, path in zip(RANKS[1:], files.private, strict=True))
    request = Request(spec, data=(str(files.public),), private=private, processes=len(RANKS))
    record = train(request, folder, _Silent())["training"]
    plan = Plan.from_json(json.dumps(record["plans"][-1]))
    nodes = record["nodes"]
    ranks = [
        {
            "node": share.node,
            "batch": share.batch,
            "private": sum(count for pool, count in share.quota.items() if pool.startswith("private")),
            "public": sum(count for pool, count in share.quota.items() if not pool.startswith("private")),
            "images_per_second": nodes[share.node]["images_per_second"],
            "waiting_share": nodes[share.node]["waiting_share"],
        }
        for share in plan.shares
    ]
    for rank in ranks:
        rank["private_share"] = rank["private"] / (rank["private"] + rank["public"])
    told = {
        "what": "six unequal ranks",
        "seconds": record["seconds"],
        "curve": [loss for _, loss in record["losses"]],
        "ranks": ranks,
    }
    return told, plan


# -- one process


class _Alone:
    """One process with all samples in its reach, private ones too: they are generated, or public, here."""

    def __init__(self, files: Files) -> None:
        import torch

        from emucsd.stannis.data import source

        torch.set_num_threads(1)
        names = ["public", *(f"private-{node}" for node in RANKS[1:])]
        paths = [files.public, *files.private]
        self._pools: dict[str, Source] = {n: source.open(str(p)) for n, p in zip(names, paths, strict=True)}
        self._test = source.open(str(files.test))

    def __enter__(self) -> _Alone:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (*self._pools.values(), self._test):
            one.close()

    def _loader(self, spec: Spec, order: Iterable[Any], epoch: int, *, test: bool = False) -> Loader:
        from emucsd.stannis.data.loader import Loader

        sources = {"test": self._test} if test else self._pools
        transform = "none" if test else spec.transform
        return Loader(sources, order, transform, spec.seed, image=spec.image, epoch=epoch, classes=self._test.classes)

    def same_steps(self, spec: Spec, plan: Plan) -> tuple[Record, Mapping[str, Any]]:
        """Each step of all ranks' samples together. :returns: what is told of it, and the weights"""
        from emucsd.stannis.plan.order import union

        alone = self._plan(plan, spec.seed)
        return self._train("one process, the same steps", spec, alone, lambda epoch, first: union(plan, epoch, first))

    def own_order(self, spec: Spec, plan: Plan) -> Record:
        """With an order of its own, by its seed."""
        from emucsd.stannis.plan.order import order

        alone = self._plan(plan, spec.seed)
        name = f"one process, seed {spec.seed}"
        return self._train(name, spec, alone, lambda epoch, first: order(alone, epoch, 0, first))[0]

    def _plan(self, plan: Plan, seed: int) -> Plan:
        """One rank that takes as many steps, of as many samples."""
        quota = {pool.name: pool.count for pool in plan.pools}
        pools = tuple(
            type(pool)(pool.name, False, pool.count, pool.sample_bytes, {"alone": "here"}) for pool in plan.pools
        )
        share = Share(0, "alone", plan.global_batch, quota)
        return Plan(seed=seed, generation=0, steps=plan.steps, shares=(share,), pools=pools)

    def _train(self, name: str, spec: Spec, plan: Plan, order: Any) -> tuple[Record, Mapping[str, Any]]:
        from emucsd.stannis.training.collective import Alone
        from emucsd.stannis.training.factory import build_model
        from emucsd.stannis.training.report import StepReport
        from emucsd.stannis.training.trainer import Hooks, Trainer

        reports: list[StepReport] = []
        begun = time.perf_counter()
        trainer = Trainer(
            spec,
            build_model(spec),
            Alone(),
            plan,
            lambda _plan, _rank, epoch, first: self._loader(spec, order(epoch, first), epoch),
            hooks=Hooks(step=reports.append),
        )
        trainer.run()
        seconds = time.perf_counter() - begun
        weights = trainer.model.state_dict()
        told = {"what": name, "seconds": seconds, "curve": [report.loss for report in reports]}
        return told | self.evaluated(spec, weights), weights

    def evaluated(self, spec: Spec, weights: Mapping[str, Any]) -> Record:
        """Loss and accuracy on the test set."""
        from emucsd.stannis.training.collective import Alone
        from emucsd.stannis.training.evaluate import evaluate
        from emucsd.stannis.training.factory import build_loss, build_model

        model = build_model(spec)
        model.load_state_dict(weights)
        count = self._test.count
        batches = [
            [("test", index) for index in range(at, min(at + TEST_BATCH, count))] for at in range(0, count, TEST_BATCH)
        ]
        with self._loader(spec, batches, 0, test=True) as loader:
            found = evaluate(model, build_loss(spec), loader, Alone())
        return {"loss": found.loss, "accuracy": found.accuracy}

    def weights(self, folder: Path, spec: Spec) -> Mapping[str, Any]:
        """Of the newest checkpoint that the ranks have left."""
        from emucsd.stannis.training import checkpoint

        found: Mapping[str, Any] = checkpoint.load(str(folder)).state["model"]
        return found


# -- compared


def _apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """The largest difference of two models' weights."""
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def _compared(
    settings: Settings, files: Files, plan: Plan, six: Record, one: Record, runs: list[Record], apart: float
) -> Record:
    ranks = six.pop("ranks")
    losses = [one["loss"], *(run["loss"] for run in runs)]
    spread = {
        "losses": [run["loss"] for run in runs],
        "accuracies": [run["accuracy"] for run in runs],
        "curves": [run["curve"] for run in runs],
        "apart": max(losses) / min(losses) - 1,
        "runs": [_without_curve(run) for run in runs],
    }
    train, others = sum(files.counts), ", ".join(f"{run['loss']:.4f}" for run in runs)
    about = (
        f"Really trained, small network, {files.about}: {train:,} to train on, {train - files.counts[0]:,} of them "
        f"private to five of six ranks, batches {', '.join(map(str, plan.batches))}, {settings.real_epochs} epochs of "
        f"{plan.steps} steps. Test loss {six['loss']:.4f} on six ranks, {one['loss']:.4f} on one process with the same "
        f"steps ({abs(six['loss'] / one['loss'] - 1):.3%} apart); accuracy {six['accuracy']:.4f} and "
        f"{one['accuracy']:.4f}. The same one process with other seeds: {others}."
    )
    return {
        "about": about,
        "data": files.about,
        "train_images": train,
        "test_images": files.tests,
        "epochs": settings.real_epochs,
        "ranks": ranks,
        "one": one,
        "six": six,
        "spread": spread,
        "weights_apart": apart,
    }


def _without_curve(run: Record) -> Record:
    return {key: value for key, value in run.items() if key != "curve"}
