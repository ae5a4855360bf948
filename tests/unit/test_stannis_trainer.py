"""Training on several unequal ranks is training in one place: real processes over Gloo against one process."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from emucsd.stannis.errors import CheckpointFull, CheckpointMismatch, DataError, NonFinite, PeerLost, PlanError
from emucsd.stannis.plan.order import order, union
from emucsd.stannis.plan.plan import Plan
from emucsd.stannis.training.checkpoint import Folder
from emucsd.stannis.training.collective import Alone, Done, Pending
from emucsd.stannis.training.errors import ModelFailed
from emucsd.stannis.training.factory import build_loss, build_model
from emucsd.stannis.training.report import CheckpointReport, Ended, EpochReport, StepReport
from emucsd.stannis.training.trainer import Hooks, Trainer
from tests.unit import stannis_ranks as ranks

CLOSE = 1e-6  # relative, after 12 steps: FP32 adds in another order
CLOSE_NORMED = 1e-5  # ... and statistics likewise

Found = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterable[None]:
    """Tiny networks, and other tests beside these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What three processes found, by rank and scenario: they are started once."""
    return ranks.spawn(tmp_path_factory.mktemp("ranks"), 3)


# -- several processes against one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ranks.RUNS, "plain of two", "normed of two"])
def test_equals_one_process(found: Found, name: str) -> None:
    """Unequal ranks end with weights, statistics and losses of one process on the union, but for FP32's order."""
    about, world = ranks.RUNS[name.removesuffix(" of two")], 2 if "two" in name else 3
    close = CLOSE_NORMED if about.sync_batchnorm else CLOSE
    model, losses = ranks.reference(about, ranks.plans(world))
    for rank in range(world):
        mine = found[rank][name]
        assert ranks.difference(mine["model"], model) < close
        assert mine["losses"] == pytest.approx(losses, rel=close)


@pytest.mark.parametrize("name", ranks.RUNS)
def test_ranks_stay_equal(found: Found, name: str) -> None:
    """All ranks have the same bits: every one applies the same sum."""
    for other in (1, 2):
        for key, value in found[0][name]["model"].items():
            assert torch.equal(value, found[other][name]["model"][key]), key
        assert found[0][name]["losses"] == found[other][name]["losses"]


def test_unweighted_averages_are_no_substitute() -> None:
    """Averaging the ranks' mean gradients, as equal batches would allow, misses the tolerance a thousandfold."""
    about, plan = ranks.spec("plain"), ranks.plans(3)
    loss, model = build_loss(about), build_model(about)

    def gradient(images: Any, labels: Any) -> Any:
        model.zero_grad()
        loss(model(images), labels).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = gradient(*vars(next(iter(ranks.batches(union(plan, 0))))).values())
    each = [next(iter(ranks.loaders(plan, rank, 0, 1))) for rank in range(3)]
    whole = gradient(torch.cat([b.images for b in each]), torch.cat([b.labels for b in each]))
    means = [gradient(b.images, b.labels) for b in each]
    counts = [len(b.labels) for b in each]
    assert min(counts) > 0
    unweighted = sum(means) / 3
    weighted = sum(n * mean for n, mean in zip(counts, means, strict=True)) / sum(counts)
    assert float((unweighted - whole).norm() / whole.norm()) > 1000 * CLOSE
    assert float((weighted - whole).norm() / whole.norm()) < CLOSE


def test_rank_without_samples(found: Found) -> None:
    """A rank that has nothing in a step takes part in it, and the step is that of the others' samples."""
    mine = found[2]["plain"]
    assert mine["samples"].count(0) >= 6
    assert mine["totals"] == [len(batch) for epoch in (0, 1) for batch in union(ranks.plans(3), epoch)]


def test_parameters_that_nobody_used(found: Found) -> None:
    """They keep their value: neither weight decay nor momentum moves what one process would not have moved."""
    fresh = build_model(ranks.RUNS["branches"]).state_dict()
    assert torch.equal(found[0]["branches"]["model"]["never.weight"], fresh["never.weight"])
    assert not torch.equal(found[0]["branches"]["model"]["seldom.weight"], fresh["seldom.weight"])


def test_pause_and_stop(found: Found) -> None:
    """One rank asks while a step runs; all end after the same step, and go on to the same end."""
    for rank in range(3):
        mine = found[rank]["paused"]
        assert mine["ends"] == [(Ended.PAUSED, 3), (Ended.STOPPED, 6), (Ended.DONE, 12)]
        assert torch.equal(mine["model"]["4.weight"], found[rank]["plain"]["model"]["4.weight"])


def test_stranger_joins(found: Found) -> None:
    """A rank that starts anew in the middle gets the others' state, and the run ends as if it had never left."""
    for rank in range(3):
        for key, value in found[rank]["joined"]["model"].items():
            assert torch.equal(value, found[0]["plain"]["model"][key]), key


def test_retuned(found: Found) -> None:
    """A rank that turns slow loses samples to the others, on all ranks at the same step; each epoch still has every
    sample once, the changed one too."""
    mine = [found[rank]["retuned"] for rank in range(3)]
    assert mine[0]["plans"] == mine[1]["plans"] == mine[2]["plans"]
    step, batches, _ = mine[0]["plans"][0]
    assert batches[0] < mine[0]["first"][0]
    assert sum(batches) == sum(mine[0]["first"])
    assert step % 5
    every = [(epoch, index) for epoch in range(5) for index in range(ranks.SAMPLES)]
    assert sorted(mine[0]["trained"] + mine[1]["trained"] + mine[2]["trained"]) == every
    for key, value in mine[0]["model"].items():
        assert torch.equal(value, mine[1]["model"][key])


def test_infinite_sample(found: Found) -> None:
    """One rank's infinite pixel: all skip that step and no other, or all fail and name parameter and step."""
    for rank in range(3):
        mine = found[rank]["infinite"]
        assert [report.skipped for report in mine["skip"]["reports"]] == [False, False, True, False, False, False]
        assert mine["skip"]["at"].skipped == 1
        assert all(bool(torch.isfinite(value).all()) for value in mine["skip"]["model"].values())
        text, parameter, step = mine["error"]
        assert (parameter, step) == ("0.weight", 2)
        assert "0.weight" in text
        assert len(mine["fail"]["reports"]) == 2
    before = found[0]["infinite"]["fail"]["model"]  # as after two steps, running statistics too
    assert int(before["1.num_batches_tracked"]) == 2


def test_ranks_with_other_models(found: Found) -> None:
    """Every rank hears that rank 1 has another model, before a gradient was added to the wrong place."""
    assert all("ranks [1]" in found[rank]["differing"] for rank in range(3))


def test_statistics_without_synchronisation(found: Found) -> None:
    """They become the mean over the ranks, weighted by samples: 1, 2 and 0 of them here."""
    for rank in range(3):
        assert found[rank]["averaged"]["mean"].tolist() == pytest.approx([2 / 3] * 2)


def test_evaluation_is_split(found: Found) -> None:
    """Three ranks with a third of the test set each find what one finds on all of it."""
    model, about = build_model(ranks.spec("plain")).eval(), ranks.spec("plain")
    images, labels = ranks.data()
    outputs = model(images).detach()
    for rank in range(3):
        evaluation = found[rank]["averaged"]["evaluation"]
        assert evaluation.samples == ranks.SAMPLES
        assert evaluation.loss == pytest.approx(float(build_loss(about)(outputs, labels)), rel=1e-6)
        assert evaluation.accuracy == pytest.approx(float((outputs.argmax(1) == labels).float().mean()))


def test_seconds(found: Found) -> None:
    """Every rank knows every rank's seconds; its own times are parts of the step's, and none is negative."""
    for rank in range(3):
        for mine, theirs in zip(found[rank]["plain"]["reports"], found[0]["plain"]["reports"], strict=True):
            assert mine.seconds == theirs.seconds
            assert len(mine.seconds) == 3
            parts = (mine.seconds_load, mine.seconds_compute, mine.seconds_wait, mine.seconds_transfer)
            assert min(parts) >= 0
            assert mine.seconds_wait <= max(mine.seconds) - mine.seconds[rank] + 1e-6


# -- one process -----------------------------------------------------------------------------------------------------


def trainer(
    net: str = "plain", plan: Plan | None = None, *, model: Any = None, loaders: Any = None, **more: Any
) -> Trainer:
    """One rank on all samples; ``more`` goes to the spec, hooks and the like to the trainer."""
    extras = {name: more.pop(name) for name in ("hooks", "keeper", "tests", "retuner") if name in more}
    about = ranks.spec(net, **more)
    chosen = loaders or ranks.loaders
    return Trainer(about, model or build_model(about), Alone(), plan or ranks.plans(1), chosen, **extras)


def same(a: Trainer, b: Trainer) -> bool:
    """Whether two trainers have the same bits."""
    theirs = b.model.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.model.state_dict().items())


@pytest.mark.parametrize("net", ["dropped", "normed"])
def test_resume(net: str, tmp_path: Path) -> None:
    """A run that ends within an epoch and resumes from a checkpoint gives the bits of one that did not: chance in the
    model included; what the epoch had summed up is not forgotten."""
    whole: list[EpochReport] = []
    epochs: list[EpochReport] = []
    one = trainer(net, hooks=Hooks(epoch=whole.append))
    assert one.run() is Ended.DONE
    first = trainer(net, keeper=Folder(tmp_path))
    assert first.run(until=8) is Ended.UNTIL
    Folder(tmp_path).save(first.state())
    second = trainer(net, seed=5, hooks=Hooks(epoch=epochs.append))
    second.load_state(Folder(tmp_path).load().state)
    assert (second.at.step, second.at.epoch, second.at.inside) == (8, 1, 2)
    assert second.run() is Ended.DONE
    assert same(one, second)
    assert replace(epochs[-1], seconds=0.0) == replace(whole[-1], seconds=0.0)


def test_another_model_s_state() -> None:
    """It is refused with what differs, and by name."""
    with pytest.raises(CheckpointMismatch, match="another model"):
        trainer("normed").load_state(trainer("plain").state())
    with pytest.raises(CheckpointMismatch, match="version 7"):
        trainer("plain").load_state({**trainer("plain").state(), "version": 7})


def test_epochs_and_checkpoints(tmp_path: Path) -> None:
    """Reports come once a step, epoch and checkpoint; evaluation at its turn; the end is kept."""
    steps: list[StepReport] = []
    epochs: list[EpochReport] = []
    kept: list[CheckpointReport] = []
    one = trainer(
        hooks=Hooks(step=steps.append, epoch=epochs.append, checkpoint=kept.append),
        keeper=Folder(tmp_path),
        tests=lambda rank, size: ranks.batches([[("public", index) for index in range(16)]]),
        epochs=3,
        evaluate_every=2,
        checkpoint_every=4,
    )
    assert one.run() is Ended.DONE
    assert [report.step for report in steps] == list(range(1, 19))
    assert [report.epoch for report in steps] == [0] * 6 + [1] * 6 + [2] * 6
    assert [report.step for report in kept] == [4, 6, 8, 12, 16, 18]
    assert [report.evaluation is not None for report in epochs] == [False, True, True]
    assert [report.samples for report in epochs] == [ranks.SAMPLES] * 3
    losses = [report.loss * report.global_samples for report in steps[:6]]
    assert epochs[0].loss == pytest.approx(sum(losses) / ranks.SAMPLES)
    assert epochs[2].loss < epochs[0].loss


def test_steps_end_a_run() -> None:
    """``steps`` ends it within an epoch, with what the epoch had so far; a longer run goes on from there."""
    epochs: list[EpochReport] = []
    one = trainer(steps=8, hooks=Hooks(epoch=epochs.append))
    assert one.run() is Ended.DONE
    assert (one.at.step, one.at.epoch, one.at.inside) == (8, 1, 2)
    assert [report.steps for report in epochs] == [6, 2]
    assert one.run() is Ended.DONE
    assert one.at.step == 8


class NoRoom:
    """A place for checkpoints that is full."""

    def save(self, state: dict[str, Any]) -> CheckpointReport:
        """As a folder on a full disk would."""
        raise CheckpointFull("no room for 300 bytes, 20 are free", 300, 20)


def test_no_room_for_checkpoints() -> None:
    """The run goes on, and tells."""
    kept: list[CheckpointReport] = []
    assert trainer(hooks=Hooks(checkpoint=kept.append), keeper=NoRoom(), checkpoint_every=3).run() is Ended.DONE
    assert [(report.bytes, "20 are free" in report.error) for report in kept] == [(300, True)] * 4


def test_adopt() -> None:
    """Another plan in the middle of an epoch: the epoch goes on at the same share of it, the rate of learning too."""
    steps: list[StepReport] = []
    one = trainer(hooks=Hooks(step=steps.append), warmup_epochs=0.0)
    one.run(until=3)
    shorter = replace(ranks.plans(1), generation=1, steps=4, shares=(replace(ranks.plans(1).shares[0], batch=15),))
    one.adopt(shorter)
    assert (one.at.epoch, one.at.inside) == (0, 2)
    assert one.run() is Ended.DONE
    assert [report.epoch for report in steps] == [0] * 5 + [1] * 4
    assert steps[3].lr == pytest.approx(steps[2].lr * 1.5)
    with pytest.raises(PlanError, match="2 ranks"):
        one.adopt(ranks.plans(2))


def test_private_samples_stay_untold() -> None:
    """What the user's model raises is told with file and line, its words where no private sample can be in them."""
    public = ranks.plans(1)
    private = replace(public, pools=(replace(public.pools[0], private=True),))
    first = float(next(iter(ranks.loaders(public, 0, 0, 0))).images.flatten()[0])
    for plan, told in ((public, True), (private, False)):
        with pytest.raises(ModelFailed, match=r"stannis_nets\.py:\d+") as raised:
            trainer("broken", plan).run()
        assert (str(first) in str(raised.value)) is told
        assert (raised.value.__cause__ is not None) is told
        assert "ValueError" in str(raised.value)


def test_too_few_classes() -> None:
    """Labels beyond the model's outputs: said without the label."""
    with pytest.raises(ModelFailed, match="tells 2 classes apart"):
        trainer(arguments={"classes": 2}).run()


def test_loader_that_ends_early() -> None:
    """A loader that gives fewer batches than the plan has steps is named, not waited for; a failed run can go on."""
    closed: list[bool] = []

    class Short(list[SimpleNamespace]):
        def close(self) -> None:
            closed.append(True)

    def loaders(plan: Plan, rank: int, epoch: int, first_step: int) -> Short:
        return Short(list(ranks.batches(order(plan, epoch, rank, first_step)))[: 5 - first_step])

    one = trainer(loaders=loaders)
    with pytest.raises(DataError, match="before step 6 of 6"):
        one.run()
    assert (one.at.step, closed) == (5, [True])
    one.loaders = ranks.loaders
    assert one.run() is Ended.DONE
    other = trainer()
    other.run()
    assert same(one, other)


class Breaking(Alone):
    """A group that loses a rank at some call: the one that begins an addition, or the wait for it."""

    def __init__(self, calls: int, late: bool) -> None:
        self.calls, self.late = calls, late

    def _call(self) -> None:
        self.calls -= 1
        if not self.calls:
            raise PeerLost("node1 is gone")

    def begin(self, tensor: torch.Tensor) -> Pending:
        if self.late:
            return SimpleNamespace(wait=self._call)
        self._call()
        return Done()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self._call()


@pytest.mark.parametrize("late", [False, True], ids=["while it begins", "while it waits"])
@pytest.mark.parametrize("net", ["normed", "plain"])
def test_group_that_breaks(net: str, late: bool) -> None:
    """Wherever in a step a rank is lost, in forward, in backward or between: the state is that of a step boundary, and
    with a new group the run ends with the bits of one that lost nobody."""
    about = ranks.spec(net, sync_batchnorm=net == "normed", epochs=1)
    whole = Trainer(about, build_model(about), Alone(), ranks.plans(1), ranks.loaders, bucket_bytes=500)
    whole.run()
    stops = set()
    for calls in range(1, 24, 3 if net == "normed" else 2):
        group = Breaking(calls, late)
        one = Trainer(about, build_model(about), group, ranks.plans(1), ranks.loaders, bucket_bytes=500)
        with pytest.raises(PeerLost, match="node1 is gone"):
            one.run()
        stops.add(one.at.step)
        one.regroup(Alone(), ranks.plans(1))
        assert one.run() is Ended.DONE
        assert same(one, whole)
        assert one.at == whole.at
    assert len(stops) > 1


def test_every_step_skipped() -> None:
    """A run that only skips ends by itself, and says so; one good step in between starts the count anew."""
    bad = [True] * 19 + [False] + [True] * 30

    def loaders(plan: Plan, rank: int, epoch: int, first_step: int) -> Iterable[SimpleNamespace]:
        for chosen in order(plan, epoch, rank, first_step):
            yield from ranks.batches([chosen], chosen[0][1] if bad.pop(0) else None)

    about = ranks.spec("plain", epochs=10)
    one = Trainer(about, build_model(about), Alone(), ranks.plans(1), loaders, on_nonfinite="skip")
    with pytest.raises(NonFinite, match=r"20 steps in a row.*0\.weight"):
        one.run()
    assert (one.at.step, one.at.skipped, one.at.fruitless) == (40, 39, 20)


def test_failed_step_leaves_no_trace() -> None:
    """A step that fails after its forward has moved running statistics takes that back."""
    one = trainer("normed")
    one.run(until=2)
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    good = one._stepper.loss
    one._stepper.loss = lambda outputs, labels: outputs.no_such_attribute
    with pytest.raises(ModelFailed):
        one.run()
    assert all(torch.equal(value, before[key]) for key, value in one.model.state_dict().items())
    one._stepper.loss = good
    one.run()
    other = trainer("normed")
    other.run()
    assert same(one, other)
    assert math.isfinite(float(other.model.state_dict()["1.running_var"].sum()))
